import CMoE

/// One way for tokens and experts to find each other, with all that it needs: fields of the config, options of the call.
struct Scheme: Sendable, CustomStringConvertible {
  let description: String
  /// What the call needs beside x.
  var needs: Need = .nothing
  /// Whether some choices have no room, whatever the call.
  var drops = false
  let configure: @Sendable (inout moe_layer_config) -> Void

  enum Need { case nothing, tokenIds, indices, indicesAndWeights }

  init(
    _ description: String, needs: Need = .nothing, drops: Bool = false,
    _ configure: @escaping @Sendable (inout moe_layer_config) -> Void
  ) {
    self.description = description
    self.needs = needs
    self.drops = drops
    self.configure = configure
  }

  /// Six experts, two of which are chosen.
  func layer(
    in context: moe_context_config? = nil, _ change: (inout moe_layer_config) -> Void = { _ in }
  ) throws -> Layer {
    let layer = try Size(tokens: 0, hidden: 13, intermediate: 9, experts: 6, topK: 2).layer(in: context) {
      configure(&$0)
      change(&$0)
    }
    try layer.stir()
    return layer
  }

  /// The options of a call, and memory behind them, which nobody writes any more.
  final class Inputs: @unchecked Sendable {
    let options: moe_forward_options
    private let mask: UnsafeMutablePointer<UInt8>
    private let ids: UnsafeMutablePointer<Int64>
    private let indices: UnsafeMutablePointer<Int32>
    private let weights: UnsafeMutablePointer<Float>

    /// A third of the tokens is padding where `masked`; sequences are of a third of the tokens.
    fileprivate init(_ need: Need, tokens: Int, training: Bool, masked: Bool) {
      var options = forwardOptions(training: training, step: 3)
      (mask, ids) = (.allocate(capacity: tokens), .allocate(capacity: tokens))
      (indices, weights) = (.allocate(capacity: tokens * 2), .allocate(capacity: tokens * 2))
      let random = noise(tokens * 5, seed: 21)
      for t in 0..<tokens {
        mask[t] = random[t] < -0.33 ? 0 : 1
        ids[t] = Int64((random[tokens + t] + 1) * 5.5)  // 0 ... 10
        for k in 0..<2 {
          indices[2 * t + k] = Int32((random[2 * tokens + 2 * t + k] + 1) * 3.5) - 1  // -1 ... 5, some twice
          weights[2 * t + k] = random[3 * tokens + t + k]
        }
      }
      options.sequence_length = Int64(tokens / 3)
      if masked { options.valid_mask = UnsafePointer(mask) }
      if need == .tokenIds { options.token_ids = UnsafePointer(ids) }
      if need == .indices || need == .indicesAndWeights { options.expert_indices = UnsafePointer(indices) }
      if need == .indicesAndWeights { options.expert_weights = UnsafePointer(weights) }
      self.options = options
    }

    deinit {
      mask.deallocate()
      ids.deallocate()
      indices.deallocate()
      weights.deallocate()
    }
  }

  /// `tokens` is a multiple of three.
  func inputs(tokens: Int, training: Bool = true, masked: Bool = false) -> Inputs {
    Inputs(needs, tokens: tokens, training: training, masked: masked)
  }

  static let all = routers + weights + exploration + capacity + experts
}

// MARK: routers

