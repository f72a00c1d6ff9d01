/// How an optimiser changes a tensor: the numbers of its config, and what they have come to. Each rule is one file.
protocol UpdateRule {
  /// What training states call its numbers.
  static var name: StaticString { get }
  /// How many there are in training states: the learning rate first, then momentum.
  static var numbers: Int { get }
  /// Whether number i of a training state may be so: as in a configuration, and of powers as steps leave them. All are finite and at
  /// least 0.
  static func mayBe(_ value: Double, number i: Int) -> Bool
  /// How many moments an element of such a tensor has.
  func moments(_ shape: Optimizer.Shape) -> Int

  var learningRate: Double { get set }
  var weightDecay: Double { get }

  init(_ numbers: UnsafePointer<Double>)
  func getNumbers(_ out: UnsafeMutablePointer<Double>)
  mutating func setNumbers(_ numbers: UnsafePointer<Double>)
  /// Whether it has the moment that momentum is of.
  var takesMomentum: Bool { get }
  mutating func setMomentum(_ momentum: Double, afterSteps steps: UInt64)
  /// Once before the tensors of a step.
  mutating func beginStep()
  /// Takes what stepping such a tensor wants beside its state.
  func takeScratch(_ arena: inout Arena, _ shape: Optimizer.Shape, in context: ContextPointer)
  func step(_ part: TensorStep)
  /// Whether each element of such a tensor is stepped by itself: then its parts need not wait for the rest of the gradient.
  func stepsElements(_ shape: Optimizer.Shape) -> Bool
  /// Steps a block of such a tensor, on the thread that calls.
  func step(_ block: BlockGradient, of part: TensorStep)
}

extension UpdateRule {
  mutating func beginStep() {}
  mutating func setNumbers(_ numbers: UnsafePointer<Double>) { self = Self(numbers) }
  var takesMomentum: Bool { true }
  func takeScratch(_ arena: inout Arena, _ shape: Optimizer.Shape, in context: ContextPointer) {}
}

extension Optimizer {
  /// All the rules there are. Nothing else lists them.
  public enum Rule {
    case adamw(AdamW)
    case sgd(SGD)
    case muon(Muon)

    mutating func apply<W: RuleWork>(_ work: W) -> W.Result {
      switch self {
      case .adamw(var rule):
        defer { self = .adamw(rule) }
        return work.run(&rule)
      case .sgd(var rule):
        defer { self = .sgd(rule) }
        return work.run(&rule)
      case .muon(var rule):
        defer { self = .muon(rule) }
        return work.run(&rule)
      }
    }

    /// Has work done that changes nothing in the rule.
    func read<W: RuleWork>(_ work: W) -> W.Result {
      var copy = self
      return copy.apply(work)
    }
  }

  /// The most numbers that a rule has.
  static var mostNumbers: Int { 8 }
}

/// What is done with a rule, whichever it is.
protocol RuleWork {
  associatedtype Result
  func run<R: UpdateRule>(_ rule: inout R) -> Result
}

struct RuleFacts {
  let name: StaticString
  let numbers: Int
  let weightDecay: Double
  let takesMomentum: Bool

  struct Read: RuleWork {
    func run<R: UpdateRule>(_ rule: inout R) -> RuleFacts {
      RuleFacts(name: R.name, numbers: R.numbers, weightDecay: rule.weightDecay, takesMomentum: rule.takesMomentum)
    }
  }
}

struct CheckRuleNumber: RuleWork {
  let value: Double
  let number: Int
  func run<R: UpdateRule>(_ rule: inout R) -> Bool { value >= 0 && value.isFinite && R.mayBe(value, number: number) }
}

struct CountMoments: RuleWork {
  let shape: Optimizer.Shape
  func run<R: UpdateRule>(_ rule: inout R) -> Int { rule.moments(shape) }
}

/// Where an arena is after the scratch of such a tensor.
struct TakeRuleScratch: RuleWork {
  let arena: Arena
  let shape: Optimizer.Shape
  let context: ContextPointer

  func run<R: UpdateRule>(_ rule: inout R) -> Arena {
    var own = arena
    rule.takeScratch(&own, shape, in: context)
    return own
  }
}

struct SetLearningRate: RuleWork {
  let learningRate: Double
  func run<R: UpdateRule>(_ rule: inout R) { rule.learningRate = learningRate }
}

struct SetMomentum: RuleWork {
  let momentum: Double
  let steps: UInt64
  func run<R: UpdateRule>(_ rule: inout R) { rule.setMomentum(momentum, afterSteps: steps) }
}

struct GetRuleNumbers: RuleWork {
  let out: UnsafeMutablePointer<Double>
  func run<R: UpdateRule>(_ rule: inout R) { rule.getNumbers(out) }
}

struct SetRuleNumbers: RuleWork {
  let numbers: UnsafePointer<Double>
  func run<R: UpdateRule>(_ rule: inout R) { rule.setNumbers(numbers) }
}

struct BeginStep: RuleWork {
  func run<R: UpdateRule>(_ rule: inout R) { rule.beginStep() }
}

struct StepTensor: RuleWork {
  let part: TensorStep
  func run<R: UpdateRule>(_ rule: inout R) { rule.step(part) }
}

struct StepsElements: RuleWork {
  let shape: Optimizer.Shape
  func run<R: UpdateRule>(_ rule: inout R) -> Bool { rule.stepsElements(shape) }
}

struct StepBlock: RuleWork {
  let block: BlockGradient
  let part: TensorStep
  func run<R: UpdateRule>(_ rule: inout R) { rule.step(block, of: part) }
}
