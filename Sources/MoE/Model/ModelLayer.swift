/// One layer of a model whose layers may differ: moe_model_layer_config, with every default filled in.
public struct ModelLayer {
  public var isMoE: Bool
  /// Number of the rotary table that turns its queries and keys; nil: none does.
  public var rotary: Int?
  public var window = 0  // keys that a query sees at most, its own among them; 0 = all
  public var chunk = 0  // 0 = none
  public var denseSize = 0  // I of a dense ffn
  /// MoE layers before it.
  fileprivate(set) var moeBefore = 0
  /// The first layer known to take the same memory in every call: itself, or one before it.
  fileprivate(set) var model = 0

  public init(isMoE: Bool, rotary: Int?) {
    self.isMoE = isMoE
    self.rotary = rotary
  }

  private func takesMemory(as other: ModelLayer) -> Bool {
    isMoE == other.isMoE && rotary == other.rotary && window == other.window && chunk == other.chunk
      && denseSize == other.denseSize
  }
}

extension ModelLayer {
  /// Of a table that is being made, layer n, whose predecessors are there. It is compared with a few of those alone: what is
  /// not found is measured once more.
  static func add(_ layer: ModelLayer, _ n: Int, to table: UnsafeMutablePointer<ModelLayer>) {
    var own = layer
    own.model = n
    if n > 0 { own.moeBefore = table[n - 1].moeBefore + (table[n - 1].isMoE ? 1 : 0) }
    for before in stride(from: n - 1, through: max(0, n - 64), by: -1) where own.takesMemory(as: table[before]) {
      own.model = table[before].model
      break
    }
    (table + n).initialize(to: own)
  }
}

extension ModelConfiguration {
  /// MoE layers among the first n.
  func countMoE(_ n: Int) -> Int { n == layers ? moeLayers : layer(n).moeBefore }
  /// The first that is MoE, or is not; nil where there is none.
  func first(isMoE: Bool) -> Int? {
    for n in 0..<layers where self.isMoE(n) == isMoE { return n }
    return nil
  }
}
