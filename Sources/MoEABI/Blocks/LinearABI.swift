import CMoE
import MoE

/// Rows and columns of an array of the caller's, checked: its bytes fit in 63 bits.
struct ArraySize {
  let rows: Int
  let width: Int
  var elements: Int { rows * width }

  /// Rows from 0 on, columns from 1 on, each within 31 bits.
  init(_ rows: Int64, _ rowsName: StaticString, _ width: Int64, _ widthName: StaticString) throws(Fault) {
    self.rows = Int(rows)
    self.width = Int(width)
    if self.rows > Int.max / 8 / self.width {
      throw .invalid("the bytes of \(rowsName) = \(self.rows) times \(widthName) = \(self.width) do not fit in 63 bits")
    }
  }
}

/// What forward and backward of a product share.
private struct LinearCall {
  let shape: LinearShape
  let type: ElementType  // of the weight
  let ofX: ArraySize
  let ofY: ArraySize
  let ofWeight: ArraySize

  init(_ config: moe_linear_config) throws(Fault) {
    ofX = try ArraySize(config.n_tokens, "n_tokens", config.inputs, "inputs")
    ofY = try ArraySize(config.n_tokens, "n_tokens", config.outputs, "outputs")
    ofWeight = try ArraySize(config.outputs, "outputs", config.inputs, "inputs")
    type = try elementType(config.weight_dtype, "weight_dtype")
    shape = LinearShape(tokens: ofX.rows, inputs: ofX.width, outputs: ofY.width, weights: type)
  }
}

@implementation @_cdecl("moe_linear_forward")
public func moe_linear_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_linear_config>?, _ x: UnsafePointer<Float>?,
  _ weight: UnsafeRawPointer?, _ bias: UnsafePointer<Float>?, _ y: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let call = try LinearCall(try operands.copies(config, "config"))
    let x = try operands.reads(x, call.ofX.elements, "x")
    let weight = try operands.reads(weight, call.ofWeight.elements, of: call.type, "weight")
    let bias = try operands.reads(optional: bias, call.ofY.width, "bias")
    let y = try operands.writes(y, call.ofY.elements, "y")
    try LinearForward.call(
      call.shape, x: StridedRows(x, stride: call.ofX.width), weight: weight, bias: bias,
      y: StridedTargets(y, stride: call.ofY.width), in: context)
  }
}

@implementation @_cdecl("moe_linear_backward")
public func moe_linear_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_linear_config>?, _ x: UnsafePointer<Float>?,
  _ weight: UnsafeRawPointer?, _ dy: UnsafePointer<Float>?, _ dx: UnsafeMutablePointer<Float>?,
  _ dweight: UnsafeMutablePointer<Float>?, _ dbias: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let call = try LinearCall(try operands.copies(config, "config"))
    let x = try operands.reads(x, call.ofX.elements, "x")
    let weight = try operands.reads(weight, call.ofWeight.elements, of: call.type, "weight")
    let dy = try operands.reads(dy, call.ofY.elements, "dy")
    let dx = try operands.writes(optional: dx, call.ofX.elements, "dx")
    let dweight = try operands.writes(optional: dweight, call.ofWeight.elements, "dweight")
    let dbias = try operands.writes(optional: dbias, call.ofY.width, "dbias")
    try LinearBackward.call(
      call.shape, x: StridedRows(x, stride: call.ofX.width), weight: weight,
      dy: StridedRows(dy, stride: call.ofY.width), dx: dx.map { StridedTargets($0, stride: call.ofX.width) },
      dWeight: dweight, dBias: dbias, in: context)
  }
}
