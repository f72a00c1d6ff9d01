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
/// Of tensors of other types than float32 it also keeps a master (Masters.swift), unless bfloat16 is rounded by chance.
/// Moments are float32, or bfloat16 that is rounded up or down by chance (Moments.swift).
public struct Optimizer {
  public let context: ContextPointer
  public let tensorCount: Int
  private let shapes: UnsafeMutablePointer<Shape>  // [tensorCount]
  private let places: UnsafeMutablePointer<Int>  // [tensorCount] where each one's part of the state begins
  let groups: UnsafeMutablePointer<Group>  // [tensorCount]
  /// Per tensor the master, where it has one, then all first moments, then all second ones: words of 4 bytes.
  private var state: UnsafeMutablePointer<Float>?  // [stateWords]
  private let stateWords: Int
  private let scratch: Arena  // for the tensor that is stepped
  /// Whether the state's memory is the caller's to bind.
  public let hasUnallocatedState: Bool
  let momentType: ElementType
  private var rule: Rule
  /// What moments are rounded by.
  private var seed: UInt64
  private var steps: UInt64 = 0  // taken so far

  /// What is remembered of a tensor.
  public struct Shape {
    public let count: Int
    public let type: ElementType
    /// What it consists of, where a rule is to step it matrix by matrix.
    public let matrix: Matrix?
    /// Whether its values are kept in float32 as well.
    let hasMaster: Bool

    /// `byChance`: whether bfloat16 is stepped where it is, and rounded by chance.
    public init(count: Int, type: ElementType, matrix: Matrix? = nil, byChance: Bool) {
      hasMaster = type.hasMaster && !(byChance && type == .bf16)
      self.count = count
      self.type = type
      self.matrix = matrix
    }
  }

  public struct Matrix {
    public let rows: Int
    public let columns: Int
    public var count: Int { rows * columns }

    /// Of a tensor's last two dimensions.
    public init(rows: Int, columns: Int) {
      self.rows = rows
      self.columns = columns
    }
  }

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
  public func matrix(ofTensor index: Int) -> Matrix? { shapes[index].matrix }

  public mutating func setLearningRate(_ learningRate: Double) {
    rule.apply(SetLearningRate(learningRate: learningRate))
  }

  /// AdamW's beta1, or the momentum of another rule, of the steps to come.
  public mutating func setMomentum(_ momentum: Double) { rule.apply(SetMomentum(momentum: momentum, steps: steps)) }

  /// Whether it has the moment that momentum is of.
  public var takesMomentum: Bool { ruleFacts.takesMomentum }

  // MARK: what a training state holds

  /// How many moments each of its elements has.
  func momentCount(ofTensor index: Int) -> Int { rule.read(CountMoments(shape: shapes[index])) }

  /// Where a tensor's state is: the master [count], where it has one, and the moments [momentCount, count] of `momentType`.
  func state(ofTensor index: Int) -> (master: UnsafeMutablePointer<Float>?, moments: UnsafeMutableRawPointer) {
    let shape = shapes[index]
    let start = state! + places[index]
    return shape.hasMaster
      ? (start, UnsafeMutableRawPointer(start + shape.count)) : (nil, UnsafeMutableRawPointer(start))
  }

  /// Words of 4 bytes that a tensor's state takes.
  fileprivate static func words(_ shape: Shape, _ rule: Rule, _ momentType: ElementType) -> Int {
    (shape.hasMaster ? shape.count : 0)
      + (momentType.bytes(rule.read(CountMoments(shape: shape)) * shape.count) + 3) / 4
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

  /// Everything else: the rule's numbers, seed and step of what rounds the moments.
  var ruleFacts: RuleFacts { rule.read(RuleFacts.Read()) }
  static var chances: Int { 2 }

  func getChances(_ out: UnsafeMutablePointer<UInt64>) { (out[0], out[1]) = (seed, steps) }
  mutating func setChances(_ chances: UnsafePointer<UInt64>) { (seed, steps) = (chances[0], chances[1]) }

  func mayBe(_ value: Double, number i: Int) -> Bool { rule.read(CheckRuleNumber(value: value, number: i)) }
  func getNumbers(_ out: UnsafeMutablePointer<Double>) { rule.read(GetRuleNumbers(out: out)) }
  mutating func setNumbers(_ numbers: UnsafePointer<Double>) { rule.apply(SetRuleNumbers(numbers: numbers)) }

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
    rule.apply(BeginStep())
  }

