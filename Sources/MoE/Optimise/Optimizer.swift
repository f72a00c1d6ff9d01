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
/// Of tensors of other types than float32 it also keeps a master (Masters.swift).
/// Moments are float32, or bfloat16 that is rounded up or down by chance (Moments.swift).
public struct Optimizer {
  public enum Rule {
    case adamw(AdamW)
    case sgd(SGD)

    fileprivate var weightDecay: Double {
      switch self {
      case .adamw(let adamw): adamw.weightDecay
      case .sgd(let sgd): sgd.weightDecay
      }
    }

    /// How many moments each parameter has.
    var moments: Int {
      switch self {
      case .adamw: 2
      case .sgd: 1
      }
    }
  }

  public let context: ContextPointer
  public let tensorCount: Int
  private let shapes: UnsafeMutablePointer<Shape>  // [tensorCount]
  private let places: UnsafeMutablePointer<Place>  // [tensorCount]
  let groups: UnsafeMutablePointer<Group>  // [tensorCount]
  /// Per tensor the master, where it has one, then all first moments, then all second ones: words of 4 bytes.
  private var state: UnsafeMutablePointer<Float>?  // [stateWords]
  private let stateWords: Int
  /// Whether the state's memory is the caller's to bind.
  public let hasUnallocatedState: Bool
  let momentType: ElementType
  private var rule: Rule
  /// What moments are rounded by.
  private var seed: UInt64
  private var steps: UInt64 = 0  // taken so far

  /// Elements one item of work updates.
  fileprivate static let stretch = 32_768

  public typealias Shape = (count: Int, type: ElementType)

  /// What a tensor has of its own. Training states hold it as two numbers.
  public struct Group {
    let learningRateScale: Double
    let weightDecay: Double

    public init(learningRateScale: Double, weightDecay: Double) {
      self.learningRateScale = learningRateScale
      self.weightDecay = weightDecay
    }
  }

  /// The group of tensor `index` from the next step on.
  public func setGroup(ofTensor index: Int, _ group: Group) { groups[index] = group }

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

  /// AdamW's beta1, or SGD's momentum, of the steps to come.
  public mutating func setMomentum(_ momentum: Double) {
    switch rule {
    case .adamw(var adamw):
      adamw.setBeta1(momentum, afterSteps: steps)
      rule = .adamw(adamw)
    case .sgd(var sgd):
      sgd.momentum = momentum
      rule = .sgd(sgd)
    }
  }

  // MARK: what a training state holds

  /// How many moments each element has.
  var momentCount: Int { rule.moments }

  /// Where a tensor's state is: the master [count], where it has one, and the moments [momentCount, count] of `momentType`.
  func state(ofTensor index: Int) -> (master: UnsafeMutablePointer<Float>?, moments: UnsafeMutableRawPointer) {
    parts(ofTensor: index, at: places[index])
  }

  /// Where a tensor's part of the state begins, and of the random words.
  fileprivate struct Place {
    var word = 0
    var firstWord = 0
  }

  private func parts(
    ofTensor index: Int, at place: Place
  ) -> (master: UnsafeMutablePointer<Float>?, moments: UnsafeMutableRawPointer) {
    let (count, type) = shapes[index]
    let start = state! + place.word
    return type.hasMaster ? (start, UnsafeMutableRawPointer(start + count)) : (nil, UnsafeMutableRawPointer(start))
  }

  /// Words of 4 bytes that a tensor's state takes.
  fileprivate static func words(_ shape: Shape, _ rule: Rule, _ momentType: ElementType) -> Int {
    (shape.type.hasMaster ? shape.count : 0) + (momentType.bytes(rule.moments * shape.count) + 3) / 4
  }

