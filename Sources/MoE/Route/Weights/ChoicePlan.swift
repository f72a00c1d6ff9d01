/// How a token's K experts are chosen and weighed. One set of options covers the routers of the field; docs/presets.md
/// says which model sets what.
///
///     s = score(z)                             z [E] the token's logits
///     chosen = the K largest of s + selection bias, within the best groups
///     v = s of the chosen, or a softmax or sigmoid over their logits
///     w = normalised v * scale * expert scale
public struct TokenChoice {
  /// Numbers as in moe_score.
  public enum Score: Int32 {
    case softmax = 0
    case sigmoid = 1
    case sqrtSoftplus = 2
    case identity = 3
  }

  /// Numbers as in moe_router_weights.
  public enum Weights: Int32 {
    case scores = 0
    case topKSoftmax = 1
    case topKSigmoid = 2
    case equal = 3
    case sparseMixer = 4
    case groupSoftmax = 5

    /// Whether a weight depends on logits of experts that were not chosen, in other ways than through the softmax of all.
    var looksAtAllLogits: Bool { self == .sparseMixer || self == .groupSoftmax }
  }

  /// Numbers as in moe_normalize.
  public enum Normalization: Int32 {
    case sum = 0
    case none = 1
    case norm1 = 2
    case norm2 = 3
    case normP = 4
  }

  /// Numbers as in moe_epsilon.
  public enum EpsilonForm: Int32 {
    case added = 0
    case least = 1
  }

  /// Only the experts of some groups may be chosen: those whose best experts have the largest scores.
  public struct Groups {
    public var count: Int  // E / count experts each
    public var chosen: Int
    public var best: Int  // so many of a group's largest scores are added up
    public var excludedAreZero: Bool  // in place of minus infinity

    public init(count: Int, chosen: Int, best: Int, excludedAreZero: Bool) {
      self.count = count
      self.chosen = chosen
      self.best = best
      self.excludedAreZero = excludedAreZero
    }
  }

  public var score = Score.softmax
  public var weights = Weights.scores
  public var normalization = Normalization.sum
  public var normP: Float = 0  // of .normP
  public var epsilon: Float = 0
  public var epsilonForm = EpsilonForm.added
  public var scale: Float = 1
  public var selectionBias = false
  public var groups: Groups?
  public var expertScale = false
  public var maskThreshold: Float = 0  // of .sparseMixer

  public init() {}

  /// Whether a choice's weight depends on which others there are.
  public var dependsOnTheOthers: Bool {
    normalization != .none || weights == .topKSoftmax || weights.looksAtAllLogits
  }

  /// Whether the order of the logits is that of what is selected by.
  var selectsByLogits: Bool { !selectionBias && groups == nil }
}