extension Scheme {
  static let routers = [
    Scheme("token choice") { _ in },
    Scheme("selection bias, expert scale") { ($0.score, $0.selection_bias, $0.expert_scale) = (1, 1, 1) },
    Scheme("groups") { ($0.n_groups, $0.top_groups, $0.group_top_m, $0.selection_bias) = (3, 2, 2, 1) },
    Scheme("groups, masked by 0") { ($0.n_groups, $0.top_groups, $0.group_mask, $0.score) = (3, 2, 1, 3) },
    Scheme("expert choice") { $0.router = MOE_ROUTER_EXPERT_CHOICE.int32 },
    Scheme("expert choice, TopK softmax, bias") {
      ($0.router, $0.router_weights, $0.selection_bias) = (MOE_ROUTER_EXPERT_CHOICE.int32, 1, 1)
    },
    Scheme("expert choice, capacity by sequence") {
      $0.router = MOE_ROUTER_EXPERT_CHOICE.int32
      ($0.capacity_formula, $0.capacity_factor, $0.capacity_per_sequence) = (MOE_CAPACITY_CLASSIC.int32, 1.5, 1)
    },
    Scheme("hierarchical") { ($0.router, $0.n_groups, $0.top_groups) = (MOE_ROUTER_HIERARCHICAL.int32, 3, 2) },
    Scheme("hierarchical, two of a group") {
      ($0.router, $0.n_groups, $0.top_groups) = (MOE_ROUTER_HIERARCHICAL.int32, 2, 1)
    },
    Scheme("hierarchical, gates apart") {
      ($0.router, $0.n_groups, $0.top_groups) = (MOE_ROUTER_HIERARCHICAL.int32, 3, 2)
      $0.router_weights = MOE_ROUTER_WEIGHTS_GROUP_SOFTMAX.int32
    },
    Scheme("norm of the gate") { $0.router_norm = MOE_ROUTER_NORM_RMS.int32 },
    Scheme("norm of the gate, weight, jitter") {
      ($0.router_norm, $0.router_norm_scale, $0.jitter) = (MOE_ROUTER_NORM_RMS_WEIGHT.int32, 1.5, 0.1)
    },
    Scheme("hash", needs: .tokenIds) { ($0.router, $0.vocabulary_size) = (MOE_ROUTER_HASH.int32, 11) },
    Scheme("hash without a gate", needs: .tokenIds) {
      ($0.router, $0.vocabulary_size, $0.router_weights) = (MOE_ROUTER_HASH.int32, 11, MOE_ROUTER_WEIGHTS_EQUAL.int32)
    },
    Scheme("sinkhorn") { ($0.router, $0.score) = (MOE_ROUTER_SINKHORN.int32, 1) },
    Scheme("relu") { ($0.router, $0.score, $0.router_normalize) = (MOE_ROUTER_RELU.int32, 3, 1) },
    Scheme("relu, divided, scaled") { ($0.router, $0.score, $0.expert_scale) = (MOE_ROUTER_RELU.int32, 3, 1) },
    Scheme("external", needs: .indicesAndWeights) { $0.router = MOE_ROUTER_EXTERNAL.int32 },
    Scheme("given experts", needs: .indices) { _ in },
    Scheme("given experts and weights", needs: .indicesAndWeights) { _ in },
  ]

  static let weights = [
    Scheme("norm 1, identity") { ($0.score, $0.router_normalize) = (3, MOE_NORMALIZE_NORM1.int32) },
    Scheme("norm 2, least") {
      ($0.router_normalize, $0.epsilon_form, $0.normalize_epsilon) = (MOE_NORMALIZE_NORM2.int32, 1, 0.5)
    },
    Scheme("norm 3, scaled") {
      ($0.router_normalize, $0.normalize_p, $0.routed_scale) = (MOE_NORMALIZE_NORMP.int32, 3, 2.5)
    },
    Scheme("TopK sigmoid") { ($0.router_weights, $0.normalize_epsilon) = (2, 0.1) },
    Scheme("equal") { $0.router_weights = MOE_ROUTER_WEIGHTS_EQUAL.int32 },
    Scheme("sparse mixer") { ($0.router_weights, $0.mask_threshold) = (MOE_ROUTER_WEIGHTS_SPARSEMIXER.int32, 0.5) },
    Scheme("top-p") { ($0.dynamic_k, $0.dynamic_value) = (MOE_DYNAMIC_K_TOP_P.int32, 0.25) },
    Scheme("threshold") { ($0.dynamic_k, $0.dynamic_value) = (MOE_DYNAMIC_K_THRESHOLD.int32, 0.25) },
    Scheme("complexity") {
      ($0.top_k, $0.dynamic_k, $0.dynamic_value, $0.min_k) = (4, MOE_DYNAMIC_K_COMPLEXITY.int32, 1, 1)
    },
  ]
}

// MARK: exploration

extension Scheme {
  static let exploration = [
    Scheme("Gaussian noise") { ($0.noise, $0.noise_std) = (MOE_NOISE_GAUSSIAN.int32, 0.3) },
    Scheme("learned noise") { $0.noise = MOE_NOISE_LEARNED.int32 },
    Scheme("jitter") { $0.jitter = 0.2 },
    Scheme("jitter for the experts too") { ($0.jitter, $0.jitter_experts) = (0.2, 1) },
    Scheme("dropout of the gate's input") { $0.router_dropout = 0.3 },
    Scheme("dropout of logits") { ($0.router_dropout, $0.router_dropout_on) = (0.3, 1) },
    Scheme("batch norm") { $0.router_batch_norm = 1 },
    Scheme("warm-up") { ($0.warmup_steps, $0.warmup_experts) = (12, 2) },
    Scheme("all exploration") {
      ($0.noise, $0.jitter, $0.router_dropout, $0.router_batch_norm) = (MOE_NOISE_LEARNED.int32, 0.1, 0.2, 1)
      ($0.warmup_steps, $0.random_second, $0.dropout) = (5, 1, 0.2)
    },
    Scheme("noise for experts that choose") {
      ($0.router, $0.noise, $0.jitter) = (MOE_ROUTER_EXPERT_CHOICE.int32, MOE_NOISE_LEARNED.int32, 0.1)
    },
  ]
}

// MARK: capacity

