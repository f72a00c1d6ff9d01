import CShims

// Products with a model's matrices, whose arrays are known when the scratch is cut.

/// y = x W^T + b for rows without gaps.
struct ProjectionForward {
  private let context: ContextPointer
  private let linear: LinearForward
  private let rows: Int
  private let x: StridedRows
  private let weight: Parameter
  private let bias: Parameter?
  private let y: StridedTargets
  /// Where what it reads is noted, in calibration; of which tokens.
  private let squares: InputSquares?
  private let valid: UnsafePointer<UInt8>?  // [rows]

  init(
    _ arena: inout Arena, _ work: BlockWork, _ role: ModelParameters.LayerRole, _ biasRole: ModelParameters.LayerRole?,
    x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    (context, rows, valid) = (work.context, work.tokens, work.input.validMask)
    weight = work[role]!
    bias = biasRole.flatMap { work[$0] }
    squares = work.input.calibration?.pointee.own(work.n, role, work.model)
    let (outputs, inputs, _) = weight.shape
    self.x = StridedRows(x, stride: inputs)
    self.y = StridedTargets(y, stride: outputs)
    var shape = LinearShape(tokens: rows, inputs: inputs, outputs: outputs, weights: weight.type)
    shape.panels = weight.panels
    shape.isDifferentiated = work.input.isTaped
    linear = LinearForward(&arena, shape, context: context)
  }

  func run() throws(Fault) {
    try weight.requirePackedValues(context.kernels)
    try squares?.add(x, rows, valid: valid, in: context)
    try linear.run(tokens: rows, x: x, weight: weight.place!, bias: bias.map { $0.constants }, y: y, in: context)
  }
}

/// Its gradients; dx in rows `dxStride` floats apart, where that is not nil.
struct ProjectionBackward {
  private let work: BlockWork
  private let linear: LinearBackward
  private let x: StridedRows
  private let weight: Parameter
  private let bias: Parameter?
  private let dy: StridedRows
  private let dx: StridedTargets

  init(
    _ arena: inout Arena, _ work: BlockWork, _ weight: Parameter, _ bias: Parameter?, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>, dxStride: Int? = nil
  ) {
    self.work = work
    self.weight = weight
    self.bias = bias
    let (outputs, inputs, _) = weight.shape
    self.x = StridedRows(x, stride: inputs)
    self.dy = StridedRows(dy, stride: outputs)
    self.dx = StridedTargets(dx, stride: dxStride ?? inputs)
    var shape = LinearShape(tokens: work.tokens, inputs: inputs, outputs: outputs, weights: weight.type)
    shape.panels = weight.panels
    linear = LinearBackward(&arena, shape, context: work.context)
  }

  func run() throws(Fault) {
    try work.model.backward(of: weight, bias) { (part) throws(Fault) in
      try linear.run(
        tokens: work.tokens, x: x, weight: weight.place!, dy: dy, dx: part.isOfInput ? dx : nil,
        dWeight: part.isOfParameters ? weight.grad : nil, dBias: part.isOfParameters ? bias?.grad : nil,
        in: work.context)
    }
  }
}
