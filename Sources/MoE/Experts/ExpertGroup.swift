import CShims

/// Experts of one kind and width: a stretch of the experts' numbers. The shared experts, which every token uses, are the
/// last group.
public struct ExpertGroup {
  /// Numbers as in moe_expert_kind.
  public enum Kind: Int32 {
    case mlp = 0
    case gated = 1
    case linear = 2
    case identity = 3
    case zero = 4
    case constant = 5
  }

  public let kind: Kind
  public let hidden: Int  // H
  public let intermediate: Int  // I
  public let experts: Int  // of the group
  public let activation: moei_activation
  public let hasBias: Bool
  /// Of experts that are sliced the first slice alone has the bias of the outputs.
  public private(set) var hasDownBias: Bool
  public let dropout: Float
  /// Of the matrices, and of the arrays of tokens that are multiplied with them.
  public let weights: ElementType
  /// expert(w x) in place of w expert(x)
  public let weightOnInput: Bool
  public let isShared: Bool
  public internal(set) var first = 0  // number of the first expert
  public internal(set) var index = 0  // of the group

  public init(
    kind: Kind, hidden: Int, intermediate: Int, experts: Int, activation: moei_activation, hasBias: Bool,
    dropout: Float, weights: ElementType, weightOnInput: Bool, isShared: Bool
  ) {
    self.kind = kind
    self.hidden = hidden
    self.intermediate = intermediate
    self.experts = experts
    self.activation = activation
    self.hasBias = hasBias
    hasDownBias = hasBias
    self.dropout = dropout
    self.weights = weights
    self.weightOnInput = weightOnInput
    self.isShared = isShared
  }

  /// The same group of another width.
  func wide(_ intermediate: Int) -> ExpertGroup { with(intermediate, weights) }
  /// The same group with weights of another type.
  func storing(_ weights: ElementType) -> ExpertGroup { with(intermediate, weights) }

  /// The same group with other experts.
  func with(experts: Int) -> ExpertGroup { with(intermediate, weights, experts: experts) }

  /// A slice of the same experts.
  func slice(_ intermediate: Int, hasDownBias: Bool) -> ExpertGroup {
    var own = wide(intermediate)
    own.hasDownBias = hasDownBias
    return own
  }

  private func with(_ intermediate: Int, _ weights: ElementType, experts: Int? = nil) -> ExpertGroup {
    var own = ExpertGroup(
      kind: kind, hidden: hidden, intermediate: intermediate, experts: experts ?? self.experts, activation: activation,
      hasBias: hasBias, dropout: dropout, weights: weights, weightOnInput: weightOnInput, isShared: isShared)
    own.hasDownBias = hasDownBias
    return own
  }

  /// Which of its own a range of the experts' numbers has.
  func part(of experts: Range<Int>) -> Range<Int> {
    let own = experts.clamped(to: first..<first + self.experts)
    return own.lowerBound - first..<own.upperBound - first
  }

  var gated: Bool { kind == .gated }
  /// One matrix and bias, in the places of W_down and b_down; I = H, and what is multiplied is x itself.
  var linear: Bool { kind == .linear }
  /// Whether there are matrices to multiply with.
  public var multiplies: Bool { kind == .mlp || kind == .gated || kind == .linear }
  /// Elements of the matrices and biases of one expert.
  var elementsOfOne: Int {
    guard multiplies else { return 0 }
    let inner = gated ? 2 : linear ? 0 : 1  // matrices before the activation
    return (inner + 1) * intermediate * hidden + biasesOfOne
  }
  /// Elements of the biases alone.
  var biasesOfOne: Int {
    multiplies && hasBias ? (gated ? 2 : linear ? 0 : 1) * intermediate + hidden : 0
  }
}

// What the products over some rows have to do; in backward the same for the rows' gradients and for the weights'.
extension ExpertGroup {
  /// `packed`: bytes of one expert's matrices, where others are read than the weights.
  func gateUpWork(_ dispatch: GroupRows, packed: Int?) -> Work {
    linear ? Work() : work(dispatch, matrices: gated ? 2 : 1, packed)
  }
  func downWork(_ dispatch: GroupRows, packed: Int?) -> Work { work(dispatch, matrices: 1, packed) }

  private func work(_ dispatch: GroupRows, matrices: Int, _ packed: Int?) -> Work {
    if !multiplies { return Work() }
    var (rows, used) = (0, 0)
    for e in dispatch.experts where dispatch.count(ofExpert: e) > 0 {
      rows += dispatch.count(ofExpert: e)
      used += 1
    }
    let each = packed ?? weights.bytes(hidden * intermediate * matrices)
    return Work(
      flops: 2 * rows * hidden * intermediate * matrices,
      bytes: used * each + rows * (hidden + matrices * intermediate) * 4)
  }
}
