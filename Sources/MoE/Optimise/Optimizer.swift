import CShims

/// One tensor as an optimiser sees it.
public struct TrainedTensor {
  public let data: UnsafeMutableRawPointer
  public let grad: UnsafeMutablePointer<Float>
  public let count: Int

  public init(data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>, count: Int) {
    self.data = data
    self.grad = grad
    self.count = count
  }
}

/// Moments and step count for a list of tensors. It remembers how long each tensor is, and no pointer to it.
/// For bfloat16 tensors it also keeps their values in float32: steps smaller than bfloat16 resolves then add up.
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
  private let shapes: UnsafeMutablePointer<Shape>  // [tensorCount]
  /// Per tensor the master of bfloat16, then all first moments, then all second ones.
  private var state: UnsafeMutablePointer<Float>?
  private let stateCount: Int
  /// Whether the state's memory is the caller's to bind.
  public let hasUnallocatedState: Bool
  private var rule: Rule

  /// Elements one item of work updates.
  fileprivate static let stretch = 32_768

  public typealias Shape = (count: Int, type: ElementType)

  public func count(ofTensor index: Int) -> Int { shapes[index].count }
  public func type(ofTensor index: Int) -> ElementType { shapes[index].type }

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

  // MARK: what a training state holds

  /// Floats of state for each element of a tensor: the master of bfloat16, then the moments.
  func stateRows(ofTensor index: Int) -> Int { rule.moments + (shapes[index].type == .bf16 ? 1 : 0) }

  /// [stateRows, count]
  func state(ofTensor index: Int) -> UnsafeMutablePointer<Float> {
    var place = state!
    for earlier in 0..<index { place += stateRows(ofTensor: earlier) * shapes[earlier].count }
    return place
  }

  public var stateBytes: Int { stateCount * MemoryLayout<Float>.size }

  /// Values as they are: zeros are the state of a new optimiser.
  public mutating func bindState(_ memory: UnsafeMutablePointer<Float>) { state = memory }

  public func requireState() throws(Fault) {
    if state == nil {
      throw .badState("the optimizer's state has no memory (unallocated_state): bind it with moe_optimizer_bind_state")
    }
  }

  /// Everything else: the rule's numbers, and how far its powers are.
  static var numbers: Int { 7 }
  var isAdamW: Bool { rule.moments == 2 }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    switch rule {
    case .adamw(let adamw): adamw.getNumbers(out)
    case .sgd(let sgd): sgd.getNumbers(out)
    }
  }

  mutating func setNumbers(_ numbers: UnsafePointer<Double>) {
    rule = isAdamW ? .adamw(AdamW(numbers)) : .sgd(SGD(numbers))
  }

  // MARK: steps

  /// One step with gradients scaled by `clipFactor` on the way, and left as they are; returns their norm.
  /// Throws `notFinite(i)`, with nothing changed, when the gradient of tensor i is not finite.
  public mutating func step(
    maxNorm: Double, _ tensor: (Int) -> TrainedTensor, notFinite: (Int) -> Fault
  ) throws(Fault) -> Double {
    let norm = try gradNorm(
      tensorCount, { (grad: tensor($0).grad, count: tensor($0).count) }, in: context, notFinite: notFinite)
    step(clip: clipFactor(norm: norm, maxNorm: maxNorm), tensor)
    return norm
  }

  /// One step with gradients times `clip`. The tensors are as many and as long as at creation: the boundary has seen to
  /// that.
  public mutating func step(clip: Float = 1, _ tensor: (Int) -> TrainedTensor) {
    if case .adamw(var adamw) = rule {
      adamw.beginStep()
      rule = .adamw(adamw)
    }
    var place = state!
    for index in 0..<tensorCount {
      let (count, type) = shapes[index]
      let master = type == .bf16 ? place : nil
      if master != nil { place += count }
      context.runToTheEnd(
        (count + Self.stretch - 1) / Self.stretch,
        OptimizerStep(
          kernels: context.kernels, rule: rule, clip: clip, tensor: tensor(index), master: master, moments: place))
      place += rule.moments * count
    }
  }

  fileprivate init(
    _ context: ContextPointer, _ rule: Rule, tensorCount: Int, shapes: UnsafeMutablePointer<Shape>,
    state: UnsafeMutablePointer<Float>?, stateCount: Int
  ) {
    self.context = context
    self.rule = rule
    self.tensorCount = tensorCount
    self.shapes = shapes
    self.state = state
    self.stateCount = stateCount
    hasUnallocatedState = state == nil
  }
}

/// Updates one stretch of one tensor per item.
private struct OptimizerStep: Job {
  let kernels: UnsafePointer<moei_kernels>
  let rule: Optimizer.Rule
  let clip: Float
  let tensor: TrainedTensor
  let master: UnsafeMutablePointer<Float>?  // [count], of a bfloat16 tensor
  let moments: UnsafeMutablePointer<Float>  // [rule.moments, count]

