import CMoE
import CShims
import MoE

// The fields about experts become groups of them: those that are listed, or the one that is described in the config itself,
// then the shared experts.

/// Room for the groups of one layer, on the stack.
struct GroupList {
  private var groups: InlineArray<17, ExpertGroup>  // 16 and the shared experts
  private var count = 0

  init() {
    groups = InlineArray(
      repeating: ExpertGroup(
        kind: .zero, hidden: 1, intermediate: 1, experts: 1, activation: moei_activation(), hasBias: false,
        dropout: 0, weights: .f32, weightOnInput: false, isShared: false))
  }

  mutating func withPointer(
    _ body: (UnsafePointer<ExpertGroup>, Int) throws(Fault) -> Void
  ) throws(Fault) {
    let count = count
    try withUnsafeMutablePointer(to: &groups) { (groups) throws(Fault) in
      try body(UnsafeRawPointer(groups).assumingMemoryBound(to: ExpertGroup.self), count)
    }
  }

  mutating func fill(_ config: moe_layer_config) throws(Fault) {
    _ = try product(
      Int(config.n_experts) * Int(config.hidden_size), 4, "the size of n_experts * hidden_size floats of a gate")
    if config.n_expert_groups == 0 {
      if config.expert_groups != nil { throw .invalid("n_expert_groups = 0, but expert_groups is not NULL") }
      let own = moe_expert_group(describedBy: config)
      if own.expert_kind > MOE_EXPERT_LINEAR.rawValue && own.expert_kind <= MOE_EXPERT_CONSTANT.rawValue {
        throw .invalid("expert_kind = \(Int(own.expert_kind)) is for expert_groups, but n_expert_groups = 0")
      }
      groups[0] = try ExpertGroup(own, config, shared: false)
      count = 1
    } else {
      try fillFromList(config)
    }
    try addShared(config)
  }

  private mutating func fillFromList(_ config: moe_layer_config) throws(Fault) {
    if config.expert_groups == nil {
      throw .invalid("n_expert_groups = \(Int(config.n_expert_groups)), but expert_groups is NULL")
    }
    let list = try required(config.expert_groups, "expert_groups")
    try requireZero(Int(config.intermediate_size), "intermediate_size")
    try requireZero(Int(config.expert_kind), "expert_kind")
    try requireZero(Int(config.activation), "activation")
    try requireZero(Int(config.expert_bias), "expert_bias")
    try requireZero(config.dropout, "dropout")
    try requireZero(config.glu_limit, "glu_limit")
    try requireZero(config.glu_alpha, "glu_alpha")
    try requireZero(config.glu_offset, "glu_offset")
    var total = 0
    for g in 0..<Int(config.n_expert_groups) {
      try list[g].requireBounds(Bounds("expert_groups"))
      groups[g] = try ExpertGroup(list[g], config, shared: false)
      total += Int(list[g].n_experts)
    }
    if total != Int(config.n_experts) {
      throw .invalid("expert_groups have \(total) experts together, but n_experts = \(Int(config.n_experts))")
    }
    count = Int(config.n_expert_groups)
  }

  private mutating func addShared(_ config: moe_layer_config) throws(Fault) {
    // Experts of both kinds are numbered in 32 bits together.
    try require(
      Int(config.n_shared_experts), "n_shared_experts", from: 0, to: Int(Int32.max) - Int(config.n_experts))
    guard config.n_shared_experts > 0 else {
      if config.shared_intermediate_size != 0 {
        throw .invalid(
          "shared_intermediate_size = \(Int(config.shared_intermediate_size)), but n_shared_experts = 0")
      }
      if config.shared_gate != 0 {
        throw .invalid("shared_gate = \(Int(config.shared_gate)), but n_shared_experts = 0")
      }
      if config.shared_bias != 0 {
        throw .invalid("shared_bias = \(Int(config.shared_bias)), but n_shared_experts = 0")
      }
      return
    }
    var own = config.n_expert_groups > 0 ? config.expert_groups![0] : moe_expert_group(describedBy: config)
    if !groups[0].multiplies {
      throw .invalid(
        "n_shared_experts = \(Int(config.n_shared_experts)), but the first of expert_groups has no matrices")
    }
    own.n_experts = config.n_shared_experts
    if config.shared_intermediate_size != 0 { own.intermediate_size = config.shared_intermediate_size }
    if config.shared_bias != 0 { own.expert_bias = config.shared_bias }
    groups[count] = try ExpertGroup(own, config, shared: true)
    count += 1
  }
}

extension moe_expert_group {
  /// The one group of a layer that lists none.
  fileprivate init(describedBy config: moe_layer_config) {
    self.init()
    n_experts = config.n_experts
    intermediate_size = config.intermediate_size
    expert_kind = config.expert_kind
    activation = config.activation
    expert_bias = config.expert_bias
    dropout = config.dropout
    (glu_limit, glu_alpha, glu_offset) = (config.glu_limit, config.glu_alpha, config.glu_offset)
  }
}

