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
    let (ofStatistics, ofWeight) = (8 * size.rows, 4 * size.width)
    if UnsafePointer(y) != x { try requireApart(y, size.bytes, "y", x, size.bytes, "x") }
    try requireApart(y, size.bytes, "y", weight, ofWeight, "weight")
    try requireApart(y, size.bytes, "y", bias, ofWeight, "bias")
    try requireApart(statistics, ofStatistics, "statistics", x, size.bytes, "x")
    try requireApart(statistics, ofStatistics, "statistics", y, size.bytes, "y")
    try requireApart(statistics, ofStatistics, "statistics", weight, ofWeight, "weight")
    try requireApart(statistics, ofStatistics, "statistics", bias, ofWeight, "bias")
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
    let (ofStatistics, ofWeight) = (8 * size.rows, 4 * size.width)
    func apart(_ output: UnsafePointer<Float>?, _ bytes: Int, _ name: StaticString) throws(Fault) {
      try requireApart(output, bytes, name, x, size.bytes, "x")
      try requireApart(output, bytes, name, weight, ofWeight, "weight")
      try requireApart(output, bytes, name, statistics, ofStatistics, "statistics")
    }
    try apart(dx, size.bytes, "dx")
    try apart(dweight, ofWeight, "dweight")
    try apart(dbias, ofWeight, "dbias")
    if UnsafePointer(dx) != dy { try requireApart(dx, size.bytes, "dx", dy, size.bytes, "dy") }
    try requireApart(dweight, ofWeight, "dweight", dy, size.bytes, "dy")
    try requireApart(dbias, ofWeight, "dbias", dy, size.bytes, "dy")
    try requireApart(dweight, ofWeight, "dweight", dx, size.bytes, "dx")
    try requireApart(dbias, ofWeight, "dbias", dx, size.bytes, "dx")
    try requireApart(dbias, ofWeight, "dbias", dweight, ofWeight, "dweight")
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