  /// A part of a step: some elements of one tensor. `data` is the whole tensor; `grad` begins with the first of the
  /// elements, and is 0 afterwards if it `clears`.
  func step(
    _ index: Int, _ elements: Range<Int>, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>,
    clip: Float, clears: Bool
  ) {
    rule.read(StepTensor(part: part(index, elements, data: data, grad: grad, clip: clip, clears: clears)))
  }

  /// Whether parts of a tensor can be stepped as soon as their gradient is complete, each by `step(_:of:)`.
  func stepsElements(ofTensor index: Int) -> Bool { rule.read(StepsElements(shape: shapes[index])) }

  /// Steps a block of a tensor, on the thread that calls; other threads may step others.
  func step(_ block: BlockGradient, of part: TensorStep) { rule.read(StepBlock(block: block, part: part)) }

  /// What stepping some elements of a tensor takes.
  func part(
    _ index: Int, _ elements: Range<Int>, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>,
    clip: Float, clears: Bool
  ) -> TensorStep {
    let shape = shapes[index]
    let (master, moments) = state(ofTensor: index)
    func random(_ stream: Draws.Stream) -> Random {
      Random(kernels: context.kernels, seed: seed, stream: stream.rawValue, step: steps)
    }
    return TensorStep(
      context: context, shape: shape, group: groups[index], clip: clip, elements: elements, data: data, grad: grad,
      clears: clears, master: master,
      moments: Moments(
        start: moments, type: momentType, rows: momentCount(ofTensor: index), count: shape.count,
        random: random(.moments),
        tensor: index),
      chance: random(.weights), scratch: scratch)
  }

  fileprivate init(
    _ context: ContextPointer, _ rule: Rule, momentType: ElementType, seed: UInt64, tensorCount: Int,
    _ parts: OptimizerParts, state: UnsafeMutablePointer<Float>?, stateWords: Int
  ) {
    self.context = context
    self.rule = rule
    self.momentType = momentType
    self.seed = seed
    self.tensorCount = tensorCount
    (shapes, groups, places, scratch) = (parts.shapes, parts.groups, parts.places, parts.scratch)
    self.state = state
    self.stateWords = stateWords
    hasUnallocatedState = state == nil
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
    func layout(_ arena: inout Arena) -> OptimizerParts {
      OptimizerParts(&arena, tensorCount, stateWords: allocates ? total : 0) { (arena, index) in
        rule.read(TakeRuleScratch(arena: arena, shape: shape(index), context: context))
      }
    }
    var measure = Arena()
    _ = layout(&measure)
    var arena = Arena(try context.pointee.allocator.allocate(bytes: try measure.total()))
    let parts = layout(&arena)
    var place = 0
    for index in 0..<tensorCount {
      parts.shapes[index] = shape(index)
      parts.places[index] = place
      place += Optimizer.words(parts.shapes[index], rule, momentType)
    }
    parts.groups.initialize(
      repeating: Optimizer.Group(learningRateScale: 1, weightDecay: rule.read(RuleFacts.Read()).weightDecay),
      count: tensorCount)
    // A master of 0 is not what the tensor holds, so the first step takes the tensor's values over.
    if allocates { parts.state.initialize(repeating: 0, count: total) }
    parts.optimizer.initialize(
      to: Optimizer(
        context, rule, momentType: momentType, seed: seed, tensorCount: tensorCount, parts,
        state: allocates ? parts.state : nil, stateWords: total))
    context.retain()
    return parts.optimizer
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

/// One block of memory: the optimiser, then what it points at.
private struct OptimizerParts {
  let optimizer: OptimizerPointer
  let shapes: UnsafeMutablePointer<Optimizer.Shape>
  let groups: UnsafeMutablePointer<Optimizer.Group>
  let places: UnsafeMutablePointer<Int>
  let state: UnsafeMutablePointer<Float>
  let scratch: Arena

  /// `scratch`: where an arena is after what stepping tensor `index` wants. Tensors are stepped one after another.
  init(_ arena: inout Arena, _ count: Int, stateWords: Int, scratch: (Arena, _ index: Int) -> Arena) {
    optimizer = arena.take(Optimizer.self, 1)
    shapes = arena.take(Optimizer.Shape.self, count)
    groups = arena.take(Optimizer.Group.self, count)
    places = arena.take(Int.self, count)
    state = arena.take(Float.self, stateWords)
    self.scratch = arena
    for index in 0..<count { arena.cover(scratch(self.scratch, index)) }
  }
}
