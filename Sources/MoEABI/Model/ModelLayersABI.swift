import CMoE
import MoE

// What each layer of a model is: the list of the caller's, or one layer in every moe_every.

/// The layers of a model, checked.
struct LayerList {
  private let config: moe_model_config
  private let listed: UnsafePointer<moe_model_layer_config>?  // [n_layers]
  private let every: Int  // of the MoE layers, without a list
  private(set) var hasMoE = false
  private(set) var hasDense = false
  private(set) var widestDense = 0

  init(_ config: moe_model_config) throws(Fault) {
    self.config = config
    listed = try optional(UnsafeMutablePointer(mutating: config.layers), "layers").map { UnsafePointer($0) }
    every = max(1, Int(config.moe_every))
    let hasFeedForward = config.norm_place != MOE_NORM_NONE.rawValue
    if config.moe != nil && !hasFeedForward {
      throw .invalid("moe is not NULL, but norm_place = MOE_NORM_NONE has no ffn")
    }
    if config.moe == nil && config.moe_every != 0 {
      throw .invalid("moe_every = \(Int(config.moe_every)), but moe is NULL")
    }
    if listed != nil {
      if config.moe_every != 0 {
        throw .invalid("moe_every = \(Int(config.moe_every)) beside layers, which say which are MoE: set it to 0")
      }
    } else if config.moe != nil && every > config.n_layers {
      throw .invalid(
        "moe_every = \(every) exceeds n_layers = \(Int(config.n_layers)): no layer would be MoE")
    }
    for n in 0..<Int(config.n_layers) where hasFeedForward || listed != nil {
      try check(n, hasFeedForward)
      if listed == nil && n >= every { break }  // those behind are like those before
    }
    if config.moe != nil && !hasMoE { throw .invalid("moe is not NULL, but all of layers are dense: set dense to 0") }
    if !hasDense && config.dense_intermediate_size != 0 {
      throw .invalid(
        "dense_intermediate_size = \(Int(config.dense_intermediate_size)), but no layer has a dense ffn")
    }
  }

  private mutating func check(_ n: Int, _ hasFeedForward: Bool) throws(Fault) {
    do throws(Fault) {
      if let listed {
        try listed[n].requireBounds(Bounds("config"))
        try listed[n].requireUse(config, isMoE: isMoE(n) || !hasFeedForward)
      }
    } catch {
      throw error.inElement(n, of: "layers")
    }
    if isMoE(n) { hasMoE = true }
    if isMoE(n) || !hasFeedForward { return }
    hasDense = true
    if denseWidth(n) == 0 && listed != nil {
      throw .invalid("layers[\(n)]: is dense, but dense_intermediate_size = 0, and the model's is 0 too")
    }
    widestDense = max(widestDense, denseWidth(n))
  }

  func isMoE(_ n: Int) -> Bool {
    config.moe != nil && (listed.map { $0[n].dense == 0 } ?? ((n + 1) % every == 0))
  }

  private func denseWidth(_ n: Int) -> Int {
    let own = Int(listed?[n].dense_intermediate_size ?? 0)
    return own == 0 ? Int(config.dense_intermediate_size) : own
  }

  /// Number of the table that turns layer n; nil: none.
  func rotary(_ n: Int) -> Int? {
    if config.rope_theta == 0 && config.n_rotary_tables == 0 { return nil }
    let number = Int(listed?[n].rotary ?? 0)
    return number < 0 ? nil : number
  }

  func layer(_ n: Int, _ c: ModelConfiguration) -> ModelLayer {
    var layer = ModelLayer(isMoE: isMoE(n), rotary: rotary(n))
    if let listed { (layer.window, layer.chunk) = (Int(listed[n].window), Int(listed[n].chunk)) }
    if !layer.isMoE { layer.denseSize = denseWidth(n) }
    return layer
  }

  /// Whether some layer is turned by its positions, or is not.
  func hasLayer(turned: Bool) -> Bool {
    for n in 0..<Int(config.n_layers) where (rotary(n) != nil) == turned { return true }
    return false
  }
}

extension moe_model_layer_config {
  /// Fields that would have no effect are refused.
  fileprivate func requireUse(_ config: moe_model_config, isMoE: Bool) throws(Fault) {
    let tables = config.rope_theta != 0 ? 1 : Int(config.n_rotary_tables)
    if rotary < -1 || rotary >= max(tables, 1) {
      throw .invalid("rotary = \(Int(rotary)) is not one of \(tables) rotary tables, from 0, nor -1 for none")
    }
    if window != 0 && config.causal == 0 {
      throw .invalid("window = \(Int(window)), but causal = 0: windows are of causal attention")
    }
    if chunk != 0 && config.causal == 0 {
      throw .invalid("chunk = \(Int(chunk)), but causal = 0: chunks are of causal attention")
    }
    if isMoE && dense_intermediate_size != 0 {
      throw .invalid("dense_intermediate_size = \(Int(dense_intermediate_size)), but the layer has no dense ffn")
    }
  }
}