  public var stateBytes: Int { stateWords * MemoryLayout<Float>.size }
  public var stateMemory: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(state) }

  /// Values as they are: zeros are the state of a new optimiser.
  public mutating func bindState(_ memory: UnsafeMutablePointer<Float>) { state = memory }

  public func requireState() throws(Fault) {
    if state == nil {
      throw .badState("the optimizer's state has no memory (unallocated_state): bind it with moe_optimizer_bind_state")
    }
  }

  /// Everything else: the rule's numbers, and how far its powers are; seed and step of what rounds the moments.
  static var numbers: Int { 7 }
  static var chances: Int { 2 }
  /// What states of this rule are called in training states.
  var ruleName: StaticString {
    switch rule {
    case .adamw: ".adamw"
    case .sgd: ".sgd"
    }
  }

  func getChances(_ out: UnsafeMutablePointer<UInt64>) { (out[0], out[1]) = (seed, steps) }
  mutating func setChances(_ chances: UnsafePointer<UInt64>) { (seed, steps) = (chances[0], chances[1]) }

  func getNumbers(_ out: UnsafeMutablePointer<Double>) {
    switch rule {
    case .adamw(let adamw): adamw.getNumbers(out)
    case .sgd(let sgd): sgd.getNumbers(out)
    }
  }

  mutating func setNumbers(_ numbers: UnsafePointer<Double>) {
    switch rule {
    case .adamw: rule = .adamw(AdamW(numbers))
    case .sgd: rule = .sgd(SGD(numbers))
    }
  }

  // MARK: steps

  /// One step with gradients scaled by `clipFactor` on the way, and left as they are; returns their norm, which `maxNorm` is
  /// told first.
  /// Throws `notFinite(i)`, with nothing changed, when the gradient of tensor i is not finite.
  public mutating func step(
    maxNorm: (Double) throws(Fault) -> Double, _ tensor: (Int) -> TrainedTensor, notFinite: (Int) -> Fault
  ) throws(Fault) -> Double {
    let norm = try gradNorm(
      tensorCount, { (grad: tensor($0).grad, count: tensor($0).count) }, in: context, notFinite: notFinite)
    step(clip: clipFactor(norm: norm, maxNorm: try maxNorm(norm)), tensor)
    return norm
  }

  /// One step with gradients times `clip`. The tensors are as many and as long as at creation: the boundary has seen to
  /// that.
  public mutating func step(clip: Float = 1, _ tensor: (Int) -> TrainedTensor) {
    beginStep()
    let begun = context.profile.begin()
    defer { if begun != 0 { context.profile.end(begun, .optimizer, backward: false, Work()) } }
    for index in 0..<tensorCount {
      let tensor = tensor(index)
      step(index, 0..<tensor.count, data: tensor.data, grad: tensor.grad, clip: clip, clears: false)
    }
  }

  /// Once before the tensors of a step.
  mutating func beginStep() {
    steps += 1
    guard case .adamw(var adamw) = rule else { return }
    adamw.beginStep()
    rule = .adamw(adamw)
  }

  /// A part of a step: some elements of one tensor. `data` is the whole tensor; `grad` begins with the first of the
  /// elements, and is 0 afterwards if it `clears`.
  func step(
    _ index: Int, _ elements: Range<Int>, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>,
    clip: Float, clears: Bool
  ) {
    let (count, place) = (shapes[index].count, places[index])
    let (master, moments) = parts(ofTensor: index, at: place)
    let random = Random(kernels: context.kernels, seed: seed, stream: Draws.Stream.moments.rawValue, step: steps)
    context.runToTheEnd(
      (elements.count + Self.stretch - 1) / Self.stretch,
      OptimizerStep(
        kernels: context.kernels, rule: rule, group: groups[index], clip: clip, elements: elements, count: count,
        data: data, type: shapes[index].type, grad: grad, master: master,
        moments: Moments(
          start: moments, type: momentType, rows: rule.moments, count: count, random: random,
          firstWord: place.firstWord),
        clears: clears))
  }

  fileprivate init(
    _ context: ContextPointer, _ rule: Rule, momentType: ElementType, seed: UInt64, tensorCount: Int,
    shapes: UnsafeMutablePointer<Shape>, groups: UnsafeMutablePointer<Group>, places: UnsafeMutablePointer<Place>,
    state: UnsafeMutablePointer<Float>?, stateWords: Int
  ) {
    self.context = context
    self.rule = rule
    self.momentType = momentType
    self.seed = seed
    self.tensorCount = tensorCount
    self.shapes = shapes
    self.groups = groups
    self.places = places
    self.state = state
    self.stateWords = stateWords
    hasUnallocatedState = state == nil
  }
}

/// Updates one stretch of some elements of a tensor per item.
private struct OptimizerStep: Job {
  let kernels: UnsafePointer<moei_kernels>
  let rule: Optimizer.Rule
  let group: Optimizer.Group
  let clip: Float
  let elements: Range<Int>
  let count: Int  // of the whole tensor
  let data: UnsafeMutableRawPointer  // [count] of `type`
  let type: ElementType
  let grad: UnsafeMutablePointer<Float>  // [elements]
  let master: UnsafeMutablePointer<Float>?  // [count]; nil where the data are float32
  let moments: Moments
  let clears: Bool  // the gradient is 0 afterwards

