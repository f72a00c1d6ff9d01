import CMoE
import MoE

// The one place where moe_model_config becomes a plan, and where contradictions are found.

@implementation @_cdecl("moe_encoder_layer_config_init")
public func moe_encoder_layer_config_init(_ config: UnsafeMutablePointer<moe_model_config>?, _ struct_size: Int) {
  var layer = moe_model_config()
  layer.n_layers = 1
  layer.norm = Int32(MOE_NORM_LAYER.rawValue)
  layer.norm_place = Int32(MOE_NORM_POST.rawValue)
  (layer.qkv_bias, layer.output_bias) = (1, 1)
  (layer.dropout, layer.attention_dropout, layer.dense_dropout) = (0.1, 0.1, 0.1)
  layer.dense_kind = Int32(MOE_EXPERT_MLP.rawValue)
  layer.dense_activation = Int32(MOE_ACTIVATION_RELU.rawValue)
  initialise(config, struct_size, layer)
}

extension ModelConfiguration {
  /// All but what the ffn's and the rotary tables are.
  init(_ config: moe_model_config, _ layers: LayerList) throws(Fault) {
    let (hidden, heads) = (Int(config.hidden_size), Int(config.n_heads))
    let keyHeads = config.n_kv_heads == 0 ? heads : Int(config.n_kv_heads)
    if heads % keyHeads != 0 { throw .invalid("n_kv_heads = \(keyHeads) does not divide n_heads = \(heads)") }
    if config.head_size == 0 && hidden % heads != 0 {
      throw .invalid("n_heads = \(heads) does not divide hidden_size = \(hidden), and head_size = 0")
    }
    self.init(
      hidden: hidden, layers: Int(config.n_layers), heads: heads, keyHeads: keyHeads,
      headSize: config.head_size == 0 ? hidden / heads : Int(config.head_size))
    let most = try product(heads + 2 * keyHeads, headSize, "(n_heads + 2 n_kv_heads) * head_size")
    try require(most, "(n_heads + 2 n_kv_heads) * head_size", from: 1, to: Int(Int32.max))
    try readNumbers(config)
    try readAttention(config, layers)
    try readVocabulary(config)
    try readLogits(config)
    try readNorms(config)
    try readPooled(config)
    let width = projected
    try require(width, "the width of queries, keys, values and gates", from: 1, to: Int(Int32.max))
    _ = try product(vocabulary * hidden, 4, "the size of vocabulary_size * hidden_size floats")
    _ = try product(positions * hidden, 4, "the size of max_positions * hidden_size floats")
    _ = try product(width * hidden, 4, "the size of (n_heads + 2 n_kv_heads) * head_size * hidden_size floats")
  }

  private mutating func readNumbers(_ config: moe_model_config) throws(Fault) {
    causal = config.causal == 1
    qkvBias = config.qkv_bias == 1
    outputBias = config.output_bias == 1
    weights = try elementType(config.weight_dtype, "weight_dtype")
    trainable = config.inference_only == 0
    (dropout, attentionDropout) = (config.dropout, config.attention_dropout)
    try requireFloat(config.init_deviation, "init_deviation")
    if config.init_deviation > 0 { initDeviation = config.init_deviation }
    seed = config.seed
    try requireFloat(config.residual_scale, "residual_scale")
    if config.residual_scale != 0 { residualScale = Float(config.residual_scale) }
  }

  private mutating func readAttention(_ config: moe_model_config, _ layers: LayerList) throws(Fault) {
    if config.value_head_size != 0 { valueSize = Int(config.value_head_size) }
    _ = try product(heads + 2 * keyHeads, valueSize, "(n_heads + 2 n_kv_heads) * value_head_size")
    try require(heads * valueSize, "n_heads * value_head_size", from: 1, to: Int(Int32.max))
    try requireFloat(config.attention_scale, "attention_scale")
    if config.attention_scale != 0 { attentionScale = Float(config.attention_scale) }
    attentionGate = config.attention_gate == 1
    sinks = config.sinks == 1
    queryKeyNorm = try named(config.qk_norm)
    if queryKeyNorm == .plain && !layers.hasLayer(turned: true) {
      throw .invalid("qk_norm = MOE_QK_NORM_PLAIN is of layers that rotate, but no layer has a rotary table")
    }
    if config.temperature_scale == 0 {
      if config.temperature_floor != 0 {
        throw .invalid("temperature_floor = \(config.temperature_floor), but temperature_scale = 0")
      }
      return
    }
    try require(config.temperature_floor, "temperature_floor", atLeast: 1)
    try requireFloat(config.temperature_scale, "temperature_scale")
    if !layers.hasLayer(turned: false) {
      throw .invalid(
        "temperature_scale = \(config.temperature_scale) is of layers without rotation, but every layer has a rotary table"
      )
    }
    temperature = Temperature(scale: config.temperature_scale, floor: config.temperature_floor)
  }

  private mutating func readVocabulary(_ config: moe_model_config) throws(Fault) {
    vocabulary = Int(config.vocabulary_size)
    positions = Int(config.max_positions)
    tiedOutput = config.tied_output == 1
    if vocabulary == 0 && positions > 0 {
      throw .invalid("max_positions = \(positions), but vocabulary_size = 0: hidden states come in as they are")
    }
    if vocabulary == 0 && tiedOutput { throw .invalid("tied_output = 1, but vocabulary_size = 0") }
    embeddings = try elementType(config.embedding_dtype, "embedding_dtype", forTokens: true)
    if vocabulary == 0 && embeddings != .f32 {
      throw .invalid(
        "embedding_dtype = \(Int(config.embedding_dtype)), but vocabulary_size = 0: there are no embeddings")
    }
    try requireFloat(config.embedding_scale, "embedding_scale")
    if vocabulary == 0 && config.embedding_scale != 0 {
      throw .invalid(
        "embedding_scale = \(config.embedding_scale), but vocabulary_size = 0: hidden states come in as they are")
    }
    if config.embedding_scale != 0 { embeddingScale = Float(config.embedding_scale) }
  }

