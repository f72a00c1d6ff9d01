import CShims

/// SGD with momentum and decoupled weight decay; the formula stands in include/moe.h.
public struct SGD: ElementwiseRule {
  static var name: StaticString { ".sgd" }
  /// As many as AdamW has, the last four of them 0: files of older versions have as many.
  static var numbers: Int { 7 }

  public var learningRate: Double
  private var momentum: Double
  let weightDecay: Double
  /// Without momentum there is none, and none can come later: it would need memory.
  private var hasVelocity: Bool

  public init(learningRate: Double, momentum: Double, weightDecay: Double) {
    hasVelocity = momentum > 0
    self.learningRate = learningRate
    self.momentum = momentum
    self.weightDecay = weightDecay
  }

  init(_ numbers: UnsafePointer<Double>) {
    self.init(learningRate: numbers[0], momentum: numbers[1], weightDecay: numbers[2])
  }

  static func mayBe(_ value: Double, number i: Int) -> Bool { i != 1 || value < 1 }

  mutating func setNumbers(_ numbers: UnsafePointer<Double>) {
    let hasVelocity = hasVelocity
    self = SGD(numbers)
    self.hasVelocity = hasVelocity
  }

  var takesMomentum: Bool { hasVelocity }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    out.update(repeating: 0, count: Self.numbers)
    (out[0], out[1], out[2]) = (learningRate, momentum, weightDecay)
  }

  /// v
  func moments(_ shape: Optimizer.Shape) -> Int { hasVelocity ? 1 : 0 }

  mutating func setMomentum(_ momentum: Double, afterSteps steps: UInt64) { self.momentum = momentum }

  struct Factors {
    let clip, decay, rate: Float
  }

  func factors(_ part: TensorStep) -> Factors {
    let rate = learningRate * part.group.learningRateScale
    return Factors(clip: part.clip, decay: Float(1 - rate * part.group.weightDecay), rate: Float(rate))
  }

  func update(_ piece: ElementwisePiece, _ factors: Factors) {
    if !hasVelocity {
      return piece.kernels.pointee.plain_sgd(
        Int64(piece.count), factors.clip, factors.decay, factors.rate, piece.data, piece.grad)
    }
    var moments = piece.moments
    piece.kernels.pointee.sgd(
      Int64(piece.count), factors.clip, factors.decay, Float(momentum), factors.rate, piece.data, piece.grad, &moments)
  }
}