  /// Elements that stay in the first-level cache between a master's three passes.
  private static var run: Int { 1024 }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let start = elements.lowerBound + item * Optimizer.stretch
    let end = min(start + Optimizer.stretch, elements.upperBound)
    guard let master else {
      return step(data.assumingMemoryBound(to: Float.self) + start, start, end - start)
    }
    for first in stride(from: start, to: end, by: Self.run) {
      let count = min(Self.run, end - first)
      type.follow(data, first, count, master + first, kernels)
      step(master + first, first, count)
      type.fromFloats(master + first, count, data, first, kernels)
    }
  }

  /// `data`: the values from `start` on.
  private func step(_ data: UnsafeMutablePointer<Float>, _ start: Int, _ length: Int) {
    let grad = grad + start - elements.lowerBound
    moments.update(start, length) { offset, count, first, second in
      let n = Int64(count)
      let (data, grad) = (data + offset, grad + offset)
      switch rule {
      case .adamw(let adamw):
        var factors = adamw.factors(clip: clip, group)
        kernels.pointee.adamw(n, &factors, data, grad, first, second)
      case .sgd(let sgd):
        let rate = sgd.learningRate * group.learningRateScale
        kernels.pointee.sgd(
          n, clip, Float(1 - rate * group.weightDecay), Float(sgd.momentum), Float(rate), data, grad, first)
      }
    }
    if clears { grad.update(repeating: 0, count: length) }
  }
}

/// AdamW [Loshchilov and Hutter 2019]; the formula stands in include/moe.h.
public struct AdamW {
  public var learningRate: Double
  private(set) var beta1: Double
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

  /// The power is then that of the new beta1, by squaring.
  fileprivate mutating func setBeta1(_ beta1: Double, afterSteps steps: UInt64) {
    if beta1 == self.beta1 { return }
    self.beta1 = beta1
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

  func factors(clip: Float, _ group: Optimizer.Group) -> moei_adamw {
    let rate = learningRate * group.learningRateScale
    return moei_adamw(
      clip: clip, decay: Float(1 - rate * group.weightDecay), beta1: Float(beta1), one_minus_beta1: Float(1 - beta1),
      beta2: Float(beta2), one_minus_beta2: Float(1 - beta2), step_size: Float(rate / (1 - beta1Power)),
      root_scale: Float(1 / (1 - beta2Power).squareRoot()), epsilon: Float(epsilon))
  }
}

/// SGD with momentum and decoupled weight decay; the formula stands in include/moe.h.
public struct SGD {
  public var learningRate: Double
  var momentum: Double
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
}

// MARK: life

public typealias OptimizerPointer = UnsafeMutablePointer<Optimizer>

extension UnsafeMutablePointer where Pointee == Optimizer {
  /// `allocates`: memory for the state; otherwise the caller will bind it.
  public static func create(
    _ rule: Optimizer.Rule, momentType: ElementType, seed: UInt64, allocates: Bool, tensorCount: Int,
    in context: ContextPointer,
    shape: (Int) -> Optimizer.Shape
  ) throws(Fault) -> OptimizerPointer {
    var total = 0  // words of state
    for index in 0..<tensorCount {
      let shape = shape(index)
      // 4 bytes for each of three numbers are the most that an element has.
      if shape.count > Int.max / 16 { throw .outOfMemory(bytes: .max) }
      let (sum, overflow) = total.addingReportingOverflow(Optimizer.words(shape, rule, momentType))
      if overflow || sum > Int.max / MemoryLayout<Float>.size { throw .outOfMemory(bytes: .max) }
      total = sum
    }
    typealias Parts = (
      OptimizerPointer, UnsafeMutablePointer<Optimizer.Shape>, UnsafeMutablePointer<Optimizer.Group>,
      UnsafeMutablePointer<Optimizer.Place>, UnsafeMutablePointer<Float>
    )
    func layout(_ arena: inout Arena) -> Parts {
      (
        arena.take(Optimizer.self, 1), arena.take(Optimizer.Shape.self, tensorCount),
        arena.take(Optimizer.Group.self, tensorCount), arena.take(Optimizer.Place.self, tensorCount),
        arena.take(Float.self, allocates ? total : 0)
      )
    }
    var measure = Arena()
    _ = layout(&measure)
    var arena = Arena(try context.pointee.allocator.allocate(bytes: try measure.total()))
    let (optimizer, shapes, groups, places, state) = layout(&arena)
    var place = Optimizer.Place()
    for index in 0..<tensorCount {
      shapes[index] = shape(index)
      places[index] = place
      place.word += Optimizer.words(shapes[index], rule, momentType)
      place.firstWord += Moments.words(shapes[index].count)
    }
    groups.initialize(
      repeating: Optimizer.Group(learningRateScale: 1, weightDecay: rule.weightDecay), count: tensorCount)
    // A master of 0 is not what the tensor holds, so the first step takes the tensor's values over.
    if allocates { state.initialize(repeating: 0, count: total) }
    optimizer.initialize(
      to: Optimizer(
        context, rule, momentType: momentType, seed: seed, tensorCount: tensorCount, shapes: shapes, groups: groups,
        places: places, state: allocates ? state : nil, stateWords: total))
    context.retain()
    return optimizer
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
