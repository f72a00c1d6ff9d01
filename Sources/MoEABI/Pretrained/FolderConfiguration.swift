import CLayouts
import CMoE
import MoE

/// A folder's configuration, built into memory that lives as long as the folder is open.
struct FolderConfiguration {
  var model = moe_model_config()
  var moe = moe_layer_config()
  /// Whether any layer is MoE.
  private(set) var hasMoE = false
  private(set) var moeLayers = 0
  private(set) var layers: UnsafeMutablePointer<moe_model_layer_config>?
  private(set) var frequencies: UnsafeMutablePointer<Double>?
  private(set) var table = moe_rotary_table()
  private(set) var hasTable = false
  /// Numbers of a head that turn, 0 where none do.
  private(set) var rotated = 0

  /// After an error nothing is left to be freed.
  init(_ keys: FolderKeys, in context: ContextPointer) throws(Fault) {
    let family = keys.family.table.pointee
    model = family.model!.load(as: moe_model_config.self)
    if let moe = family.moe { self.moe = moe.load(as: moe_layer_config.self) }
    hasMoE = family.moe != nil
    try withUnsafeFields { (model, moe) throws(Fault) in try keys.fill(model, moe) }
    try settle(keys)
    try requireSizes(keys)
    do throws(Fault) {
      try readLayers(keys, context)
      try readRotary(keys, context)
      try shorten()
    } catch {
      free(context)
      throw error
    }
  }

  func free(_ context: ContextPointer) {
    context.release(layers)
    context.release(frequencies)
  }

  private mutating func withUnsafeFields(
    _ body: (UnsafeMutableRawPointer, UnsafeMutableRawPointer) throws(Fault) -> Void
  ) throws(Fault) {
    var (model, moe, fault) = (model, moe, Fault?.none)
    withUnsafeMutablePointer(to: &model) { model in
      withUnsafeMutablePointer(to: &moe) { moe in
        do throws(Fault) { try body(UnsafeMutableRawPointer(model), UnsafeMutableRawPointer(moe)) } catch {
          fault = error
        }
      }
    }
    if let fault { throw fault }
    (self.model, self.moe) = (model, moe)
  }

  // MARK: what keys mean together

  private mutating func settle(_ keys: FolderKeys) throws(Fault) {
    if try keys.flag("output_router_logits") != true { model.pooled_balance_coef = 0 }
    if moe.jitter > 0 { moe.jitter_experts = 1 }
    // A model of one group has none.
    if moe.n_groups <= 1 { (moe.n_groups, moe.top_groups, moe.group_top_m, moe.group_mask) = (0, 0, 0, 0) }
    // DeepSeek-V2 chooses among groups where it says so.
    if moe.group_mask == number(MOE_GROUP_MASK_ZERO),
      keys.value("topk_method").map({ !$0.text.isAmong(cText("group_limited_greedy")) }) ?? true
    {
      (moe.n_groups, moe.top_groups, moe.group_mask) = (0, 0, 0)
    }
    // What guards a division says nothing where weights are as they are; and 0 guards nothing.
    if moe.router_normalize == number(MOE_NORMALIZE_NONE) { moe.normalize_epsilon = 0 }
    if moe.normalize_epsilon == 0 { moe.epsilon_form = 0 }
    // Experts count that are no worse than the best: 0 is a number of the file's, and none of libmoe's.
    if moe.router_weights == number(MOE_ROUTER_WEIGHTS_SPARSEMIXER) && moe.mask_threshold == 0 {
      moe.mask_threshold = .leastNormalMagnitude
    }
    if model.qk_norm == number(MOE_QK_NORM_PLAIN), keys.isDenied("use_qk_norm") { model.qk_norm = 0 }
    if model.temperature_scale != 0, keys.isDenied("attn_temperature_tuning") { model.temperature_scale = 0 }
    if model.temperature_scale == 0 { model.temperature_floor = 0 }
    if moe.shared_bias != 0 { moe.shared_bias = number(MOE_BIAS_ON) }
    // Several shared experts are one that is as wide as all.
    if moe.n_shared_experts > 1 {
      moe.shared_intermediate_size =
        moe.n_shared_experts.multipliedReportingOverflow(by: moe.intermediate_size).partialValue
      moe.n_shared_experts = 1
    }
    if moe.n_shared_experts == 0 || (keys.givesSharedWidth && moe.shared_intermediate_size == 0) {
      (moe.n_shared_experts, moe.shared_intermediate_size, moe.shared_gate, moe.shared_bias) = (0, 0, 0, 0)
    }
    if Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_LATENT { try readLatent(keys) }
  }

  private mutating func readLatent(_ keys: FolderKeys) throws(Fault) {
    let (own, turned) = (try keys.whole("qk_nope_head_dim") ?? 128, try keys.whole("qk_rope_head_dim") ?? 64)
    if own < 0 || turned < 2 || own > 65_536 || turned > 65_536 {
      throw .invalid("config.json: qk_nope_head_dim = \(own) and qk_rope_head_dim = \(turned) are not 0 and 2 to 65536")
    }
    model.head_size = Int64(own + turned)
    model.n_kv_heads = 0
    // As their classes have it, whatever rms_norm_eps is.
    model.latent_norm_epsilon = 1e-6
  }

