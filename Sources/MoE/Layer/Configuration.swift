import CShims

/// What a layer is. The boundary has checked it: sizes are at least 1 and below 2^31, K <= E.
///
/// One pointer to values in the layer's memory: the stages of a call hold their configuration by the dozen, and so a call
/// fits a small stack.
public struct Configuration {
  /// Numbers as in moe_shared_gate.
  public enum SharedGate: Int32 {
    case plain = 0
    case sigmoid = 1
    case residual = 2
  }

  let values: UnsafePointer<Values>

  init(_ values: UnsafePointer<Values>) { self.values = values }

  public var hidden: Int { values.pointee.hidden }
  public var experts: Int { values.pointee.experts }
  public var topK: Int { values.pointee.topK }
  public var shared: Int { values.pointee.shared }
  public var sharedGate: SharedGate { values.pointee.sharedGate }
  public var groups: UnsafePointer<ExpertGroup> { values.pointee.groups }
  public var groupCount: Int { values.pointee.groupCount }
  public var groupsAreListed: Bool { values.pointee.groupsAreListed }
  public var outputBias: Bool { values.pointee.outputBias }
  public var router: RouterTraits { values.pointee.router.traits }
  var routerKind: RouterKind { values.pointee.router }
  public var routerBias: Bool { values.pointee.routerBias }
  public var choice: TokenChoice { values.pointee.choice }
  public var dynamicK: DynamicK? { values.pointee.dynamicK }
  public var exploration: Exploration { values.pointee.exploration }
  public var routerNorm: RouterNorm.Options? { values.pointee.routerNorm }
  public var warmup: Warmup? { values.pointee.warmup }
  public var capacity: Capacity? { values.pointee.capacity }
  public var renormalizeAfter: Bool { values.pointee.renormalizeAfter }
  public var hashTable: UnsafePointer<Int32>? { values.pointee.hashTable }
  public var vocabulary: Int { values.pointee.vocabulary }
  public var tokens: ElementType { values.pointee.tokens }
  public var trainable: Bool { values.pointee.trainable }
  public var keepsExpertGradients: Bool { values.pointee.keepsExpertGradients }
  public var keepsExpertWeights: Bool { values.pointee.keepsExpertWeights }
  var allocates: Bool { values.pointee.allocates }
  public var balanceCoefficient: Float { values.pointee.balanceCoefficient }
  public var zCoefficient: Float { values.pointee.zCoefficient }
  public var losses: UnsafePointer<LossTerm>? { values.pointee.losses }
  public var lossCount: Int { values.pointee.lossCount }
  public var seed: UInt64 { values.pointee.seed }

  /// What the boundary fills in: the whole plan of a layer, in the order in which a token meets it. As flat as
  /// moe_layer_config, one field for each question; what goes together by itself has a type, as `Capacity` has.
  public struct Values {
    public var hidden: Int  // H
    public var experts: Int  // E, those that are chosen
    public var topK: Int  // K
    public var shared = 0  // S, experts that every token uses; numbers E ..< E + S
    public var sharedGate = SharedGate.plain
    /// [groupCount]; shared experts are the last group. The caller's memory until the layer is made, then the layer's.
    public var groups: UnsafePointer<ExpertGroup>
    public var groupCount: Int
    /// Whether the groups were listed: their parameters' names have numbers then.
    public var groupsAreListed = false
    public var outputBias = false

    public var router = RouterKind.tokenChoice
    public var routerBias = false
    public var choice = TokenChoice()
    public var dynamicK: DynamicK?
    public var exploration = Exploration()
    public var routerNorm: RouterNorm.Options?
    public var warmup: Warmup?
    public var capacity: Capacity?
    /// Weights of the choices that are left are divided, in place of those of all.
    public var renormalizeAfter = false
    /// [vocabulary, K]; memory as that of `groups`.
    public var hashTable: UnsafePointer<Int32>?
    public var vocabulary = 0

    /// Of x, y and their gradients.
    public var tokens = ElementType.f32
    public var trainable = true
    /// Whether there is memory for the gradients of all experts' matrices and biases. If not, backward steps an optimiser
    /// expert by expert.
    public var keepsExpertGradients = true
    /// Whether there is memory for the routed experts' matrices and their gradients. If not, the caller binds some, or they
    /// are offloaded.
    public var keepsExpertWeights = true
    /// Whether parameters have initial values, which who overwrites all of them has no use for.
    public var startsRandom = true
    /// Whether parameters have memory, which a layer that only tells what they are does without.
    public var allocates = true
    public var balanceCoefficient: Float = 0
    public var zCoefficient: Float = 0
    public var losses: UnsafePointer<LossTerm>?  // [lossCount]; memory as that of `groups`
    public var lossCount = 0
    public var seed: UInt64 = 0

    public init(hidden: Int, experts: Int, topK: Int, groups: UnsafePointer<ExpertGroup>, groupCount: Int) {
      self.hidden = hidden
      self.experts = experts
      self.topK = topK
      self.groups = groups
      self.groupCount = groupCount
    }

    /// Without a gate there are no logits and no probabilities.
    public var hasGate: Bool {
      switch router.traits.gate {
      case .forChoices: true
      case .forWeights: choice.weights != .equal
      case .none: false
      }
    }
  }
}
