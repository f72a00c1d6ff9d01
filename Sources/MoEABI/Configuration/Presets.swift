import CMoE

// What the presets are made of; docs/presets.md has the table and the sources. Each starts from the defaults.

extension moe_layer_config {
  /// Most models: gated experts with SiLU, no biases, and a linear gate without one.
  init(hidden: Int64, intermediate: Int64, experts: Int64, topK: Int64) {
    self.init()
    hidden_size = hidden
    intermediate_size = intermediate
    n_experts = experts
    top_k = topK
    expert_kind = number(MOE_EXPERT_GATED)
    activation = number(MOE_ACTIVATION_SILU)
    router_bias = number(MOE_BIAS_OFF)
  }

  /// Weights from the logits of the chosen experts alone.
  mutating func setTopKSoftmax() { router_weights = number(MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX) }

  /// Chosen scores as they are.
  mutating func setNotNormalized() { router_normalize = number(MOE_NORMALIZE_NONE) }

  /// One MLP of that width beside the routed experts.
  mutating func setShared(width: Int64) {
    n_shared_experts = 1
    shared_intermediate_size = width
  }

  /// DeepSeek-V3's choice and weights [DeepSeek-V3 2024]: sigmoid scores, a bias for the choice alone, sum + 1e-20.
  mutating func setDeepSeekV3Gate(scale: Float) {
    score = number(MOE_SCORE_SIGMOID)
    selection_bias = 1
    normalize_epsilon = 1e-20
    routed_scale = scale
  }
}

/// C's enums arrive unsigned, the fields of the structs are int32_t.
func number<E: RawRepresentable>(_ value: E) -> Int32 where E.RawValue == UInt32 {
  Int32(truncatingIfNeeded: value.rawValue)
}
