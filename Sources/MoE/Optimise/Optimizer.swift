import CShims

/// One tensor as an optimiser sees it.
public struct TrainedTensor {
  public let data: UnsafeMutablePointer<Float>
  public let grad: UnsafeMutablePointer<Float>
  public let count: Int

  public init(data: UnsafeMutablePointer<Float>, grad: UnsafeMutablePointer<Float>, count: Int) {
    self.data = data
    self.grad = grad
    self.count = count
  }
}

/// Moments and step count for a list of tensors. It remembers how long each tensor is, and no pointer to it.
public struct Optimizer {
  public enum Rule {
    case adamw(AdamW)
    case sgd(SGD)

    /// How many moments each parameter has.
    var moments: Int {
      switch self {
      case .adamw: 2
      case .sgd: 1
      }
    }
  }

  let context: ContextPointer
  public let tensorCount: Int
  private let counts: UnsafeMutablePointer<Int>  // [tensorCount]
  private let moments: UnsafeMutablePointer<Float>  // per tensor all first moments, then all second ones
  private var rule: Rule

  /// Elements one item of work updates.
  fileprivate static let stretch = 32_768

  public func count(ofTensor index: Int) -> Int { counts[index] }

  public mutating func setLearningRate(_ learningRate: Double) {
    switch rule {
    case .adamw(var adamw):
      adamw.learningRate = learningRate
      rule = .adamw(adamw)
    case .sgd(var sgd):
      sgd.learningRate = learningRate
      rule = .sgd(sgd)
    }
  }

  /// One step. The tensors are as many and as long as at creation: the boundary has seen to that.
  public mutating func step(_ tensor: (Int) -> TrainedTensor) {
    if case .adamw(var adamw) = rule {
      adamw.beginStep()
      rule = .adamw(adamw)
    }
    var place = moments
    for index in 0..<tensorCount {
      let count = counts[index]
      context.runToTheEnd(
        (count + Self.stretch - 1) / Self.stretch,
        OptimizerStep(kernels: context.kernels, rule: rule, tensor: tensor(index), moments: place))
      place += rule.moments * count
    }
  }

  fileprivate init(
    _ context: ContextPointer, _ rule: Rule, tensorCount: Int, counts: UnsafeMutablePointer<Int>,
    moments: UnsafeMutablePointer<Float>
  ) {
    self.context = context
    self.rule = rule
    self.tensorCount = tensorCount
    self.counts = counts
    self.moments = moments
  }
}

/// Updates one stretch of one tensor per item.
private struct OptimizerStep: Job {
  let kernels: UnsafePointer<moei_kernels>
  let rule: Optimizer.Rule
  let tensor: TrainedTensor
  let moments: UnsafeMutablePointer<Float>  // [rule.moments, count]

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let start = item * Optimizer.stretch
    let n = Int64(min(Optimizer.stretch, tensor.count - start))
    let (data, grad, first) = (tensor.data + start, tensor.grad + start, moments + start)
    switch rule {
    case .adamw(let adamw):
      var factors = adamw.factors
      kernels.pointee.adamw(n, &factors, data, grad, first, first + tensor.count)
    case .sgd(let sgd):
      kernels.pointee.sgd(n, sgd.decay, Float(sgd.momentum), Float(sgd.learningRate), data, grad, first)
    }
  }
}

/// AdamW [Loshchilov and Hutter 2019]; the formula stands in include/moe.h.
public struct AdamW {
  public var learningRate: Double
  let beta1: Double
  let beta2: Double
  let epsilon: Double
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

  mutating func beginStep() {
    beta1Power *= beta1
    beta2Power *= beta2
  }

  var factors: moei_adamw {
    moei_adamw(
      decay: Float(1 - learningRate * weightDecay), beta1: Float(beta1), one_minus_beta1: Float(1 - beta1),
      beta2: Float(beta2), one_minus_beta2: Float(1 - beta2), step_size: Float(learningRate / (1 - beta1Power)),
      root_scale: Float(1 / (1 - beta2Power).squareRoot()), epsilon: Float(epsilon))
  }
}

/// SGD with momentum and decoupled weight decay; the formula stands in include/moe.h.
public struct SGD {
  public var learningRate: Double
  let momentum: Double
  let weightDecay: Double

  public init(learningRate: Double, momentum: Double, weightDecay: Double) {
    self.learningRate = learningRate
    self.momentum = momentum
    self.weightDecay = weightDecay
  }

  var decay: Float { Float(1 - learningRate * weightDecay) }
}

// MARK: life

public typealias OptimizerPointer = UnsafeMutablePointer<Optimizer>

extension UnsafeMutablePointer where Pointee == Optimizer {
  /// `count(i)` is the number of elements of tensor i.
  public static func create(
    _ rule: Optimizer.Rule, tensorCount: Int, count: (Int) -> Int, in context: ContextPointer
  ) throws(Fault) -> OptimizerPointer {
    var total = 0
    for index in 0..<tensorCount {
      let (sum, overflow) = total.addingReportingOverflow(count(index))
      if overflow { throw .outOfMemory(bytes: .max) }
      total = sum
    }
    typealias Parts = (OptimizerPointer, UnsafeMutablePointer<Int>, UnsafeMutablePointer<Float>)
    func layout(_ arena: inout Arena) -> Parts {
      (arena.take(Optimizer.self, 1), arena.take(Int.self, tensorCount), arena.take(Float.self, rule.moments, total))
    }
    var measure = Arena()
    _ = layout(&measure)
    var arena = Arena(try context.pointee.allocator.allocate(bytes: try measure.total()))
    let (optimizer, counts, moments) = layout(&arena)
    for index in 0..<tensorCount { counts[index] = count(index) }
    moments.initialize(repeating: 0, count: rule.moments * total)
    optimizer.initialize(to: Optimizer(context, rule, tensorCount: tensorCount, counts: counts, moments: moments))
    context.retain()
    return optimizer
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