extension Scheme {
  static let capacity =
    [
      MOE_DROP_POSITION, MOE_DROP_CHOICE_POSITION, MOE_DROP_PROBABILITY, MOE_DROP_BATCH_PRIORITIZED, MOE_DROP_RANDOM,
    ].flatMap { drop in
      [MOE_OVERFLOW_DROP, MOE_OVERFLOW_NEXT_BEST].map { overflow in
        // Room for half of the choices in all.
        Scheme("drop \(drop.rawValue), overflow \(overflow.rawValue)", drops: true) {
          ($0.capacity_formula, $0.capacity_factor) = (MOE_CAPACITY_MEGATRON.int32, 0.5)
          ($0.drop, $0.overflow, $0.router_normalize) = (drop.int32, overflow.int32, MOE_NORMALIZE_SUM.int32)
        }
      }
    } + [
      Scheme("capacity by sequence, renormalised", drops: true) {
        ($0.capacity_formula, $0.capacity_factor, $0.capacity_per_sequence) = (MOE_CAPACITY_MEGATRON.int32, 0.5, 1)
        ($0.renormalize, $0.expert_scale, $0.score) = (1, 1, 1)
      },
      Scheme("adaptive capacity") {
        ($0.capacity_formula, $0.adaptive_capacity, $0.drop) = (MOE_CAPACITY_CLASSIC.int32, 1, 2)
      },
      Scheme("sparse mixer and next best", drops: true) {
        ($0.router_weights, $0.mask_threshold) = (MOE_ROUTER_WEIGHTS_SPARSEMIXER.int32, 0.5)
        ($0.capacity_formula, $0.capacity_factor, $0.overflow) = (MOE_CAPACITY_MEGATRON.int32, 0.5, 1)
      },
      Scheme("sinkhorn and next best", drops: true) {
        ($0.router, $0.capacity_formula, $0.capacity_factor) = (
          MOE_ROUTER_SINKHORN.int32, MOE_CAPACITY_MEGATRON.int32, 0.5
        )
        $0.overflow = 1
      },
      Scheme("hash and capacity", needs: .tokenIds, drops: true) {
        ($0.router, $0.vocabulary_size) = (MOE_ROUTER_HASH.int32, 11)
        ($0.capacity_formula, $0.capacity_factor, $0.overflow) = (MOE_CAPACITY_MEGATRON.int32, 0.5, 1)
      },
      Scheme("random second") { $0.random_second = 1 },
      Scheme("random second, renormalised, capacity", drops: true) {
        ($0.random_second, $0.renormalize, $0.capacity_formula, $0.capacity_factor) = (1, 1, 2, 0.5)
      },
    ]
}

// MARK: experts

extension Scheme {
  /// One of each kind. Never freed.
  private nonisolated(unsafe) static let groups: UnsafeMutablePointer<moe_expert_group> = {
    let groups = UnsafeMutablePointer<moe_expert_group>.allocate(capacity: 6)
    for kind in 0..<6 {
      var group = moe_expert_group()
      (group.n_experts, group.expert_kind) = (1, Int32(kind))
      if kind < 2 { (group.intermediate_size, group.activation, group.dropout) = (7 + Int64(kind), 2, 0.2) }
      (groups + kind).initialize(to: group)
    }
    return groups
  }()

  private static func mix(_ config: inout moe_layer_config) {
    (config.intermediate_size, config.n_expert_groups, config.expert_groups) = (0, 6, UnsafePointer(groups))
  }

  static let experts =
    [MOE_SHARED_PLAIN, MOE_SHARED_SIGMOID, MOE_SHARED_RESIDUAL].map { gate in
      Scheme("shared experts, gate \(gate.rawValue)") {
        ($0.n_shared_experts, $0.shared_gate) = (gate == MOE_SHARED_RESIDUAL ? 1 : 2, gate.int32)
        ($0.shared_intermediate_size, $0.expert_kind, $0.output_bias) = (17, MOE_EXPERT_GATED.int32, 1)
      }
    } + [
      Scheme("mixed groups") { mix(&$0) },
      Scheme("mixed groups, shared, dropped", drops: true) {
        mix(&$0)
        ($0.n_shared_experts, $0.shared_gate, $0.shared_intermediate_size) = (1, MOE_SHARED_RESIDUAL.int32, 5)
        ($0.capacity_formula, $0.capacity_factor) = (MOE_CAPACITY_MEGATRON.int32, 0.5)
      },
      Scheme("weights on the input") { $0.weight_on_input = 1 },
      Scheme("weights on the input, gated, shared, jitter") {
        ($0.weight_on_input, $0.expert_kind, $0.n_shared_experts) = (1, MOE_EXPERT_GATED.int32, 1)
        ($0.jitter, $0.jitter_experts) = (0.1, 1)
      },
      Scheme("weights on the input, mixed groups") {
        mix(&$0)
        $0.weight_on_input = 1
      },
      Scheme("weights on the input, experts choose") {
        ($0.weight_on_input, $0.router) = (1, MOE_ROUTER_EXPERT_CHOICE.int32)
      },
    ]
}
