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
  /// All but what the ffn's are.
  init(_ config: moe_model_config) throws(Fault) {
    let (hidden, heads) = (Int(config.hidden_size), Int(config.n_heads))
    let keyHeads = config.n_kv_heads == 0 ? heads : Int(config.n_kv_heads)
    if heads % keyHeads != 0 { throw .invalid("n_kv_heads = \(keyHeads) does not divide n_heads = \(heads)") }
    if config.head_size == 0 && hidden % heads != 0 {
      throw .invalid("n_heads = \(heads) does not divide hidden_size = \(hidden), and head_size = 0")
    }
    self.init(
      hidden: hidden, layers: Int(config.n_layers), heads: heads, keyHeads: keyHeads,
      headSize: config.head_size == 0 ? hidden / heads : Int(config.head_size))
    let width = try product(heads + 2 * keyHeads, headSize, "(n_heads + 2 n_kv_heads) * head_size")
    try require(width, "(n_heads + 2 n_kv_heads) * head_size", from: 1, to: Int(Int32.max))
    try readNumbers(config)
    try readVocabulary(config)
    try readNorms(config)
    try readLayers(config)
    _ = try product(vocabulary * hidden, 4, "the size of vocabulary_size * hidden_size floats")
    _ = try product(positions * hidden, 4, "the size of max_positions * hidden_size floats")
    _ = try product(width * hidden, 4, "the size of (n_heads + 2 n_kv_heads) * head_size * hidden_size floats")
  }

  private mutating func readNumbers(_ config: moe_model_config) throws(Fault) {
    causal = config.causal == 1
    qkvBias = config.qkv_bias == 1
    outputBias = config.output_bias == 1
    headNorm = config.qk_norm == 1
    weights = try elementType(config.weight_dtype, "weight_dtype")
    trainable = config.inference_only == 0
    (dropout, attentionDropout) = (config.dropout, config.attention_dropout)
    try requireFloat(config.init_deviation, "init_deviation")
    if config.init_deviation > 0 { initDeviation = config.init_deviation }
    seed = config.seed
    guard config.rope_theta != 0 else { return }
    try require(config.rope_theta, "rope_theta", atLeast: 1)
    theta = config.rope_theta
    if headSize % 2 != 0 { throw .invalid("head_size = \(headSize) is odd, but rope_theta turns pairs") }
  }

  private mutating func readVocabulary(_ config: moe_model_config) throws(Fault) {
    vocabulary = Int(config.vocabulary_size)
    positions = Int(config.max_positions)
    tiedOutput = config.tied_output == 1
    if vocabulary == 0 && positions > 0 {
      throw .invalid("max_positions = \(positions), but vocabulary_size = 0: hidden states come in as they are")
    }
    if vocabulary == 0 && tiedOutput { throw .invalid("tied_output = 1, but vocabulary_size = 0") }
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
  }

  private mutating func readLayers(_ config: moe_model_config) throws(Fault) {
    if config.moe != nil {
      if normPlace == .none { throw .invalid("moe is not NULL, but norm_place = MOE_NORM_NONE has no ffn") }
      let every = max(1, Int(config.moe_every))
      if every > layers { throw .invalid("moe_every = \(every) exceeds n_layers = \(layers): no layer would be MoE") }
      moeEvery = every
    } else if config.moe_every != 0 {
      throw .invalid("moe_every = \(Int(config.moe_every)), but moe is NULL")
    }
    try requireFloat(config.pooled_balance_coef, "pooled_balance_coef")
    pooledCoefficient = config.pooled_balance_coef
    if pooledCoefficient > 0 && moeEvery == nil {
      throw .invalid("pooled_balance_coef = \(pooledCoefficient), but moe is NULL")
    }
    let needsDense = hasFeedForward && moeEvery != 1
    if !needsDense && config.dense_intermediate_size != 0 {
      throw .invalid(
        "dense_intermediate_size = \(Int(config.dense_intermediate_size)), but no layer has a dense ffn")
    }
  }
}

extension moe_layer_config {
  /// The ffn of the MoE layers.
  init(moeOf config: moe_model_config, _ c: ModelConfiguration) throws(Fault) {
    self = try readUnchecked(config.moe, "moe")
    if hidden_size != 0 && hidden_size != config.hidden_size {
      throw .invalid(
        "moe: hidden_size = \(Int(hidden_size)) is neither 0 nor the model's \(Int(config.hidden_size))")
    }
    if io_dtype != 0 { throw .invalid("moe: io_dtype = \(Int(io_dtype)), but a model's hidden states are float32") }
    if inference_only != 0 { throw .invalid("moe: inference_only = \(Int(inference_only)): set the model's") }
    if unallocated != 0 {
      throw .invalid("moe: unallocated = \(Int(unallocated)), but a model's layers have memory for everything")
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
  init(denseOf config: moe_model_config) throws(Fault) {
    try require(Int(config.dense_intermediate_size), "dense_intermediate_size", from: 1, to: Int(Int32.max))
    guard config.dense_kind == MOE_EXPERT_MLP.rawValue || config.dense_kind == MOE_EXPERT_GATED.rawValue else {
      throw .invalid("dense_kind = \(Int(config.dense_kind)) is neither MOE_EXPERT_MLP nor MOE_EXPERT_GATED")
    }
    let noBias = config.dense_no_bias == 1
    self.init()
    struct_size = MemoryLayout<moe_layer_config>.size
    hidden_size = config.hidden_size
    intermediate_size = config.dense_intermediate_size
    (n_experts, top_k) = (1, 1)
    router = Int32(MOE_ROUTER_EXTERNAL.rawValue)
    router_bias = Int32(MOE_BIAS_OFF.rawValue)
    expert_kind = config.dense_kind
    activation = config.dense_activation
    expert_bias = Int32((noBias ? MOE_BIAS_OFF : MOE_BIAS_ON).rawValue)
    dropout = config.dense_dropout
    inference_only = config.inference_only
    weight_dtype = config.weight_dtype
  }
}