private func requireZero(_ value: Int, _ name: StaticString) throws(Fault) {
  if value != 0 { throw .invalid("\(name) = \(value), but n_expert_groups is not 0: expert_groups say it") }
}

private func requireZero(_ value: Float, _ name: StaticString) throws(Fault) {
  if value != 0 { throw .invalid("\(name) = \(Double(value)), but n_expert_groups is not 0: expert_groups say it") }
}

extension ExpertGroup {
  init(_ group: moe_expert_group, _ config: moe_layer_config, shared: Bool) throws(Fault) {
    let kind: Kind = try named(group.expert_kind)
    let multiplies = kind == .mlp || kind == .gated || kind == .linear
    let width: StaticString = shared ? "shared_intermediate_size" : "intermediate_size"
    let intermediate = try intermediateSize(group, config, kind, width)
    try require(intermediate, width, from: 1, to: Int(Int32.max))
    // 2^62 at most, so the first product fits; the largest tensor's bytes may not.
    let largestMatrix = Int(config.hidden_size) * intermediate
    let elements = try product(largestMatrix, Int(group.n_experts), "hidden_size * intermediate_size * n_experts")
    _ = try product(elements, 4, "the size of hidden_size * intermediate_size * n_experts floats")
    let activation = moei_activation_kind(rawValue: UInt32(group.activation))
    if kind != .mlp && kind != .gated {
      if group.dropout != 0 {
        throw .invalid(
          "dropout = \(Double(group.dropout)), but expert_kind = \(Int(group.expert_kind)) has no inner features")
      }
      if group.activation != 0 {
        throw .invalid(
          "activation = \(Int(group.activation)), but expert_kind = \(Int(group.expert_kind)) has no inner features")
      }
    }
    let hasBias = bias(group.expert_bias, default: multiplies && kind != .gated)
    if hasBias && !multiplies {
      throw .invalid(
        "expert_bias = \(Int(group.expert_bias)), but expert_kind = \(Int(group.expert_kind)) has no matrices")
    }
    self.init(
      kind: kind, hidden: Int(config.hidden_size), intermediate: intermediate, experts: Int(group.n_experts),
      activation: try between(group, activation), hasBias: hasBias, dropout: group.dropout,
      weights: try elementType(config.weight_dtype, "weight_dtype"),
      weightOnInput: config.weight_on_input == 1 && !shared, isShared: shared)
  }
}

private func intermediateSize(
  _ group: moe_expert_group, _ config: moe_layer_config, _ kind: ExpertGroup.Kind, _ name: StaticString
) throws(Fault) -> Int {
  switch kind {
  case .mlp, .gated: return Int(group.intermediate_size)
  case .linear:
    guard group.intermediate_size == 0 || group.intermediate_size == config.hidden_size else {
      throw .invalid(
        "\(name) = \(Int(group.intermediate_size)) of linear experts is neither 0 nor hidden_size = \(Int(config.hidden_size))"
      )
    }
    return Int(config.hidden_size)
  case .identity, .zero, .constant:
    if group.intermediate_size != 0 {
      throw .invalid(
        "\(name) = \(Int(group.intermediate_size)), but expert_kind = \(Int(group.expert_kind)) has no inner features"
      )
    }
    return 1
  }
}

/// What experts do between their products.
private func between(_ group: moe_expert_group, _ kind: moei_activation_kind) throws(Fault) -> moei_activation {
  func check(_ value: Float, _ name: StaticString) throws(Fault) {
    if value != 0 && group.expert_kind != Int32(MOE_EXPERT_GATED.rawValue) {
      throw .invalid("\(name) = \(Double(value)), but expert_kind is not MOE_EXPERT_GATED")
    }
  }
  try check(group.glu_limit, "glu_limit")
  try check(group.glu_alpha, "glu_alpha")
  try check(group.glu_offset, "glu_offset")
  if group.glu_alpha != 0 && group.activation != Int32(MOE_ACTIVATION_SILU.rawValue) {
    throw .invalid("glu_alpha = \(Double(group.glu_alpha)), but activation is not MOE_ACTIVATION_SILU")
  }
  return moei_activation(
    kind: kind, alpha: group.glu_alpha == 0 ? 1 : group.glu_alpha,
    limit: group.glu_limit == 0 ? .infinity : group.glu_limit, offset: group.glu_offset)
}

/// What a moe_bias comes to.
func bias(_ value: Int32, default: Bool) -> Bool {
  value == number(MOE_BIAS_DEFAULT) ? `default` : value == number(MOE_BIAS_ON)
}
