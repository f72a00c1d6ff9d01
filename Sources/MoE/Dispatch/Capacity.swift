/// How many tokens an expert has room for, and who goes first. Formulas are computed in double, in the order in which
/// their sources compute them, so that rounding up agrees with them.
public struct Capacity {
  /// Numbers as in moe_capacity.
  public enum Formula: Int32 {
    case constant = 1
    case megatron = 2
    case deepSpeed = 3
    case megaBlocks = 4
    case tutel = 5
    case fastMoE = 6
    case lucidrains = 7
    case nllb = 8
    case flaxformer = 9
    case classic = 10
    case classicTotal = 11
  }

  /// Numbers as in moe_drop.
  public enum Order: Int32 {
    case position = 0
    case choicePosition = 1
    case probability = 2
    case batchPrioritized = 3
    case random = 4
  }

  public struct Adaptive {
    public var high: Double
    public var highFactor: Double
    public var low: Double
    public var lowFactor: Double

    public init(high: Double, highFactor: Double, low: Double, lowFactor: Double) {
      self.high = high
      self.highFactor = highFactor
      self.low = low
      self.lowFactor = lowFactor
    }
  }

  public var formula: Formula
  public var constant = 0
  public var factor: Double?
  public var evaluationFactor: Double?
  public var least: Int?
  public var perSequence = false
  public var order = Order.position
  public var nextBest = false
  public var adaptive: Adaptive?

  public init(formula: Formula) { self.formula = formula }

  /// C for T tokens with K choices among E experts; `load` is that of the fullest expert.
  func room(tokens: Int, topK: Int, experts: Int, training: Bool, load: Int) -> Int {
    let (t, k, e) = (Double(tokens), Double(topK), Double(experts))
    let c: Double
    switch formula {
    case .constant: c = Double(constant)
    case .megatron: c = ((t * k / e) * factor(training, 1, 1)).rounded(.up)
    case .deepSpeed:
      // In float32, as its tensors are.
      // A factor beyond float32 is infinite there, and of no tokens no capacity.
      let c32 = tokens == 0 ? 0 : (Float(t / e) * Float(factor(training, 1, 1) * k)).rounded(.up)
      c = max(Double(c32), Double(least ?? 4))
    case .megaBlocks: c = (factor(training, 1, 1) * (k * t / e)).rounded(.down)
    case .tutel:
      let f = factor(training, 0, 0)
      let limited = k * (abs(f) * (t / e).rounded(.up)).rounded(.down)
      c = f > 0 ? limited : f == 0 ? Double(load) : min(Double(load), limited)
    case .fastMoE: c = ((factor(training, 1.2, 2.4) * t).rounded(.up) * k / e).rounded(.down)
    case .lucidrains:
      c = max(min(t, (t * factor(training, 1.25, 2) / e).rounded(.down)), Double(least ?? 4))
    case .nllb:
      let limited = training ? nil : evaluationFactor
      c = limited.map { ($0 * t).rounded(.up) } ?? 2 * (t / e).rounded(.up)
    case .flaxformer:
      c = max((factor(training, 1.25, 2) * t / e).rounded(.toNearestOrEven), Double(least ?? 4))
    case .classic: c = (factor(training, 1.25, 1.25) * t / e).rounded(.down)
    case .classicTotal: c = (factor(training, 1.25, 1.25) * t).rounded(.down)
    }
    return max(bounded(c), least ?? 0)
  }

  private func factor(_ training: Bool, _ usual: Double, _ usualInEvaluation: Double) -> Double {
    training ? factor ?? usual : evaluationFactor ?? factor ?? usualInEvaluation
  }

  /// Factors may be as large as they like; places are not. What is no number is no place.
  private func bounded(_ c: Double) -> Int { c > 0 ? Int(min(c, Double(Int32.max))) : 0 }

  /// C of an expert that `load` choices fell on.
  func adapted(_ room: Int, load: Int) -> Int {
    guard let adaptive else { return room }
    let ratio = Double(load) / Double(max(room, 1))
    if ratio > adaptive.high { return bounded(adaptive.highFactor * Double(room)) }
    if ratio < adaptive.low { return bounded(adaptive.lowFactor * Double(room)) }
    return room
  }
}
