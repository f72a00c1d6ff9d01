import CShims

// Products of tokens with one matrix.
//   forward    y = x W^T + b
//   backward   dx = dy W;  dW += dy^T x;  db += sum over tokens of dy
// In bfloat16 the products read x and dy rounded to it; sums, y, dx and the gradients are float32.

/// Sizes of a product.
public struct LinearShape {
  let tokens: Int  // T, the most of one run
  let inputs: Int
  let outputs: Int
  let weights: ElementType
  /// A packed copy of the matrix, which forward reads in its place.
  var panels: PanelMatrixPointer?
  /// What becomes of tokens.
  var precision: PrecisionKind { panels?.pointee.forms.precision ?? weights.format.precision }
  /// Whose product it is, in a profile.
  var phase = Phase.projection
  /// Whether backward follows: then tokens stay floats, since rounded to integers they have no slope.
  var isDifferentiated = false

  public init(tokens: Int, inputs: Int, outputs: Int, weights: ElementType) {
    self.tokens = tokens
    self.inputs = inputs
    self.outputs = outputs
    self.weights = weights
  }

  func work(_ tokens: Int, products: Int = 1) -> Work {
    let bytes = panels?.pointee.bytes ?? weights.bytes(products * inputs * outputs)
    return Work(flops: 2 * products * tokens * inputs * outputs, bytes: bytes + tokens * (inputs + outputs) * 4)
  }
}

/// y = x W^T + b. The scratch is taken once; any number of runs may follow, one at a time.
public struct LinearForward {
  private enum Form {
    case plain(PlainLinear)
    case f32(TiledLinear<F32>)
    case bf16(TiledLinear<BF16>)
    case integers(TiledLinear<Integers>)
    case rowIntegers(TiledLinear<RowIntegers>)
  }

  private let form: Form
  private let shape: LinearShape

  init(_ arena: inout Arena, _ shape: LinearShape, context: ContextPointer) {
    self.shape = shape
    switch shape.isDifferentiated ? nil : shape.panels?.pointee.forms.tokens {
    case .integers:
      form = .integers(TiledLinear(&arena, shape, context: context))
      return
    case .rowIntegers:
      form = .rowIntegers(TiledLinear(&arena, shape, context: context))
      return
    case .blockHalves:
      form = .bf16(TiledLinear(&arena, shape, context: context))
      return
    case nil, .floats, .halves: break
    }
    if !context.packsWeights {
      form = .plain(PlainLinear(&arena, shape, context: context))
      return
    }
    switch shape.precision {
    case .f32: form = .f32(TiledLinear(&arena, shape, context: context))
    case .bf16: form = .bf16(TiledLinear(&arena, shape, context: context))
    }
  }

  /// `weight`: [outputs, inputs] of the shape's type; `bias`: [outputs].
  func run(
    tokens: Int, x: StridedRows, weight: UnsafeRawPointer, bias: UnsafePointer<Float>?, y: StridedTargets,
    in context: ContextPointer
  ) throws(Fault) {
    try context.measure(shape.phase, shape.work(tokens)) { () throws(Fault) in
      switch form {
      case .plain(let plain): try plain.forward(tokens, x, weight, bias, y, in: context)
      case .f32(let tiled): try tiled.forward(tokens, x, weight, bias, y, in: context)
      case .bf16(let tiled): try tiled.forward(tokens, x, weight, bias, y, in: context)
      case .integers(let tiled): try tiled.forward(tokens, x, weight, bias, y, in: context)
      case .rowIntegers(let tiled): try tiled.forward(tokens, x, weight, bias, y, in: context)
      }
    }
  }
}

// MARK: backward

/// The gradients; those of W and b are added to what is there.
public struct LinearBackward {
  private enum Form {
    case plain(PlainLinear)
    case f32(TiledLinearBackward<F32>)
    case bf16(TiledLinearBackward<BF16>)
  }

  private let form: Form
  private let shape: LinearShape
  private let kernels: UnsafePointer<moei_kernels>

  /// Of panels those in few bits are read, of others the matrix itself.
  init(_ arena: inout Arena, _ given: LinearShape, context: ContextPointer) {
    var shape = given
    if let panels = shape.panels, !panels.pointee.forms.isFrozen { shape.panels = nil }
    self.shape = shape
    kernels = context.kernels
    if !context.packsWeights {
      form = .plain(PlainLinear(&arena, shape, context: context))
      return
    }
    switch shape.precision {
    case .f32: form = .f32(TiledLinearBackward(&arena, shape, context: context))
    case .bf16: form = .bf16(TiledLinearBackward(&arena, shape, context: context))
    }
  }

  /// What is not wanted is nil. `dWeight`: [outputs, inputs]; `dBias`: [outputs].
  func run(
    tokens: Int, x: StridedRows, weight: UnsafeRawPointer, dy: StridedRows, dx: StridedTargets?,
    dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    let products = (dx == nil ? 0 : 1) + (dWeight == nil ? 0 : 1)
    try context.measure(shape.phase, backward: true, shape.work(tokens, products: products)) { () throws(Fault) in
      switch form {
      case .plain(let plain): try plain.backward(tokens, x, weight, dy, dx, dWeight, in: context)
      case .f32(let tiled): try tiled.run(tokens, x, weight, dy, dx, dWeight, in: context)
      case .bf16(let tiled): try tiled.run(tokens, x, weight, dy, dx, dWeight, in: context)
      }
      if let dBias {
        let rows = PlacedRows(dy.start, RowPlaces(width: shape.outputs, stride: dy.stride))
        try ColumnSums(kernels: kernels, x: rows, rows: tokens, sums: dBias).run(in: context)
      }
    }
  }
}

// MARK: calls

extension LinearForward {
  /// One call with scratch of its own.
  public static func call(
    _ shape: LinearShape, x: StridedRows, weight: UnsafeRawPointer, bias: UnsafePointer<Float>?, y: StridedTargets,
    in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({ LinearForward(&$0, shape, context: context) }) { (linear) throws(Fault) in
      try linear.run(tokens: shape.tokens, x: x, weight: weight, bias: bias, y: y, in: context)
    }
  }
}

extension LinearBackward {
  /// One call with scratch of its own.
  public static func call(
    _ shape: LinearShape, x: StridedRows, weight: UnsafeRawPointer, dy: StridedRows, dx: StridedTargets?,
    dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({ LinearBackward(&$0, shape, context: context) }) { (linear) throws(Fault) in
      try linear.run(
        tokens: shape.tokens, x: x, weight: weight, dy: dy, dx: dx, dWeight: dWeight, dBias: dBias, in: context)
    }
  }
}