  private func requireSizes(_ keys: FolderKeys) throws(Fault) {
    func size(_ value: Int64, _ name: StaticString, _ most: Int) throws(Fault) {
      if value < 1 || value > Int64(most) {
        throw .invalid("config.json: \(name) = \(Int(value)) is not 1 to \(most)")
      }
    }
    try size(model.hidden_size, "hidden_size", 1 << 24)
    try size(model.n_layers, "num_hidden_layers", 1 << 20)
    try size(model.n_heads, "num_attention_heads", 1 << 20)
    try size(model.vocabulary_size, "vocab_size", Int(Int32.max))
    if model.n_kv_heads > model.n_heads || (model.n_kv_heads > 0 && model.n_heads % model.n_kv_heads != 0) {
      throw .invalid(
        "config.json: num_key_value_heads = \(Int(model.n_kv_heads)) does not divide num_attention_heads = \(Int(model.n_heads))"
      )
    }
    if model.head_size > 65_536 { throw .invalid("config.json: head_dim = \(Int(model.head_size)) exceeds 65536") }
    if model.head_size == 0 && (model.hidden_size % model.n_heads != 0 || model.hidden_size / model.n_heads > 65_536) {
      throw .invalid(
        "config.json: num_attention_heads = \(Int(model.n_heads)) does not divide hidden_size = \(Int(model.hidden_size)), and there is no head_dim"
      )
    }
  }

  var headSize: Int { Int(model.head_size == 0 ? model.hidden_size / model.n_heads : model.head_size) }

  // MARK: layers

  private mutating func readLayers(_ keys: FolderKeys, _ context: ContextPointer) throws(Fault) {
    let count = Int(model.n_layers)
    let layers = try context.memory(moe_model_layer_config.self, count: count)
    self.layers = layers
    try FolderLayers(keys, count: count).fill(layers)
    for n in 0..<count where !hasMoE || moe.n_experts == 0 { layers[n].dense = 1 }
    for n in 0..<count where layers[n].dense == 0 { moeLayers += 1 }
    hasMoE = moeLayers > 0
    if moeLayers == count { model.dense_intermediate_size = 0 }
    if !hasMoE { model.pooled_balance_coef = 0 }
  }

  private mutating func readRotary(_ keys: FolderKeys, _ context: ContextPointer) throws(Fault) {
    let isLatent = Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_LATENT
    let turned = isLatent ? try keys.whole("qk_rope_head_dim") ?? 64 : headSize
    let rotary = try FolderRotary(keys, headSize: turned)
    rotated = rotary.rotated
    if rotary.scoreScale != 1 {
      let own = model.attention_scale == 0 ? 1 / Double(headSize).squareRoot() : model.attention_scale
      model.attention_scale = own * rotary.scoreScale
    }
    var (allTurn, someTurn) = (true, false)
    for n in 0..<Int(model.n_layers) {
      let turns = layers.map { $0[n].rotary == 0 } ?? true
      (allTurn, someTurn) = (allTurn && turns, someTurn || turns)
    }
    // What is of layers without rotation, or of those with, says nothing where there are none.
    if allTurn { (model.temperature_scale, model.temperature_floor) = (0, 0) }
    if !someTurn && model.qk_norm == number(MOE_QK_NORM_PLAIN) { model.qk_norm = 0 }
    if allTurn && !isLatent && rotary.isPlain(headSize: headSize) {
      model.rope_theta = rotary.stretch.theta
      return
    }
    let frequencies = try context.memory(Double.self, count: max(1, rotated))
    self.frequencies = frequencies
    rotary.fill(&table, frequencies)
    hasTable = true
  }

  /// Leaves out a table of layers that says what moe_every says.
  private mutating func shorten() throws(Fault) {
    guard let layers else { return }
    let count = Int(model.n_layers)
    var first = count
    var isUniform = true
    for n in 0..<count {
      if layers[n].window != 0 || layers[n].chunk != 0 || layers[n].rotary != 0 { isUniform = false }
      if layers[n].dense == 0 && first == count { first = n }
    }
    for n in 0..<count where hasMoE && (layers[n].dense == 0) != ((n + 1) % (first + 1) == 0) { isUniform = false }
    if !isUniform {
      model.moe_every = 0
      return
    }
    model.moe_every = hasMoE && first > 0 ? Int64(first + 1) : 0
    hidesLayers = true
  }
  private var hidesLayers = false

  /// The configuration, whose pointers go to `moe` and `table`, copies of what is here.
  func linked(
    moe: UnsafeMutablePointer<moe_layer_config>, table: UnsafeMutablePointer<moe_rotary_table>
  ) -> moe_model_config {
    var model = model
    model.struct_size = MemoryLayout<moe_model_config>.size
    moe.initialize(to: self.moe)
    moe.pointee.struct_size = MemoryLayout<moe_layer_config>.size
    table.initialize(to: self.table)
    if hasMoE { model.moe = UnsafePointer(moe) }
    if hasTable { (model.rotary_tables, model.n_rotary_tables) = (UnsafePointer(table), 1) }
    if !hidesLayers { model.layers = UnsafePointer(layers) }
    return model
  }

  /// Sizes of its heads.
  var shapes: TensorRows.Shapes {
    TensorRows.Shapes(
      heads: Int(model.n_heads), keyHeads: Int(model.n_kv_heads == 0 ? model.n_heads : model.n_kv_heads),
      headSize: headSize, valueSize: model.value_head_size == 0 ? headSize : Int(model.value_head_size),
      rotarySize: rotated, latentRank: Int(model.latent_rank))
  }
}

extension FolderKeys {
  /// Whether the width of the shared expert is a key of its own.
  var givesSharedWidth: Bool {
    for index in 0..<Int(family.table.pointee.key_count) {
      let key = family.table.pointee.keys[index]
      if Int(key.target) == MOEI_OF_MOE && key.offset == moei_shared_width_offset() { return true }
    }
    return false
  }
}
