import CMoE
import MoE

extension TokenChoice {
  /// Which experts are chosen, and how they weigh.
  init(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    self.init()
    score = try named(config.score)
    weights = try named(config.router_weights)
    normalization = try named(config.router_normalize)
    epsilonForm = try named(config.epsilon_form)
    if weights != .scores && weights != .equal && score != .softmax {
      throw .invalid(
        "score = \(Int(config.score)) has no use with router_weights = \(Int(config.router_weights)) of the logits")
    }
    epsilon = config.normalize_epsilon
    if epsilon > 0 && (normalization == .none || weights == .topKSoftmax) {
      throw .invalid(
        "normalize_epsilon = \(Double(epsilon)) has no use where router_normalize or router_weights do not divide")
    }
    if epsilon == 0 && epsilonForm != .added {
      throw .invalid("epsilon_form = \(Int(config.epsilon_form)), but normalize_epsilon = 0")
    }
    if weights == .topKSoftmax && normalization != .sum && normalization != .none {
      throw .invalid(
        "router_normalize = \(Int(config.router_normalize)) has no use with router_weights = MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX"
      )
    }
    if normalization == .normP ? config.normalize_p < 1 : config.normalize_p != 0 {
      throw .invalid(
        "normalize_p = \(Double(config.normalize_p)) beside router_normalize = \(Int(config.router_normalize)): MOE_NORMALIZE_NORMP has one of at least 1"
      )
    }
    normP = config.normalize_p
    if (weights == .sparseMixer) != (config.mask_threshold > 0) {
      throw .invalid(
        "mask_threshold = \(Double(config.mask_threshold)) beside router_weights = \(Int(config.router_weights)): MOE_ROUTER_WEIGHTS_SPARSEMIXER has one above 0"
      )
    }
    maskThreshold = config.mask_threshold
    scale = config.routed_scale == 0 ? 1 : config.routed_scale
    selectionBias = config.selection_bias == 1
    expertScale = config.expert_scale == 1
    groups = try Groups(config)
    try refuse(config, router)
  }

  /// What has no meaning beside the router.
  private func refuse(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    func no(_ name: StaticString) -> Fault { .invalid("\(name) has no use with router = \(Int(config.router))") }
    let traits = router.traits
    if selectionBias && !traits.takes.contains(.selectionBias) { throw no("selection_bias") }
    if weights == .groupSoftmax && !traits.hasCoarseGate {
      throw no("router_weights = MOE_ROUTER_WEIGHTS_GROUP_SOFTMAX")
    }
    if weights == .sparseMixer && !traits.takes.contains(.sparseMixer) {
      throw no("router_weights = MOE_ROUTER_WEIGHTS_SPARSEMIXER")
    }
    if groups != nil && !traits.takes.contains(.groups) { throw no("n_groups") }
    if traits.weighsByLogits && (weights != .scores || score != .identity) {
      throw .invalid(
        "score = \(Int(config.score)) and router_weights = \(Int(config.router_weights)) beside router = \(Int(config.router)), whose weights are positive logits: set MOE_SCORE_IDENTITY and MOE_ROUTER_WEIGHTS_SCORES"
      )
    }
    if traits.hasCoarseGate { try requireGroups(config, no) }
    if traits.needsChoices {
      if expertScale { throw no("expert_scale") }
      if weights != .scores { throw no("router_weights") }
      if score != .softmax { throw no("score") }
      if config.routed_scale != 0 { throw no("routed_scale") }
      if normalization != .sum && normalization != .none { throw no("router_normalize") }
      if epsilon > 0 { throw no("normalize_epsilon") }
    }
  }

  /// Groups of a coarse gate.
  private func requireGroups(_ config: moe_layer_config, _ no: (StaticString) -> Fault) throws(Fault) {
    guard let groups else {
      throw .invalid("n_groups = 0, but router = MOE_ROUTER_HIERARCHICAL chooses among groups")
    }
    if groups.best > 1 { throw no("group_top_m") }
    if groups.excludedAreZero { throw no("group_mask") }
    let perGroup = Int(config.top_k) / groups.chosen
    if perGroup * groups.chosen != Int(config.top_k) {
      throw .invalid("top_groups = \(groups.chosen) does not divide top_k = \(Int(config.top_k))")
    }
    if perGroup > Int(config.n_experts) / groups.count {
      throw .invalid(
        "top_k = \(Int(config.top_k)) is more than n_groups = \(groups.count) leave in top_groups = \(groups.chosen)")
    }
  }
}

extension TokenChoice.Groups {
  /// nil where there are none.
  fileprivate init?(_ config: moe_layer_config) throws(Fault) {
    let (experts, count) = (Int(config.n_experts), Int(config.n_groups))
    if count == Int(MOE_NO_GROUPS) { return nil }
    guard count != 0 else {
      if config.top_groups != 0 || config.group_top_m != 0 || config.group_mask != 0 {
        throw .invalid("top_groups, group_top_m and group_mask are 0 where n_groups = 0")
      }
      return nil
    }
    try require(count, "n_groups", from: 1, to: Int(Int32.max))
    if experts % count != 0 { throw .invalid("n_groups = \(count) does not divide n_experts = \(experts)") }
    let (size, chosen) = (experts / count, Int(config.top_groups))
    guard chosen >= 1 && chosen <= count else {
      throw .invalid("top_groups = \(chosen) is not from 1 to n_groups = \(count)")
    }
    if chosen * size < Int(config.top_k) {
      throw .invalid("top_k = \(Int(config.top_k)) exceeds the \(chosen * size) experts of top_groups = \(chosen)")
    }
    guard config.group_top_m >= 0 && config.group_top_m <= size else {
      throw .invalid("group_top_m = \(Int(config.group_top_m)) of the \(size) experts in each of n_groups = \(count)")
    }
    self.init(
      count: count, chosen: chosen, best: max(1, Int(config.group_top_m)), excludedAreZero: config.group_mask == 1)
  }
}
