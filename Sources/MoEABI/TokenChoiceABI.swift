import CMoE
import MoE

extension TokenChoice {
  /// The one place where the fields about routing become a plan, and where contradictions are found.
  init(_ config: moe_layer_config) throws(Fault) {
    self.init()
    score = try named(config.score, "score", "moe_score")
    weights = try named(config.router_weights, "router_weights", "moe_router_weights")
    normalization = try named(config.router_normalize, "router_normalize", "moe_normalize")
    epsilonForm = try named(config.epsilon_form, "epsilon_form", "moe_epsilon")
    if weights != .scores && score != .softmax {
      throw .invalid(
        "score = \(Int(config.score)) has no use with router_weights = \(Int(config.router_weights)) of the logits")
    }
    try require(Double(config.normalize_epsilon), "normalize_epsilon", atLeast: 0)
    try require(Double(config.routed_scale), "routed_scale", atLeast: 0)
    epsilon = config.normalize_epsilon
    if epsilon > 0 && (normalization == .none || weights == .topKSoftmax) {
      throw .invalid(
        "normalize_epsilon = \(Double(epsilon)) has no use where router_normalize or router_weights do not divide")
    }
    scale = config.routed_scale == 0 ? 1 : config.routed_scale
    selectionBias = try flag(config.selection_bias, "selection_bias")
    expertScale = try flag(config.expert_scale, "expert_scale")
    groups = try Groups(config)
  }
}

extension TokenChoice.Groups {
  /// nil where there are none.
  fileprivate init?(_ config: moe_layer_config) throws(Fault) {
    let (experts, count) = (Int(config.n_experts), Int(config.n_groups))
    guard count != 0 else {
      if config.top_groups != 0 || config.group_top_m != 0 || config.group_mask != 0 {
        throw .invalid("top_groups, group_top_m and group_mask are 0 where n_groups = 0")
      }
      return nil
    }
    try require(count, "n_groups", from: 1, to: experts)
    if experts % count != 0 { throw .invalid("n_groups = \(count) does not divide n_experts = \(experts)") }
    let (size, chosen) = (experts / count, Int(config.top_groups))
    try require(chosen, "top_groups", from: 1, to: count)
    if chosen * size < Int(config.top_k) {
      throw .invalid("top_k = \(Int(config.top_k)) exceeds the \(chosen * size) experts of top_groups = \(chosen)")
    }
    try require(Int(config.group_top_m), "group_top_m", from: 0, to: size)
    guard config.group_mask == 0 || config.group_mask == 1 else {
      throw .invalid("group_mask = \(Int(config.group_mask)) is not a moe_group_mask")
    }
    self.init(
      count: count, chosen: chosen, best: max(1, Int(config.group_top_m)), excludedAreZero: config.group_mask == 1)
  }
}

private func named<E: RawRepresentable>(
  _ value: Int32, _ field: StaticString, _ type: StaticString
) throws(Fault) -> E where E.RawValue == Int32 {
  guard let found = E(rawValue: value) else { throw .invalid("\(field) = \(Int(value)) is not a \(type)") }
  return found
}
