import CMoE
import MoE

@implementation @_cdecl("moe_norm_forward")
public func moe_norm_forward(
  _ context: OpaquePointer?, _ norm: Int32, _ x: UnsafePointer<Float>?, _ n_tokens: Int64, _ hidden_size: Int64,
  _ weight: UnsafePointer<Float>?, _ bias: UnsafePointer<Float>?, _ epsilon: Double, _ y: UnsafeMutablePointer<Float>?,
  _ statistics: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let kind = try kind(norm)
    let size = try ArraySize(n_tokens, "n_tokens", hidden_size, "hidden_size")
    let x = try array(x, count: size.elements, "x")
    let weight = try required(weight, "weight")
    try requireNone(bias, "bias", kind)
    let bias = bias == nil ? nil : try required(bias, "bias")
    try requireNormEpsilon(epsilon, "epsilon")
    let y = try array(y, count: size.elements, "y")
    let statistics = try optional(statistics, "statistics")
    var operands = Operands()
    let placeOfX = try operands.reads(x, size.elements, "x")
    try operands.reads(weight, size.width, "weight")
    try operands.reads(bias, size.width, "bias")
    try operands.writes(y, size.elements, "y", inPlaceOf: placeOfX)
    try operands.writes(statistics, 2 * size.rows, "statistics")
    try NormForward(
      Norm(kind, hidden: size.width, epsilon: epsilon), context: context, rows: size.rows, x: x, weight: weight,
      bias: bias, y: y, statistics: statistics
    ).run(in: context)
  }
}

@implementation @_cdecl("moe_norm_backward")
public func moe_norm_backward(
  _ context: OpaquePointer?, _ norm: Int32, _ x: UnsafePointer<Float>?, _ n_tokens: Int64, _ hidden_size: Int64,
  _ weight: UnsafePointer<Float>?, _ statistics: UnsafePointer<Float>?, _ dy: UnsafePointer<Float>?,
  _ dx: UnsafeMutablePointer<Float>?, _ dweight: UnsafeMutablePointer<Float>?, _ dbias: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let kind = try kind(norm)
    let size = try ArraySize(n_tokens, "n_tokens", hidden_size, "hidden_size")
    let x = try array(x, count: size.elements, "x")
    let weight = try required(weight, "weight")
    let statistics = try array(statistics, count: size.rows, "statistics")
    let dy = try array(dy, count: size.elements, "dy")
    let dx = try optional(dx, "dx")
    let dweight = try optional(dweight, "dweight")
    try requireNone(UnsafePointer(dbias), "dbias", kind)
    let dbias = try optional(dbias, "dbias")
    var operands = Operands()
    try operands.reads(x, size.elements, "x")
    try operands.reads(weight, size.width, "weight")
    try operands.reads(statistics, 2 * size.rows, "statistics")
    let placeOfDy = try operands.reads(dy, size.elements, "dy")
    try operands.writes(dx, size.elements, "dx", inPlaceOf: placeOfDy)
    try operands.writes(dweight, size.width, "dweight")
    try operands.writes(dbias, size.width, "dbias")
    try NormBackward(
      Norm(kind, hidden: size.width, epsilon: 0), context: context, rows: size.rows, x: x, weight: weight,
      statistics: statistics, dy: dy, dx: dx, dWeight: dweight, dBias: dbias
    ).run(in: context)
  }
}

/// Below this 1 / root could leave float32's range.
func requireNormEpsilon(_ epsilon: Double, _ name: StaticString) throws(Fault) {
  try require(epsilon, name, atLeast: Double(Float.leastNormalMagnitude))
}

private func kind(_ norm: Int32) throws(Fault) -> Norm.Kind {
  try require(Int(norm), "norm", from: 0, to: Int(MOE_NORM_RMS.rawValue))
  return Norm.Kind(rawValue: norm)!
}

private func requireNone(_ pointer: UnsafePointer<Float>?, _ name: StaticString, _ kind: Norm.Kind) throws(Fault) {
  if kind == .rms && pointer != nil { throw .invalid("\(name) is not NULL, but norm = MOE_NORM_RMS has no bias") }
}
