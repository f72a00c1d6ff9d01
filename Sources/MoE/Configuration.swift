import CShims

/// What a layer is. The boundary has checked it: sizes are at least 1 and below 2^31, K <= E.
public struct Configuration {
  public var hidden: Int  // H
  public var intermediate: Int  // I
  public var experts: Int  // E
  public var topK: Int  // K
  public var choice: TokenChoice
  public var routerBias: Bool
  let gated: Bool
  /// One matrix and bias, in the places of W_down and b_down; I = H, and what is multiplied is x itself.
  let linear: Bool
  public var activation: moei_activation
  public var expertBias: Bool
  /// Of the experts' matrices, and of the arrays of tokens that are multiplied with them.
  public var weights: ElementType
  /// Of x, y and their gradients.
  public var tokens: ElementType
  public var trainable: Bool
  public var dropout: Float
  public var balanceCoefficient: Float
  public var zCoefficient: Float
  public var seed: UInt64

  /// Numbers as in moe_expert_kind.
  public enum ExpertKind: Int32 {
    case mlp = 0
    case gated = 1
    case linear = 2
  }

  public init(
    hidden: Int, intermediate: Int, experts: Int, topK: Int, choice: TokenChoice,
    routerBias: Bool, kind: ExpertKind, activation: moei_activation, expertBias: Bool, weights: ElementType,
    tokens: ElementType, trainable: Bool, dropout: Float, balanceCoefficient: Float, zCoefficient: Float, seed: UInt64
  ) {
    self.hidden = hidden
    self.intermediate = intermediate
    self.experts = experts
    self.topK = topK
    self.choice = choice
    self.routerBias = routerBias
    gated = kind == .gated
    linear = kind == .linear
    self.activation = activation
    self.expertBias = expertBias
    self.weights = weights
    self.tokens = tokens
    self.trainable = trainable
    self.dropout = dropout
    self.balanceCoefficient = balanceCoefficient
    self.zCoefficient = zCoefficient
    self.seed = seed
  }
}
