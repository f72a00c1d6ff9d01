import CMoE
import MoE

// The experts alone, by call.

@implementation @_cdecl("moe_experts_plan")
public func moe_experts_plan(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_experts_config>?, _ call: UnsafePointer<moe_experts_call>?,
  _ gradients: UnsafePointer<moe_experts_gradients>?, _ saves: Int32, _ plan: UnsafeMutablePointer<moe_plan>?
) -> moe_status {
  attempt(together: call) { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let (plan, asked) = try operands.updates(plan, "plan")
    let config = try operands.copies(config, "config")
    let gradients = gradients == nil ? moe_experts_gradients() : try operands.copies(gradients, "gradients")
    let call = try ExpertsCall(config, call, ExpertLists(config, gradients), planned: true, &operands)
    let saves = try flag(saves, "saves")
    plan.pointee = asked.filled(with: try call.memoryPlan(saves: saves, in: context))
  }
}

@implementation @_cdecl("moe_experts_forward")
public func moe_experts_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_experts_config>?, _ call: UnsafePointer<moe_experts_call>?,
  _ x: UnsafeRawPointer?, _ y: UnsafeMutableRawPointer?, _ saved: UnsafeMutableRawPointer?, _ saved_size: Int,
  _ rows: UnsafeMutableRawPointer?
) -> moe_status {
  attempt(together: call) { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let lists = ExpertLists(config)
    let call = try ExpertsCall(config, call, lists, &operands)
    let type = call.tokenType
    let elements = call.tokens * call.group.hidden
    let x = try operands.reads(x, elements, of: type, "x")
    if y == nil && rows == nil && elements > 0 { throw .invalid("y is NULL, and so is rows: give one of them") }
    let y = y == nil ? nil : try operands.writes(y, elements, of: type, "y")
    let rows = rows == nil ? nil : try operands.writes(rows, elements * call.topK, of: type, "rows")
    let saved = try savedBytes(saved, saved_size)
    try operands.writes(saved, "saved")
    try operands.requireApart(fromListed: lists, call, in: context)
    try call.forward(x, y: y, rows: rows, saved: saved, in: context)
  }
}

@implementation @_cdecl("moe_experts_backward")
public func moe_experts_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_experts_config>?, _ call: UnsafePointer<moe_experts_call>?,
  _ saved: UnsafeRawPointer?, _ saved_size: Int, _ x: UnsafeRawPointer?, _ dy: UnsafeRawPointer?,
  _ gradients: UnsafePointer<moe_experts_gradients>?
) -> moe_status {
  attempt(together: call) { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let gradients = try operands.copies(gradients, "gradients")
    let lists = ExpertLists(config, gradients)
    var call = try ExpertsCall(config, call, lists, &operands)
    try call.requireGradients()
    call.overwrites = gradients.overwrite != 0
    let type = call.tokenType
    let elements = call.tokens * call.group.hidden
    let x = try operands.reads(x, elements, of: type, "x")
    let dy = try operands.reads(dy, elements, of: type, "dy")
    let dx = gradients.dx == nil ? nil : try operands.writes(gradients.dx, elements, of: type, "dx")
    let dRouting =
      gradients.d_expert_weights == nil
      ? nil
      : try operands.writes(
        gradients.d_expert_weights, call.tokens * call.topK, of: call.routingType, "d_expert_weights")
    let saved = try savedBytes(UnsafeMutableRawPointer(mutating: saved), saved_size)
    try operands.reads(saved, "saved")
    try operands.requireApart(fromListed: lists, call, in: context)
    try call.backward(x, dy: dy, dx: dx, dRouting: dRouting, saved: saved, in: context)
  }
}

// MARK: packed weights

@implementation @_cdecl("moe_experts_prepare")
public func moe_experts_prepare(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_experts_config>?, _ form: Int32,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let out = try required(out, "out")
    try Layer.Preparation(rawValue: form)?.requireInMemory("form")
    guard let packing = Layer.Preparation(rawValue: form)?.form else {
      throw .invalid("form = \(Int(form)) is no moe_prepared to pack weights in, such as MOE_PREPARED_BF16")
    }
    var operands = Operands()
    var own = moe_experts_call.standard
    own.top_k = 1
    let config = try operands.copies(config, "config")
    let lists = ExpertLists(config)
    let call = try ExpertsCall(config, &own, lists, &operands)
    try operands.requireApart(fromListed: lists, call, in: context)
    if !call.group.multiplies {
      throw .invalid(
        "expert_kind = \(Int(call.group.kind.rawValue)) has no matrices that could be packed: call without `prepared`")
    }
    if !call.group.weights.canBePrepared(as: packing) {
      throw .invalid("form = MOE_PREPARED_F32, but the weights are bfloat16: take MOE_PREPARED_BF16")
    }
    out.pointee = OpaquePointer(try PreparedExpertsPointer.create(call, form: packing, in: context))
  }
}

@implementation @_cdecl("moe_experts_prepared_size")
public func moe_experts_prepared_size(
  _ prepared: OpaquePointer?, _ size: UnsafeMutablePointer<Int>?
) -> moe_status {
  attempt { () throws(Fault) in
    let prepared = try handle(prepared, "prepared", as: PreparedExperts.self)
    try required(size, "size").pointee = prepared.pointee.bytes
  }
}

@implementation @_cdecl("moe_experts_prepared_free")
public func moe_experts_prepared_free(_ prepared: OpaquePointer?) {
  guard let prepared else { return }
  PreparedExpertsPointer(prepared).free()
}
