/// One of the losses in a layer's objective. Layout and numbers as in moe_loss_term.
public struct LossTerm {
  public enum Kind: Int32 {
    case balance = 0
    case balanceCount = 1
    case transformers = 2
    case switchTransformer = 3
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

    public var needsGate: Bool { self != .variance && self != .importance }
    public var needsNoise: Bool { self == .load || self == .shazeer || self == .tutelImportanceLoad }
  }

  public let kind: Int32
  public let coefficient: Float
}
