// The list of all losses. A new one is a case of Kind, a row of `balanceFamily`, and, where it is of another form, a line in
// `value` and a file with its function.

/// One of the losses in a layer's objective. Layout as in moe_loss_term.
public struct LossTerm {
  /// Numbers as in moe_loss.
  public enum Kind: Int32 {
    case balance = 0
    case balanceCount = 1
    case transformers = 2
    case switchTransformer = 3  // SWITCH
    case switchSequence = 4
    case gShard = 5
    case deepSpeed = 6
    case megatron = 7
    case megatronSequence = 8
    case megatronGlobal = 9
    case variance = 10
    case importance = 11
    case load = 12
    case shazeer = 13
    case tutelGShard = 14
    case tutelImportanceLoad = 15
    case z = 16
    case zSwitch = 17
    case balancePositive = 18
    case l1 = 19
    case l1Balanced = 20

    public var needsGate: Bool { self != .variance && self != .importance && self != .l1 && self != .l1Balanced }
    /// Of smooth loads.
    public var needsNoise: Bool { self == .load || self == .shazeer || self == .tutelImportanceLoad }
    /// Of scores as shares.
    public var needsShares: Bool { self == .megatron || self == .megatronSequence || self == .megatronGlobal }
    /// Of the weights in use, whose gradient goes on through these.
    var isOfWeights: Bool { self == .importance || self == .shazeer || self == .l1 || self == .l1Balanced }
    var isBySequence: Bool { self == .switchSequence || self == .megatronSequence }
  }

  public let kind: Int32
  public let coefficient: Float
}

extension LossTerm.Kind {
  /// nil for losses of another form.
  func balanceFamily(topK: Int) -> BalanceFamily? {
    switch self {
    case .balance: BalanceFamily(counts: .distinct)
    case .balanceCount: BalanceFamily(counts: .every)
    case .balancePositive: BalanceFamily(counts: .weighed)
    case .transformers: BalanceFamily(counts: .kLargest)
    case .switchTransformer: BalanceFamily(counts: .largest)
    case .switchSequence: BalanceFamily(counts: .largest, bySequence: true)
    // E^2 times the mean over experts is E times the sum.
    case .gShard, .tutelGShard: BalanceFamily(counts: .first)
    case .deepSpeed:
      topK <= 2 ? BalanceFamily(counts: .first) : BalanceFamily(counts: .every, divisor: .choices)
    case .megatron: BalanceFamily(counts: .kLargest, divisor: .choices, ofShares: true)
    case .megatronSequence:
      BalanceFamily(counts: .kLargest, divisor: .choices, ofShares: true, bySequence: true)
    case .megatronGlobal: BalanceFamily(counts: .kLargest, divisor: .counted, ofShares: true)
    case .variance, .importance, .load, .shazeer, .tutelImportanceLoad, .z, .zSwitch, .l1, .l1Balanced: nil
    }
  }
}

extension Losses {
  /// The loss; adds coefficient * its slopes. `term` is its number in the list.
  func value(_ kind: LossTerm.Kind, _ coefficient: Double, term: Int?) -> Double {
    if let family = kind.balanceFamily(topK: c.topK) { return balance(family, coefficient, term: term) }
    switch kind {
    case .variance: return variance()
    case .importance: return importance(coefficient)
    case .load: return load(coefficient)
    case .shazeer: return importance(coefficient) + load(coefficient)
    case .tutelImportanceLoad: return (importanceOfProbabilities(coefficient / 2) + load(coefficient / 2)) / 2
    case .zSwitch: return squaredLogSumExp(coefficient, tokens: allTokens)
    case .z: return squaredLogSumExp(coefficient, tokens: valid)
    case .l1: return meanWeight(coefficient, byDemand: false)
    case .l1Balanced: return meanWeight(coefficient, byDemand: true)
    case .balance, .balanceCount, .transformers, .switchTransformer, .switchSequence, .gShard, .deepSpeed, .megatron,
      .megatronSequence, .megatronGlobal, .tutelGShard, .balancePositive:
      return 0  // families, which have been returned above
    }
  }
}

extension Layer {
  /// Of term number i of the list, from the next forward on.
  public func setLossCoefficient(_ i: Int, to coefficient: Float) {
    let terms = UnsafeMutablePointer(mutating: configuration.losses!)  // the layer's own memory
    terms[i] = LossTerm(kind: terms[i].kind, coefficient: coefficient)
  }
}
