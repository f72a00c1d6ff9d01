import CShims

/// SGD with momentum and decoupled weight decay; the formula stands in include/moe.h.
public struct SGD: ElementwiseRule {
  static var name: StaticString { ".sgd" }
  /// As many as AdamW has, those beyond its own 0: so files of older versions have it.
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

  func update(_ piece: ElementwisePiece) {
    let rate = learningRate * piece.group.learningRateScale
    let decay = Float(1 - rate * piece.group.weightDecay)
    if !hasVelocity {
      return piece.kernels.pointee.plain_sgd(
        Int64(piece.count), piece.clip, decay, Float(rate), piece.data, piece.grad)
    }
    var moments = piece.moments
    piece.kernels.pointee.sgd(
      Int64(piece.count), piece.clip, decay, Float(momentum), Float(rate), piece.data, piece.grad, &moments)
  }
}
