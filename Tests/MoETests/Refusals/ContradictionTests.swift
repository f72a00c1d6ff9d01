import CMoE
import Testing

/// Fields that contradict each other, or that would have no effect beside each other: refused by both names. One line for
/// each pair. What each field may be by itself: BadConfigTests.
@Suite("Contradictions")
final class ContradictionTests {
  private let layer: Layer  // 4 experts, 2 of which are chosen, 5 features
  /// Two groups of 2 MLPs.
  private let groups = UnsafeMutablePointer<moe_expert_group>.allocate(capacity: 2)
  private let table = UnsafeMutablePointer<Int32>.allocate(capacity: 6)  // for three token ids
  private let loss = UnsafeMutablePointer<moe_loss_term>.allocate(capacity: 1)

  init() throws {
    layer = try Layer()
    var group = moe_expert_group()
    (group.n_experts, group.intermediate_size) = (2, 7)
    groups.initialize(repeating: group, count: 2)
    table.initialize(repeating: 3, count: 6)
    loss.initialize(to: moe_loss_term(kind: MOE_LOSS_Z.int32, coefficient: 1))
  }

  deinit {
    groups.deallocate()
    table.deallocate()
    loss.deallocate()
  }

  private typealias Change = (inout moe_layer_config) -> Void

  private func create(_ change: Change) -> moe_status {
    var config = layer.config
    change(&config)
    var out = untouched
    let status = moe_layer_create(layer.context, &config, &out)
    if status == MOE_OK { moe_layer_free(out) } else { #expect(out == untouched) }
    return status
  }

  /// Refused, in a message that has both words.
  private func contradict(
    _ first: String, _ second: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change
  ) {
    for word in [first, second] { refused(word, create(change), sourceLocation: sourceLocation) }
  }

  // MARK: the gate's norm

  @Test func theGatesNorm() {
    contradict("router_norm_scale", "router_norm") { $0.router_norm_scale = 1 }
    contradict("router_norm_epsilon", "router_norm") { $0.router_norm_epsilon = 1 }
    contradict("router_norm", "router_batch_norm") { ($0.router_norm, $0.router_batch_norm) = (1, 1) }
    contradict("router_norm", "router") { ($0.router_norm, $0.router) = (2, MOE_ROUTER_EXTERNAL.int32) }
    contradict("router_weights", "router") { $0.router_weights = MOE_ROUTER_WEIGHTS_GROUP_SOFTMAX.int32 }
    for kind: Int32 in [-1, 3] { refused("router_norm", create { $0.router_norm = kind }) }
    // One field turns a preset's groups off.
    #expect(create { ($0.n_groups, $0.top_groups, $0.group_top_m, $0.group_mask) = (MOE_NO_GROUPS, 9, 9, 1) } == MOE_OK)
  }

  // MARK: experts

  @Test func sizes() {
    contradict("top_k", "n_experts") { $0.top_k = 5 }
  }

  @Test func kindsOfExperts() {
    for kind in [MOE_EXPERT_IDENTITY, MOE_EXPERT_ZERO, MOE_EXPERT_CONSTANT] {
      contradict("expert_kind", "expert_groups") { $0.expert_kind = kind.int32 }
    }
    contradict("intermediate_size", "hidden_size") { $0.expert_kind = MOE_EXPERT_LINEAR.int32 }
    contradict("dropout", "expert_kind") { ($0.dropout, _) = (0.1, $0.setExperts(MOE_EXPERT_LINEAR)) }
    contradict("activation", "expert_kind") { ($0.activation, _) = (2, $0.setExperts(MOE_EXPERT_LINEAR)) }
    contradict("glu_limit", "expert_kind") { $0.glu_limit = 7 }
    contradict("glu_offset", "expert_kind") { $0.glu_offset = 1 }
    contradict("glu_alpha", "expert_kind") { ($0.glu_alpha, $0.activation) = (1.702, MOE_ACTIVATION_SILU.int32) }
    contradict("glu_alpha", "activation") { ($0.glu_alpha, $0.expert_kind) = (1.702, MOE_EXPERT_GATED.int32) }
  }

  /// The base's own width would be refused beside groups.
  private func contradictInGroups(
    _ first: String, _ second: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change
  ) {
    contradict(first, second, sourceLocation: sourceLocation) {
      ($0.expert_groups, $0.n_expert_groups, $0.intermediate_size) = (UnsafePointer(groups), 2, 0)
      change(&$0)
    }
  }

  @Test func groupsOfExperts() {
    contradict("n_expert_groups", "expert_groups") { $0.expert_groups = UnsafePointer(groups) }
    contradictInGroups("n_expert_groups", "expert_groups") { $0.expert_groups = nil }
    contradictInGroups("expert_groups", "n_experts") { $0.n_experts = 5 }
    contradictInGroups("expert_groups", "n_experts") { $0.n_experts = 3 }
    contradictInGroups("intermediate_size", "n_expert_groups") { $0.intermediate_size = 7 }
    contradictInGroups("expert_kind", "n_expert_groups") { $0.expert_kind = 1 }
    contradictInGroups("activation", "n_expert_groups") { $0.activation = 1 }
    contradictInGroups("expert_bias", "n_expert_groups") { $0.expert_bias = 1 }
    contradictInGroups("dropout", "n_expert_groups") { $0.dropout = 0.1 }
    contradictInGroups("glu_limit", "n_expert_groups") { $0.glu_limit = 1 }
    contradictInGroups("glu_alpha", "n_expert_groups") { $0.glu_alpha = 1 }
    contradictInGroups("glu_offset", "n_expert_groups") { $0.glu_offset = 1 }
  }

  @Test(arguments: [MOE_EXPERT_IDENTITY, MOE_EXPERT_ZERO, MOE_EXPERT_CONSTANT])
  func groupsWithoutMatrices(kind: moe_expert_kind) {
    groups[0].expert_kind = kind.int32
    contradictInGroups("intermediate_size", "expert_kind") { _ in }
    groups[0].intermediate_size = 0
    contradictInGroups("n_shared_experts", "expert_groups") {
      ($0.n_shared_experts, $0.shared_intermediate_size) = (1, 3)
    }
    groups[0].activation = MOE_ACTIVATION_SILU.int32
    contradictInGroups("activation", "expert_kind") { _ in }
    (groups[0].activation, groups[0].dropout) = (0, 0.1)
    contradictInGroups("dropout", "expert_kind") { _ in }
    (groups[0].dropout, groups[0].expert_bias) = (0, MOE_BIAS_ON.int32)
    contradictInGroups("expert_bias", "expert_kind") { _ in }
  }

  @Test func sharedExperts() {
    contradict("shared_intermediate_size", "n_shared_experts") { $0.shared_intermediate_size = 3 }
    contradict("shared_gate", "n_shared_experts") { $0.shared_gate = MOE_SHARED_SIGMOID.int32 }
    for count: Int64 in [0, 2] {
      contradict("shared_gate", "n_shared_experts") {
        ($0.shared_gate, $0.n_shared_experts) = (MOE_SHARED_RESIDUAL.int32, count)
      }
    }
    contradict("shared_gate", "weight_on_input") {
      ($0.shared_gate, $0.n_shared_experts, $0.weight_on_input) = (MOE_SHARED_RESIDUAL.int32, 1, 1)
    }
    contradict("shared_intermediate_size", "hidden_size") {
      $0.setExperts(MOE_EXPERT_LINEAR)
      ($0.n_shared_experts, $0.shared_intermediate_size) = (1, 3)
    }
  }

  // MARK: weights

  @Test func scoresAndWeights() {
    for weights in [
      MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, MOE_ROUTER_WEIGHTS_TOPK_SIGMOID, MOE_ROUTER_WEIGHTS_SPARSEMIXER,
    ] {
      contradict("score", "router_weights") { ($0.router_weights, $0.score) = (weights.int32, 1) }
    }
    for threshold: Float in [0, 0.1] {
      let weights = threshold == 0 ? MOE_ROUTER_WEIGHTS_SPARSEMIXER : MOE_ROUTER_WEIGHTS_SCORES
      contradict("mask_threshold", "router_weights") {
        ($0.router_weights, $0.mask_threshold) = (weights.int32, threshold)
      }
    }
  }

  @Test func divisors() {
    for normalize in [MOE_NORMALIZE_NORM1, MOE_NORMALIZE_NORM2] {
      contradict("router_normalize", "router_weights") {
        ($0.router_weights, $0.router_normalize) = (MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX.int32, normalize.int32)
      }
    }
    contradict("normalize_epsilon", "router_normalize") {
      ($0.router_normalize, $0.normalize_epsilon) = (MOE_NORMALIZE_NONE.int32, 0.1)
    }
    contradict("normalize_epsilon", "router_weights") {
      ($0.router_weights, $0.normalize_epsilon) = (MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX.int32, 0.1)
    }
    contradict("epsilon_form", "normalize_epsilon") { $0.epsilon_form = MOE_EPSILON_LEAST.int32 }
    contradict("normalize_p", "router_normalize") { $0.normalize_p = 3 }
    for p: Float in [0, 0.5] {
      contradict("normalize_p", "router_normalize") {
        ($0.router_normalize, $0.normalize_p) = (MOE_NORMALIZE_NORMP.int32, p)
      }
    }
  }

  // MARK: routers

  @Test func groupsOfTokenChoice() {
    contradict("top_groups", "n_groups") { $0.top_groups = 1 }
    contradict("group_top_m", "n_groups") { $0.group_top_m = 1 }
    contradict("group_mask", "n_groups") { $0.group_mask = 1 }
    contradict("n_groups", "n_experts") { ($0.n_groups, $0.top_groups) = (3, 1) }
    contradict("n_groups", "n_experts") { ($0.n_groups, $0.top_groups) = (5, 1) }
    contradict("top_groups", "n_groups") { $0.n_groups = 2 }
    contradict("top_groups", "n_groups") { ($0.n_groups, $0.top_groups) = (2, 3) }
    contradict("group_top_m", "n_groups") { ($0.n_groups, $0.top_groups, $0.group_top_m) = (2, 1, 3) }
    contradict("top_k", "top_groups") { ($0.n_groups, $0.top_groups) = (4, 1) }
  }

  @Test func hierarchies() {
    func contradictInHierarchy(
      _ first: String, _ second: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change
    ) {
      contradict(first, second, sourceLocation: sourceLocation) {
        ($0.router, $0.n_groups, $0.top_groups) = (MOE_ROUTER_HIERARCHICAL.int32, 2, 2)
        change(&$0)
      }
    }
    contradictInHierarchy("n_groups", "router") { ($0.n_groups, $0.top_groups) = (0, 0) }
    contradictInHierarchy("group_top_m", "router") { $0.group_top_m = 2 }
    contradictInHierarchy("group_mask", "router") { $0.group_mask = 1 }
    contradictInHierarchy("top_groups", "top_k") { $0.top_k = 3 }
    contradictInHierarchy("selection_bias", "router") { $0.selection_bias = 1 }
  }

  @Test(arguments: [MOE_ROUTER_EXPERT_CHOICE, MOE_ROUTER_HASH, MOE_ROUTER_SINKHORN, MOE_ROUTER_EXTERNAL])
  func whatOtherRoutersDoNotHave(router: moe_router) {
    func contradictRouter(
      _ field: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change
    ) {
      contradict(field, "router", sourceLocation: sourceLocation) {
        $0.router = router.int32
        if router == MOE_ROUTER_HASH { $0.vocabulary_size = 3 }
        change(&$0)
      }
    }
    contradictRouter("n_groups") { ($0.n_groups, $0.top_groups) = (2, 1) }
    contradictRouter("dynamic_k") { ($0.dynamic_k, $0.dynamic_value) = (1, 0.5) }
    contradictRouter("random_second") { $0.random_second = 1 }
    contradictRouter("router_weights") { ($0.router_weights, $0.mask_threshold) = (4, 0.1) }
    if router != MOE_ROUTER_EXPERT_CHOICE { contradictRouter("selection_bias") { $0.selection_bias = 1 } }
    if router != MOE_ROUTER_HASH {
      contradictRouter("vocabulary_size") { $0.vocabulary_size = 3 }
      contradictRouter("hash_table") { $0.hash_table = UnsafePointer(table) }
    }
    if router == MOE_ROUTER_HASH || router == MOE_ROUTER_EXTERNAL {
      contradictRouter("warmup_steps") { $0.warmup_steps = 3 }
    }
  }

  @Test func hashing() {
    contradict("vocabulary_size", "router") { $0.router = MOE_ROUTER_HASH.int32 }
    table[5] = 4
    contradict("hash_table", "n_experts") {
      ($0.router, $0.vocabulary_size, $0.hash_table) = (MOE_ROUTER_HASH.int32, 3, UnsafePointer(table))
    }
  }

  /// What only a gate has.
  @Test(arguments: [MOE_ROUTER_EXTERNAL, MOE_ROUTER_HASH])
  func withoutAGate(router: moe_router) {
    func contradictGate(_ field: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change) {
      contradict(field, "router", sourceLocation: sourceLocation) {
        $0.router = router.int32
        if router == MOE_ROUTER_HASH {
          ($0.vocabulary_size, $0.router_weights) = (3, MOE_ROUTER_WEIGHTS_EQUAL.int32)
        }
        change(&$0)
      }
    }
    contradictGate("router_bias") { $0.router_bias = MOE_BIAS_ON.int32 }
    contradictGate("score") { $0.score = MOE_SCORE_SIGMOID.int32 }
    contradictGate("noise") { $0.noise = MOE_NOISE_LEARNED.int32 }
    contradictGate("jitter") { $0.jitter = 0.1 }
    contradictGate("router_dropout") { $0.router_dropout = 0.1 }
    contradictGate("router_batch_norm") { $0.router_batch_norm = 1 }
    contradictGate("losses") { ($0.losses, $0.n_losses) = (UnsafePointer(loss), 1) }
    if router == MOE_ROUTER_HASH {
      contradictGate("overflow") { ($0.capacity_formula, $0.overflow) = (MOE_CAPACITY_MEGATRON.int32, 1) }
    } else {
      contradictGate("capacity_formula") { $0.capacity_formula = MOE_CAPACITY_MEGATRON.int32 }
      contradictGate("expert_scale") { $0.expert_scale = 1 }
      contradictGate("router_weights") { $0.router_weights = MOE_ROUTER_WEIGHTS_EQUAL.int32 }
      contradictGate("routed_scale") { $0.routed_scale = 2 }
      contradictGate("router_normalize") { $0.router_normalize = MOE_NORMALIZE_NORM2.int32 }
      contradictGate("normalize_epsilon") { $0.normalize_epsilon = 0.1 }
    }
  }

  // MARK: exploration

  @Test func exploration() {
    contradict("noise_std", "noise") { $0.noise_std = 0.1 }
    contradict("noise_std", "noise") { $0.noise = MOE_NOISE_GAUSSIAN.int32 }
    contradict("noise_std", "noise") { ($0.noise, $0.noise_std) = (MOE_NOISE_LEARNED.int32, 0.1) }
    contradict("jitter_experts", "jitter") { $0.jitter_experts = 1 }
    contradict("router_dropout_on", "router_dropout") { $0.router_dropout_on = 1 }
    contradict("batch_norm_momentum", "router_batch_norm") { $0.batch_norm_momentum = 0.2 }
    contradict("batch_norm_epsilon", "router_batch_norm") { $0.batch_norm_epsilon = 1e-3 }
    contradict("random_second", "top_k") { ($0.random_second, $0.top_k) = (1, 3) }
  }

  @Test func numbersOfExperts() {
    contradict("dynamic_value", "dynamic_k") { $0.dynamic_value = 0.5 }
    contradict("min_k", "dynamic_k") { $0.min_k = 1 }
    contradict("dynamic_value", "dynamic_k") { $0.dynamic_k = MOE_DYNAMIC_K_TOP_P.int32 }
    contradict("dynamic_value", "dynamic_k") { $0.dynamic_k = MOE_DYNAMIC_K_THRESHOLD.int32 }
    contradict("min_k", "top_k") { ($0.dynamic_k, $0.min_k) = (MOE_DYNAMIC_K_COMPLEXITY.int32, 3) }
    contradict("warmup_experts", "warmup_steps") { $0.warmup_experts = 3 }
    contradict("warmup_experts", "top_k") { ($0.warmup_steps, $0.warmup_experts) = (10, 1) }
    contradict("warmup_experts", "n_experts") { ($0.warmup_steps, $0.warmup_experts) = (10, 5) }
    contradict("warmup_steps", "n_groups") { ($0.warmup_steps, $0.n_groups, $0.top_groups) = (10, 2, 1) }
  }

  // MARK: capacity

  @Test func withoutCapacity() {
    func contradictNone(_ field: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change) {
      contradict(field, "capacity_formula", sourceLocation: sourceLocation, change)
    }
    contradictNone("capacity") { $0.capacity = 3 }
    contradictNone("min_capacity") { $0.min_capacity = 3 }
    contradictNone("capacity_factor") { $0.capacity_factor = 2 }
    contradictNone("eval_capacity_factor") { $0.eval_capacity_factor = 2 }
    contradictNone("capacity_per_sequence") { $0.capacity_per_sequence = 1 }
    contradictNone("drop") { $0.drop = 1 }
    contradictNone("overflow") { $0.overflow = 1 }
    contradictNone("adaptive_capacity") { $0.adaptive_capacity = 1 }
    contradictNone("renormalize") { $0.renormalize = 1 }
    contradict("renormalize", "random_second") { $0.renormalize = 1 }
  }

  @Test func capacityFormulas() {
    func contradictFormula(
      _ formula: moe_capacity, _ field: String, sourceLocation: SourceLocation = #_sourceLocation, _ change: Change
    ) {
      contradict(field, "capacity_formula", sourceLocation: sourceLocation) {
        $0.capacity_formula = formula.int32
        if formula == MOE_CAPACITY_CONSTANT { $0.capacity = 3 }
        change(&$0)
      }
    }
    contradictFormula(MOE_CAPACITY_CONSTANT, "capacity") { $0.capacity = 0 }
    contradictFormula(MOE_CAPACITY_CONSTANT, "min_capacity") { $0.min_capacity = 3 }
    contradictFormula(MOE_CAPACITY_CONSTANT, "capacity_factor") { $0.capacity_factor = 2 }
    contradictFormula(MOE_CAPACITY_CONSTANT, "eval_capacity_factor") { $0.eval_capacity_factor = 2 }
    contradictFormula(MOE_CAPACITY_MEGATRON, "capacity") { $0.capacity = 3 }
    contradictFormula(MOE_CAPACITY_MEGATRON, "capacity_factor") { $0.capacity_factor = -1 }
    contradictFormula(MOE_CAPACITY_CLASSIC, "eval_capacity_factor") { $0.eval_capacity_factor = -1 }
    contradictFormula(MOE_CAPACITY_NLLB, "capacity_factor") { $0.capacity_factor = 2 }
  }

  @Test func droppingAndDividing() {
    func tight(_ change: @escaping Change) -> Change {
      {
        ($0.capacity_formula, $0.capacity_factor) = (MOE_CAPACITY_MEGATRON.int32, 0.5)
        change(&$0)
      }
    }
    for weights in [MOE_ROUTER_WEIGHTS_SCORES, MOE_ROUTER_WEIGHTS_TOPK_SIGMOID, MOE_ROUTER_WEIGHTS_EQUAL] {
      contradict(
        "renormalize", "router_normalize",
        tight {
          ($0.renormalize, $0.router_normalize, $0.router_weights) = (1, MOE_NORMALIZE_NONE.int32, weights.int32)
        })
    }
    let expertChoice = MOE_ROUTER_EXPERT_CHOICE.int32
    contradict("drop", "router", tight { ($0.router, $0.drop) = (expertChoice, 1) })
    contradict("overflow", "router", tight { ($0.router, $0.overflow) = (expertChoice, 1) })
    contradict("renormalize", "router", tight { ($0.router, $0.renormalize) = (expertChoice, 1) })
    contradict("adaptive_capacity", "router", tight { ($0.router, $0.adaptive_capacity) = (expertChoice, 1) })
    for (name, field) in [
      ("adaptive_high", \moe_layer_config.adaptive_high), ("adaptive_high_factor", \.adaptive_high_factor),
      ("adaptive_low", \.adaptive_low), ("adaptive_low_factor", \.adaptive_low_factor),
    ] {
      contradict(name, "adaptive_capacity", tight { $0[keyPath: field] = 1 })
    }
    contradict("adaptive_low", "adaptive_high", tight { ($0.adaptive_capacity, $0.adaptive_low) = (1, 2) })
  }

  // MARK: memory

  @Test func gradientsOfALayerWithoutAny() {
    contradict("unallocated", "inference_only") {
      ($0.unallocated, $0.inference_only) = (MOE_UNALLOCATED_EXPERT_GRADIENTS.int32, 1)
    }
  }

  // MARK: losses

  @Test func losses() {
    contradict("n_losses", "losses") { $0.n_losses = 1 }
    contradict("n_losses", "losses") { $0.losses = UnsafePointer(loss) }
    loss.pointee.kind = MOE_LOSS_LOAD.int32
    contradict("losses", "noise") { ($0.losses, $0.n_losses) = (UnsafePointer(loss), 1) }
    contradict("losses", "router") {
      ($0.losses, $0.n_losses, $0.noise, $0.router) = (UnsafePointer(loss), 1, 2, MOE_ROUTER_SINKHORN.int32)
    }
  }
}
