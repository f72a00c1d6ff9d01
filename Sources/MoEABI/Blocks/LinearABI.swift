import CMoE
import MoE

/// Rows and columns of an array of the caller's, checked: its bytes fit in 63 bits.
struct ArraySize {
  let rows: Int
  let width: Int
  var elements: Int { rows * width }

  /// Rows from 0 (`fewest`) on, columns from 1 on; both fit in 31 bits, as the matrix products want it.
  init(
    _ rows: Int64, _ rowsName: StaticString, _ width: Int64, _ widthName: StaticString, fewest: Int = 0
  ) throws(Fault) {
    try require(Int(rows), rowsName, from: fewest, to: Int(Int32.max))
    try require(Int(width), widthName, from: 1, to: Int(Int32.max))
    self.rows = Int(rows)
    self.width = Int(width)
    if self.rows > Int.max / 8 / self.width {
      throw .invalid("the bytes of \(rowsName) = \(self.rows) times \(widthName) = \(self.width) do not fit in 63 bits")
    }
  }
}

@implementation @_cdecl("moe_linear_forward")
public func moe_linear_forward(
  _ context: OpaquePointer?, _ x: UnsafePointer<Float>?, _ n_tokens: Int64, _ inputs: Int64, _ outputs: Int64,
  _ weight: UnsafeRawPointer?, _ weight_dtype: Int32, _ bias: UnsafePointer<Float>?, _ y: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let ofX = try ArraySize(n_tokens, "n_tokens", inputs, "inputs")
    let ofY = try ArraySize(n_tokens, "n_tokens", outputs, "outputs")
    let ofWeight = try ArraySize(outputs, "outputs", inputs, "inputs", fewest: 1)
    let type = try elementType(weight_dtype, "weight_dtype")
    let x = try array(x, count: ofX.elements, "x")
    let weight = try array(weight, count: ofWeight.elements, of: type, "weight")
    let bias = bias == nil ? nil : try required(bias, "bias")
    let y = try array(y, count: ofY.elements, "y")
    var operands = Operands()
    try operands.reads(x, ofX.elements, "x")
    try operands.reads(weight, bytes: byteCount(ofWeight.elements, of: type), "weight")
    try operands.reads(bias, ofY.width, "bias")
    try operands.writes(y, ofY.elements, "y")
    let shape = LinearShape(tokens: ofX.rows, inputs: ofX.width, outputs: ofY.width, weights: type)
    try LinearForward.call(
      shape, x: StridedRows(x, stride: ofX.width), weight: weight, bias: bias, y: TokenTargets(y, stride: ofY.width),
      in: context)
  }
}

@implementation @_cdecl("moe_linear_backward")
public func moe_linear_backward(
  _ context: OpaquePointer?, _ x: UnsafePointer<Float>?, _ n_tokens: Int64, _ inputs: Int64, _ outputs: Int64,
  _ weight: UnsafeRawPointer?, _ weight_dtype: Int32, _ dy: UnsafePointer<Float>?, _ dx: UnsafeMutablePointer<Float>?,
  _ dweight: UnsafeMutablePointer<Float>?, _ dbias: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let ofX = try ArraySize(n_tokens, "n_tokens", inputs, "inputs")
    let ofY = try ArraySize(n_tokens, "n_tokens", outputs, "outputs")
    let ofWeight = try ArraySize(outputs, "outputs", inputs, "inputs", fewest: 1)
    let type = try elementType(weight_dtype, "weight_dtype")
    let x = try array(x, count: ofX.elements, "x")
    let weight = try array(weight, count: ofWeight.elements, of: type, "weight")
    let dy = try array(dy, count: ofY.elements, "dy")
    let dx = try optional(dx, "dx")
    let dweight = try optional(dweight, "dweight")
    let dbias = try optional(dbias, "dbias")
    var operands = Operands()
    try operands.reads(x, ofX.elements, "x")
    try operands.reads(weight, bytes: byteCount(ofWeight.elements, of: type), "weight")
    try operands.reads(dy, ofY.elements, "dy")
    try operands.writes(dx, ofX.elements, "dx")
    try operands.writes(dweight, ofWeight.elements, "dweight")
    try operands.writes(dbias, ofY.width, "dbias")
    let shape = LinearShape(tokens: ofX.rows, inputs: ofX.width, outputs: ofY.width, weights: type)
    try LinearBackward.call(
      shape, x: StridedRows(x, stride: ofX.width), weight: weight, dy: StridedRows(dy, stride: ofY.width),
      dx: dx.map { TokenTargets($0, stride: ofX.width) }, dWeight: dweight, dBias: dbias, in: context)
  }
}
