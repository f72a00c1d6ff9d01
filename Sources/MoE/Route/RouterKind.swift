extension Configuration {
  /// Numbers as in moe_router. What a router is like stands in its traits, and nobody asks which one it is; only Choice.swift
  /// has to know, which makes it.
  public enum RouterKind: Int32 {
    case tokenChoice = 0
    case expertChoice = 1
    case hierarchical = 2
    case hash = 3
    case sinkhorn = 4
    case external = 5
    case relu = 6

    public var traits: RouterTraits {
      switch self {
      case .tokenChoice:
        RouterTraits(takes: [.selectionBias, .groups, .sparseMixer, .dynamicK, .randomSecond, .noisyLoads])
      case .expertChoice:
        RouterTraits(
          together: .always, listsAllExperts: true, mayLeaveSlotsEmpty: true, admits: false, takesChoices: false,
          takes: [.selectionBias])
      case .hierarchical: RouterTraits(hasCoarseGate: true, takes: [.groups])
      case .hash: RouterTraits(gate: .forWeights, readsTokenIds: true, mayRepeat: true, takes: [])
      case .sinkhorn: RouterTraits(together: .inTraining, keepsValues: true, takes: [])
      case .external: RouterTraits(gate: .none, takes: [])
      case .relu: RouterTraits(mayLeaveSlotsEmpty: true, weighsByLogits: true, takes: [])
      }
    }
  }
}

/// What follows from how experts and tokens find each other.
public struct RouterTraits {
  /// What a gate's logits are for. The raw type is for the linker, see ExpertForm.
  public enum Gate: UInt8 {
    case forChoices
    case forWeights  // there is none where all weights are equal
    case none
  }

  /// When tokens are chosen for all together.
  enum Together: UInt8 { case never, inTraining, always }

  /// What may be set beside a router; refused where it is not among these.
  public struct Options: OptionSet {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static var selectionBias: Options { Options(rawValue: 1) }
    public static var groups: Options { Options(rawValue: 2) }
    public static var sparseMixer: Options { Options(rawValue: 4) }
    public static var dynamicK: Options { Options(rawValue: 8) }
    public static var randomSecond: Options { Options(rawValue: 16) }
    public static var noisyLoads: Options { Options(rawValue: 32) }  // losses of them
  }

  public var gate = Gate.forChoices
  var together = Together.never
  /// Whether what is chosen by is wanted of all tokens at once, where they are chosen for together.
  var keepsValues = false
  /// Whether groups are chosen among by a gate of their own.
  public var hasCoarseGate = false
  public var readsTokenIds = false
  /// Whether a token has a slot for each expert, and not one for each of its K choices, best first.
  var listsAllExperts = false
  /// Whether a token may name an expert twice.
  var mayRepeat = false
  var mayLeaveSlotsEmpty = false
  /// Whether positive logits are the weights, so that no other score has a meaning.
  public var weighsByLogits = false
  /// Whether choices may be turned away for want of room.
  public var admits = true
  /// Whether a caller may give the choices of a call.
  public var takesChoices = true
  public var takes: Options

  /// Whether the caller gives the choices of every call.
  public var needsChoices: Bool { gate == .none }
}
