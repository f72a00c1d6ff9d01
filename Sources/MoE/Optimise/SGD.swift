import CShims

/// SGD with momentum and decoupled weight decay; the formula stands in include/moe.h.
public struct SGD: ElementwiseRule {
  static var name: StaticString { ".sgd" }
  /// As many as AdamW has, those beyond its own 0: so files of older versions have it.
  static var numbers: Int { 7 }

  public var learningRate: Double
  private var momentum: Double
  let weightDecay: Double

  public init(learningRate: Double, momentum: Double, weightDecay: Double) {
    self.learningRate = learningRate
    self.momentum = momentum
    self.weightDecay = weightDecay
  }

  init(_ numbers: UnsafePointer<Double>) {
    self.init(learningRate: numbers[0], momentum: numbers[1], weightDecay: numbers[2])
  }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    out.update(repeating: 0, count: Self.numbers)
    (out[0], out[1], out[2]) = (learningRate, momentum, weightDecay)
  }

  /// v
  static func moments(_ shape: Optimizer.Shape) -> Int { 1 }

  mutating func setMomentum(_ momentum: Double, afterSteps steps: UInt64) { self.momentum = momentum }

  func update(_ piece: ElementwisePiece) {
    let rate = learningRate * piece.group.learningRateScale
    var moments = piece.moments
    piece.kernels.pointee.sgd(
      Int64(piece.count), piece.clip, Float(1 - rate * piece.group.weightDecay), Float(momentum), Float(rate),
      piece.data, piece.grad, &moments)
  }
}
