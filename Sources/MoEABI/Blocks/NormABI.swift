import CMoE
import MoE

/// What forward and backward of a norm share.
private struct NormCall {
  let kind: Norm.Kind
  let size: ArraySize

  init(_ config: moe_norm_config) throws(Fault) {
    kind = try named(config.norm)
    size = try ArraySize(config.n_tokens, "n_tokens", config.hidden_size, "hidden_size")
  }

  func requireNone(_ pointer: UnsafePointer<Float>?, _ name: StaticString) throws(Fault) {
    if kind == .rms && pointer != nil { throw .invalid("\(name) is not NULL, but norm = MOE_NORM_RMS has no bias") }
  }
}

@implementation @_cdecl("moe_norm_forward")
public func moe_norm_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_norm_config>?, _ x: UnsafePointer<Float>?,
  _ weight: UnsafePointer<Float>?, _ bias: UnsafePointer<Float>?, _ y: UnsafeMutablePointer<Float>?,
  _ statistics: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let call = try NormCall(config)
    try requireNormEpsilon(config.epsilon, "epsilon")
    try call.requireNone(bias, "bias")
    let x = try operands.reads(x, call.size.elements, "x")
    let weight = try operands.reads(weight, call.size.width, "weight")
    let bias = try operands.reads(optional: bias, call.size.width, "bias")
    let y = try operands.writes(y, call.size.elements, "y", inPlaceOf: "x")
    let statistics = try operands.writes(optional: statistics, 2 * call.size.rows, "statistics")
    try NormForward(
      Norm(call.kind, hidden: call.size.width, epsilon: config.epsilon), context: context, rows: call.size.rows, x: x,
      weight: weight, bias: bias, y: y, statistics: statistics
    ).run(in: context)
  }
}

@implementation @_cdecl("moe_norm_backward")
public func moe_norm_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_norm_config>?, _ x: UnsafePointer<Float>?,
  _ weight: UnsafePointer<Float>?, _ statistics: UnsafePointer<Float>?, _ dy: UnsafePointer<Float>?,
  _ dx: UnsafeMutablePointer<Float>?, _ dweight: UnsafeMutablePointer<Float>?, _ dbias: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let call = try NormCall(try operands.copies(config, "config"))
    try call.requireNone(UnsafePointer(dbias), "dbias")
    let x = try operands.reads(x, call.size.elements, "x")
    let weight = try operands.reads(weight, call.size.width, "weight")
    let statistics = try operands.reads(statistics, 2 * call.size.rows, "statistics")
    let dy = try operands.reads(dy, call.size.elements, "dy")
    let dx = try operands.writes(optional: dx, call.size.elements, "dx", inPlaceOf: "dy")
    let dweight = try operands.writes(optional: dweight, call.size.width, "dweight")
    let dbias = try operands.writes(optional: dbias, call.size.width, "dbias")
    try NormBackward(
      Norm(call.kind, hidden: call.size.width, epsilon: 0), context: context, rows: call.size.rows, x: x,
      weight: weight, statistics: statistics, dy: dy, dx: dx, dWeight: dweight, dBias: dbias
    ).run(in: context)
  }
}

/// Below this 1 / root could leave float32's range.
func requireNormEpsilon(_ epsilon: Double, _ name: StaticString) throws(Fault) {
  try require(epsilon, name, atLeast: Double(Float.leastNormalMagnitude))
}
