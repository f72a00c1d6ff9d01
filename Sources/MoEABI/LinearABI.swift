import CMoE
import MoE

/// Rows and columns of an array of the caller's, checked: its bytes fit in 63 bits.
struct ArraySize {
  let rows: Int
  let width: Int
  var elements: Int { rows * width }
  var bytes: Int { 4 * elements }

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

/// Type of a matrix that products read.
func weightType(_ dtype: Int32) throws(Fault) -> ElementType {
  guard let type = ElementType(rawValue: dtype) else {
    throw .invalid("weight_dtype = \(Int(dtype)) is neither MOE_DTYPE_F32 nor MOE_DTYPE_BF16")
  }
  return type
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
    let type = try weightType(weight_dtype)
    let x = try array(x, count: ofX.elements, "x")
    let weight = try array(weight, count: ofWeight.elements, of: type, "weight")
    let bias = bias == nil ? nil : try required(bias, "bias")
    let y = try array(y, count: ofY.elements, "y")
    try requireApart(y, ofY.bytes, "y", x, ofX.bytes, "x")
    try requireApart(y, ofY.bytes, "y", weight, type.size * ofWeight.elements, "weight")
    try requireApart(y, ofY.bytes, "y", bias, 4 * ofY.width, "bias")
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
    let type = try weightType(weight_dtype)
    let x = try array(x, count: ofX.elements, "x")
    let weight = try array(weight, count: ofWeight.elements, of: type, "weight")
    let dy = try array(dy, count: ofY.elements, "dy")
    let dx = try optional(dx, "dx")
    let dweight = try optional(dweight, "dweight")
    let dbias = try optional(dbias, "dbias")
    func apart(_ output: UnsafePointer<Float>?, _ bytes: Int, _ name: StaticString) throws(Fault) {
      try requireApart(output, bytes, name, x, ofX.bytes, "x")
      try requireApart(output, bytes, name, weight, type.size * ofWeight.elements, "weight")
      try requireApart(output, bytes, name, dy, ofY.bytes, "dy")
    }
    try apart(dx, ofX.bytes, "dx")
    try apart(dweight, ofWeight.bytes, "dweight")
    try apart(dbias, 4 * ofY.width, "dbias")
    try requireApart(dweight, ofWeight.bytes, "dweight", dx, ofX.bytes, "dx")
    try requireApart(dbias, 4 * ofY.width, "dbias", dx, ofX.bytes, "dx")
    try requireApart(dbias, 4 * ofY.width, "dbias", dweight, ofWeight.bytes, "dweight")
    let shape = LinearShape(tokens: ofX.rows, inputs: ofX.width, outputs: ofY.width, weights: type)
    try LinearBackward.call(
      shape, x: StridedRows(x, stride: ofX.width), weight: weight, dy: StridedRows(dy, stride: ofY.width),
      dx: dx.map { TokenTargets($0, stride: ofX.width) }, dWeight: dweight, dBias: dbias, in: context)
  }
}
