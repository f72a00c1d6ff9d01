import CMoE
import MoE

// What lies between forward and backward, and what both take.

@implementation @_cdecl("moe_tape_create")
public func moe_tape_create(_ layer: OpaquePointer?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try TapePointer.create(for: layer))
  }
}

@implementation @_cdecl("moe_tape_free")
public func moe_tape_free(_ tape: OpaquePointer?) {
  guard let tape else { return }
  TapePointer(tape).free()
}

@implementation @_cdecl("moe_tape_bind")
public func moe_tape_bind(_ tape: OpaquePointer?, _ memory: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
  attempt { () throws(Fault) in
    let tape = try handle(tape, "tape", as: Tape.self)
    tape.bind(try lent(memory, size, "memory"))
  }
}

@implementation @_cdecl("moe_layer_plan")
public func moe_layer_plan(
  _ layer: OpaquePointer?, _ n_tokens: Int64, _ options: UnsafePointer<moe_forward_options>?, _ taped: Int32,
  _ plan: UnsafeMutablePointer<moe_plan>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try layer.pointee.requireWhole()
    if layer.pointee.ranks != nil {
      throw .badState("a call of a layer over ranks has no plan: it takes what all ranks' tokens need")
    }
    let c = layer.pointee.configuration
    try require(Int(n_tokens), "n_tokens", from: 0, to: Int(Int32.max) / c.slots)
    var operands = Operands()
    let (plan, asked) = try operands.updates(plan, "plan")
    let call = try Call(planning: options, tokens: Int(n_tokens), c, &operands)
    let found = try layer.pointee.memoryPlan(call, taped: try flag(taped, "taped"))
    plan.pointee = asked.filled(with: found)
  }
}

extension moe_plan {
  /// The caller's struct, of the caller's size.
  func filled(with found: MemoryPlan) -> moe_plan {
    var filled = self
    filled.forward_bytes = found.forwardScratch
    filled.backward_bytes = found.backwardScratch
    filled.tape_bytes = found.tape
    filled.total_bytes = found.total
    filled.chunk_tokens = Int64(found.chunkTokens)
    filled.n_tokens = Int64(found.tokens)
    filled.tape_policy = Int32(found.keepsActivations ? MOE_TAPE_FULL.rawValue : MOE_TAPE_LEAN.rawValue)
    return filled
  }
}