  /// Elements that stay in the first-level cache between a master's three passes.
  private static var run: Int { 1024 }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let start = item * Optimizer.stretch
    let end = min(start + Optimizer.stretch, tensor.count)
    guard let master else {
      return step(tensor.data.assumingMemoryBound(to: Float.self) + start, start, end - start)
    }
    let data = tensor.data.assumingMemoryBound(to: UInt16.self)
    for first in stride(from: start, to: end, by: Self.run) {
      let count = min(Self.run, end - first)
      kernels.pointee.follow_bf16(Int64(count), data + first, master + first)
      step(master + first, first, count)
      kernels.pointee.to_bf16(Int64(count), master + first, data + first)
    }
  }

  /// `data`: the values from `start` on.
  private func step(_ data: UnsafeMutablePointer<Float>, _ start: Int, _ count: Int) {
    let n = Int64(count)
    let (grad, first) = (tensor.grad + start, moments + start)
    switch rule {
    case .adamw(let adamw):
      var factors = adamw.factors(clip: clip)
      kernels.pointee.adamw(n, &factors, data, grad, first, first + tensor.count)
    case .sgd(let sgd):
      kernels.pointee.sgd(n, clip, sgd.decay, Float(sgd.momentum), Float(sgd.learningRate), data, grad, first)
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

  /// As `getNumbers` gave them.
  fileprivate init(_ numbers: UnsafePointer<Double>) {
    self.init(
      learningRate: numbers[0], beta1: numbers[1], beta2: numbers[2], epsilon: numbers[3], weightDecay: numbers[4])
    beta1Power = numbers[5]
    beta2Power = numbers[6]
  }

  fileprivate func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    (out[0], out[1], out[2], out[3], out[4]) = (learningRate, beta1, beta2, epsilon, weightDecay)
    (out[5], out[6]) = (beta1Power, beta2Power)
  }

  mutating func beginStep() {
    beta1Power *= beta1
    beta2Power *= beta2
  }

  func factors(clip: Float) -> moei_adamw {
    moei_adamw(
      clip: clip, decay: Float(1 - learningRate * weightDecay), beta1: Float(beta1), one_minus_beta1: Float(1 - beta1),
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

  /// As `getNumbers` gave them.
  fileprivate init(_ numbers: UnsafePointer<Double>) {
    self.init(learningRate: numbers[0], momentum: numbers[1], weightDecay: numbers[2])
  }

  fileprivate func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    out.update(repeating: 0, count: Optimizer.numbers)
    (out[0], out[1], out[2]) = (learningRate, momentum, weightDecay)
  }

  var decay: Float { Float(1 - learningRate * weightDecay) }
}

// MARK: life

public typealias OptimizerPointer = UnsafeMutablePointer<Optimizer>

extension UnsafeMutablePointer where Pointee == Optimizer {
  /// `allocates`: memory for the state; otherwise the caller will bind it.
  public static func create(
    _ rule: Optimizer.Rule, allocates: Bool, tensorCount: Int, in context: ContextPointer,
    shape: (Int) -> Optimizer.Shape
  ) throws(Fault) -> OptimizerPointer {
    var total = 0  // floats of state
    for index in 0..<tensorCount {
      let (count, type) = shape(index)
      let (floats, tooMany) = count.multipliedReportingOverflow(by: rule.moments + (type == .bf16 ? 1 : 0))
      let (sum, overflow) = total.addingReportingOverflow(floats)
      if tooMany || overflow || sum > Int.max / MemoryLayout<Float>.size { throw .outOfMemory(bytes: .max) }
      total = sum
    }
    typealias Parts = (OptimizerPointer, UnsafeMutablePointer<Optimizer.Shape>, UnsafeMutablePointer<Float>)
    func layout(_ arena: inout Arena) -> Parts {
      (
        arena.take(Optimizer.self, 1), arena.take(Optimizer.Shape.self, tensorCount),
        arena.take(Float.self, allocates ? total : 0)
      )
    }
    var measure = Arena()
    _ = layout(&measure)
    var arena = Arena(try context.pointee.allocator.allocate(bytes: try measure.total()))
    let (optimizer, shapes, state) = layout(&arena)
    for index in 0..<tensorCount { shapes[index] = shape(index) }
    // A master of 0 is not what the tensor holds, so the first step takes the tensor's values over.
    if allocates { state.initialize(repeating: 0, count: total) }
    optimizer.initialize(
      to: Optimizer(
        context, rule, tensorCount: tensorCount, shapes: shapes, state: allocates ? state : nil, stateCount: total))
    context.retain()
    return optimizer
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
