/// What makes training try more experts than the router would choose by itself. All of it acts in training alone.
public struct Exploration {
  /// Numbers as in moe_noise.
  public enum Noise: Int32 {
    case none = 0
    case gaussian = 1
    case learned = 2
  }

  public var noise = Noise.none
  public var noiseDeviation: Float = 0
  public var jitter: Float = 0
  public var jitterExperts = false
  public var dropout: Float = 0
  public var dropoutOnLogits = false
  public var batchNorm: BatchNorm?
  public var randomSecond = false

  public struct BatchNorm {
    public var momentum: Float
    public var epsilon: Float

    public init(momentum: Float, epsilon: Float) {
      self.momentum = momentum
      self.epsilon = epsilon
    }
  }

  public init() {}
}

/// In step s the first  start + (E - start) s / steps  experts may be chosen; at last all of them.
public struct Warmup {
  public var steps: Int
  public var start: Int

  public init(steps: Int, start: Int) {
    self.steps = steps
    self.start = start
  }

  func active(_ experts: Int, step: UInt64) -> Int {
    if step >= UInt64(steps) { return experts }
    // Experts are below 2^31 and steps below 2^31: the product fits.
    return start + (experts - start) * Int(step) / steps
  }
}

/// Fewer than K experts for some tokens, at least `least`.
public struct DynamicK {
  /// Numbers as in moe_dynamic_k.
  public enum Rule: Int32 {
    case topP = 1
    case threshold = 2
    case complexity = 3
  }

  public var rule: Rule
  public var value: Float
  public var least: Int

  public init(rule: Rule, value: Float, least: Int) {
    self.rule = rule
    self.value = value
    self.least = least
  }
}