  private mutating func readLogits(_ config: moe_model_config) throws(Fault) {
    try requireFloat(config.logit_scale, "logit_scale")
    try requireFloat(config.logit_softcap, "logit_softcap")
    logitBias = config.logit_bias == 1
    if config.logit_scale != 0 { logitScale = Float(config.logit_scale) }
    logitCap = Float(config.logit_softcap)
    if logitCap == 0 && config.logit_softcap != 0 {
      throw .invalid("logit_softcap = \(config.logit_softcap) is 0 in float32")
    }
    if vocabulary > 0 { return }
    let name: StaticString? =
      logitBias ? "logit_bias" : config.logit_scale != 0 ? "logit_scale" : logitCap > 0 ? "logit_softcap" : nil
    if let name { throw .invalid("\(name) is not 0, but vocabulary_size = 0: there are no logits") }
  }

  private mutating func readNorms(_ config: moe_model_config) throws(Fault) {
    norm = try named(config.norm)
    normPlace = try named(config.norm_place)
    finalNorm = config.final_norm == 1
    if config.norm_epsilon != 0 {
      try requireNormEpsilon(config.norm_epsilon, "norm_epsilon")
      epsilon = config.norm_epsilon
    }
    if normPlace == .none && dropout > 0 {
      throw .invalid("dropout = \(Double(dropout)), but norm_place = MOE_NORM_NONE has no residual to add to")
    }
    if normPlace == .none && config.residual_scale != 0 {
      throw .invalid(
        "residual_scale = \(config.residual_scale), but norm_place = MOE_NORM_NONE has no residual to add to")
    }
  }

  private mutating func readPooled(_ config: moe_model_config) throws(Fault) {
    try requireFloat(config.pooled_balance_coef, "pooled_balance_coef")
    pooledCoefficient = config.pooled_balance_coef
    if pooledCoefficient > 0 && config.moe == nil {
      throw .invalid("pooled_balance_coef = \(pooledCoefficient), but moe is NULL")
    }
  }
}

extension moe_layer_config {
  /// The ffn of the MoE layers.
  init(moeOf config: moe_model_config) throws(Fault) {
    self = try readUnchecked(config.moe, "moe")
    if hidden_size != 0 && hidden_size != config.hidden_size {
      throw .invalid(
        "moe: hidden_size = \(Int(hidden_size)) is neither 0 nor the model's \(Int(config.hidden_size))")
    }
    if io_dtype != 0 { throw .invalid("moe: io_dtype = \(Int(io_dtype)), but a model's hidden states are float32") }
    if inference_only != 0 { throw .invalid("moe: inference_only = \(Int(inference_only)): set the model's") }
    let left = config.inference_only == 0 ? MOE_UNALLOCATED_EXPERT_GRADIENTS : MOE_UNALLOCATED_EXPERT_WEIGHTS
    if unallocated != 0 && unallocated != Int32(left.rawValue) {
      throw .invalid(
        "moe: unallocated = \(Int(unallocated)): of a model it is MOE_UNALLOCATED_EXPERT_WEIGHTS with inference_only = 1, and MOE_UNALLOCATED_EXPERT_GRADIENTS without"
      )
    }
    if seed != 0 { throw .invalid("moe: seed = \(seed), but the experts' seeds derive from the model's") }
    let traits = Configuration.RouterKind(rawValue: router)?.traits
    if traits?.needsChoices == true {
      throw .invalid("moe: router = MOE_ROUTER_EXTERNAL, but nobody gives indices within a model")
    }
    if traits?.readsTokenIds == true && vocabulary_size != config.vocabulary_size {
      throw .invalid(
        "moe: vocabulary_size = \(Int(vocabulary_size)) is not the model's \(Int(config.vocabulary_size))")
    }
    hidden_size = config.hidden_size
    try requireBounds(Bounds("moe"))
    inference_only = config.inference_only
    if config.weight_dtype != 0 { weight_dtype = config.weight_dtype }
  }

  /// A dense ffn: the only expert, which every token uses with the weight 1.
  init(denseOf config: moe_model_config, width: Int) throws(Fault) {
    try require(width, "dense_intermediate_size", from: 1, to: Int(Int32.max))
    guard config.dense_kind == MOE_EXPERT_MLP.rawValue || config.dense_kind == MOE_EXPERT_GATED.rawValue else {
      throw .invalid("dense_kind = \(Int(config.dense_kind)) is neither MOE_EXPERT_MLP nor MOE_EXPERT_GATED")
    }
    let noBias = config.dense_no_bias == 1
    self.init()
    struct_size = MemoryLayout<moe_layer_config>.size
    hidden_size = config.hidden_size
    intermediate_size = Int64(width)
    (n_experts, top_k) = (1, 1)
    router = Int32(MOE_ROUTER_EXTERNAL.rawValue)
    router_bias = Int32(MOE_BIAS_OFF.rawValue)
    expert_kind = config.dense_kind
    activation = config.dense_activation
    expert_bias = Int32((noBias ? MOE_BIAS_OFF : MOE_BIAS_ON).rawValue)
    dropout = config.dense_dropout
    inference_only = config.inference_only
    weight_dtype = config.weight_dtype
    if let moe = config.moe, inference_only == 0 { unallocated = moe.pointee.unallocated }
  }
}
