import CShims

/// Muon [Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982] for matrices, AdamW for all else; the formulas stand in
/// include/moe.h. A tensor is one matrix or many, of an expert each, and every matrix is stepped by itself.
public struct Muon: UpdateRule {
  static var name: StaticString { ".muon" }
  static var numbers: Int { 8 }

  private var momentum: Double
  private var rest: AdamW

  public init(momentum: Double, rest: AdamW) {
    self.momentum = momentum
    self.rest = rest
  }

  /// Of AdamW with the same learning rate and decay.
  public var learningRate: Double {
    get { rest.learningRate }
    set { rest.learningRate = newValue }
  }
  var weightDecay: Double { rest.weightDecay }

  /// The learning rate, momentum, then the rest of AdamW's.
  init(_ numbers: UnsafePointer<Double>) {
    momentum = numbers[1]
    rest = withUnsafeTemporaryAllocation(of: Double.self, capacity: AdamW.numbers) { own in
      own[0] = numbers[0]
      for i in 1..<AdamW.numbers { own[i] = numbers[i + 1] }
      return AdamW(own.baseAddress!)
    }
  }

  static func mayBe(_ value: Double, number i: Int) -> Bool {
    i < 2 ? i == 0 || value < 1 : AdamW.mayBe(value, number: i - 1)
  }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    rest.getNumbers(out + 1)
    (out[0], out[1]) = (learningRate, momentum)
  }

  /// Whether a tensor of that name is a matrix between a network's ends, and so Muon's where nobody says otherwise. Names as
  /// this library has them; NULL is that of a matrix.
  public static func isMatrix(_ name: UnsafePointer<CChar>?) -> Bool {
    guard let name else { return true }
    func ends(_ end: StaticString) -> Bool { hasEnd(name, cText(end)) }
    func isNamed(_ whole: StaticString) -> Bool { compareText(name, cText(whole)) == 0 }
    let isOfTheEnds = isNamed("embed.weight") || isNamed("positions.weight") || isNamed("output.weight")
    return !isOfTheEnds && !ends("bias") && !ends("constant")
  }

  /// v of a matrix; m and v of AdamW
  func moments(_ shape: Optimizer.Shape) -> Int { shape.matrix == nil ? rest.moments(shape) : 1 }

  mutating func setMomentum(_ momentum: Double, afterSteps steps: UInt64) { self.momentum = momentum }

  mutating func beginStep() { rest.beginStep() }

  func takeScratch(_ arena: inout Arena, _ shape: Optimizer.Shape, in context: ContextPointer) {
    if let matrix = shape.matrix { _ = Orthogonalisation(&arena, matrix, in: context) }
  }

  func stepsElements(_ shape: Optimizer.Shape) -> Bool { shape.matrix == nil }
  func step(_ block: BlockGradient, of part: TensorStep) { rest.step(block, of: part) }

  /// The elements are whole matrices: the boundary has seen to that.
  func step(_ part: TensorStep) {
    guard let matrix = part.shape.matrix else { return rest.step(part) }
    if matrix.count == 0 { return }
    var arena = part.scratch
    let orthogonalisation = Orthogonalisation(&arena, matrix, in: part.context)
    let rate = learningRate * part.group.learningRateScale
    // The root mean square of AdamW's updates, about 0.2, whatever the matrix's shape.
    let scale = 0.2 * Double(max(matrix.rows, matrix.columns)).squareRoot()
    for first in stride(from: part.elements.lowerBound, to: part.elements.upperBound, by: matrix.count) {
      let elements = first..<first + matrix.count
      let one = part.of(elements)
      part.context.runToTheEnd(
        one.items, MomentumStep(part: one, momentum: Float(momentum), update: orthogonalisation.given))
      let update = orthogonalisation.run(in: part.context)
      part.context.runToTheEnd(
        one.items,
        MatrixStep(
          part: one, decay: Float(1 - rate * part.group.weightDecay), rate: Float(rate * scale), update: update))
    }
  }
}

/// v = momentum v + g;  update = g + momentum v
private struct MomentumStep: Job {
  let part: TensorStep
  let momentum: Float
  let update: UnsafeMutablePointer<Float>  // [elements]

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = part.elements(ofItem: item)
    let grad = part.gradient(from: range.lowerBound)
    var moments = part.moments.from(range.lowerBound)
    part.context.kernels.pointee.nesterov(
      Int64(range.count), part.clip, momentum, grad, &moments, update + (range.lowerBound - part.elements.lowerBound))
    if part.clears { grad.update(repeating: 0, count: range.count) }
  }
}

/// p = decay p - rate update
private struct MatrixStep: Job {
  let part: TensorStep
  let decay: Float
  let rate: Float
  let update: UnsafePointer<Float>  // [elements]

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let kernels = part.context.kernels
    part.changeValues(part.elements(ofItem: item)) { values, first, count in
      kernels.pointee.scale(Int64(count), decay, values, values)
      kernels.pointee.add_scaled(Int64(count), -rate, update + (first - part.elements.lowerBound), values)
    }
  }
}
