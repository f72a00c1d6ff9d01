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

    public var needsGate: Bool { self != .variance && self != .importance }
    /// Of smooth loads.
    public var needsNoise: Bool { self == .load || self == .shazeer || self == .tutelImportanceLoad }
    /// Of scores as shares.
    public var needsShares: Bool { self == .megatron || self == .megatronSequence || self == .megatronGlobal }
    var isBySequence: Bool { self == .switchSequence || self == .megatronSequence }
  }

  public let kind: Int32
  public let coefficient: Float
}

extension Configuration {
  /// Of term number i of the list; the boundary has checked it.
  func lossKind(_ i: Int) -> LossTerm.Kind { LossTerm.Kind(rawValue: losses![i].kind)! }

  private func anyLoss(_ has: (LossTerm.Kind) -> Bool) -> Bool {
    for i in 0..<lossCount where has(lossKind(i)) { return true }
    return false
  }

  /// Where all experts are chosen, the loads are equal without being measured.
  var hasSmoothLoads: Bool { topK < experts && anyLoss { $0.needsNoise } }
  /// The softmax's shares are the probabilities themselves.
  var hasScoreShares: Bool { choice.score != .softmax && anyLoss { $0.needsShares } }
  var hasLossesBySequence: Bool { anyLoss { $0.isBySequence } }
  /// Such terms among the first n.
  func lossesBySequence(among n: Int) -> Int {
    var count = 0
    for i in 0..<n where lossKind(i).isBySequence { count += 1 }
    return count
  }
  var hasLossesOfFirstChoices: Bool { anyLoss { $0.balanceFamily(topK: topK)?.counts == .first } }
  var hasLossesOfWeights: Bool { anyLoss { $0 == .importance || $0 == .shazeer } }
}
