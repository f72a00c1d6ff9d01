import CShims

/// AdamW [Loshchilov and Hutter 2019]; the formula stands in include/moe.h.
public struct AdamW: ElementwiseRule {
  static var name: StaticString { ".adamw" }
  static var numbers: Int { 7 }

  public var learningRate: Double
  private var beta1: Double
  private let beta2: Double
  private let epsilon: Double
  let weightDecay: Double
  // beta^t as running products: the same bits everywhere, which a libm's pow is not.
  private var beta1Power = 1.0
  private var beta2Power = 1.0

  public init(learningRate: Double, beta1: Double, beta2: Double, epsilon: Double, weightDecay: Double) {
    self.learningRate = learningRate
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
    self.weightDecay = weightDecay
  }

  init(_ numbers: UnsafePointer<Double>) {
    self.init(
      learningRate: numbers[0], beta1: numbers[1], beta2: numbers[2], epsilon: numbers[3], weightDecay: numbers[4])
    beta1Power = numbers[5]
    beta2Power = numbers[6]
  }

  static func mayBe(_ value: Double, number i: Int) -> Bool {
    switch i {
    case 1, 2: value < 1
    case 3: value > 0
    case 5, 6: value <= 1
    default: true
    }
  }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    (out[0], out[1], out[2], out[3], out[4]) = (learningRate, beta1, beta2, epsilon, weightDecay)
    (out[5], out[6]) = (beta1Power, beta2Power)
  }

  /// m and v
  func moments(_ shape: Optimizer.Shape) -> Int { 2 }

  /// Sets beta1; its power becomes the new beta1 to the power of the steps so far, by squaring.
  mutating func setMomentum(_ momentum: Double, afterSteps steps: UInt64) {
    if momentum == beta1 { return }
    beta1 = momentum
    beta1Power = 1
    var (square, left) = (beta1, steps)
    while left > 0 {
      if left & 1 == 1 { beta1Power *= square }
      square *= square
      left >>= 1
    }
  }

  mutating func beginStep() {
    beta1Power *= beta1
    beta2Power *= beta2
  }

  func factors(_ part: TensorStep) -> moei_adamw {
    let rate = learningRate * part.group.learningRateScale
    return moei_adamw(
      clip: part.clip, decay: Float(1 - rate * part.group.weightDecay), beta1: Float(beta1),
      one_minus_beta1: Float(1 - beta1), beta2: Float(beta2), one_minus_beta2: Float(1 - beta2),
      step_size: Float(rate / (1 - beta1Power)), root_scale: Float(1 / (1 - beta2Power).squareRoot()),
      epsilon: Float(epsilon))
  }

  func update(_ piece: ElementwisePiece, _ factors: moei_adamw) {
    var (moments, factors) = (piece.moments, factors)
    piece.kernels.pointee.adamw(Int64(piece.count), &factors, piece.data, piece.grad, &moments)
  }
}
