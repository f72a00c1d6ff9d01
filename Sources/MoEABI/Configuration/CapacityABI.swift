import CMoE
import MoE

extension Capacity {
  /// nil where experts have room for all.
  init?(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    guard config.capacity_formula != 0 else {
      try refuseAll(config)
      return nil
    }
    let formula: Formula = try named(config.capacity_formula)
    self.init(formula: formula)
    if router.traits.needsChoices {
      throw .invalid(
        "capacity_formula = \(Int(config.capacity_formula)), but router = MOE_ROUTER_EXTERNAL: its choices are final")
    }
    if formula == .constant {
      if config.capacity == 0 { throw .invalid("capacity = 0, but capacity_formula = MOE_CAPACITY_CONSTANT") }
      if config.min_capacity != 0 {
        throw .invalid(
          "min_capacity = \(Int(config.min_capacity)), but capacity_formula = MOE_CAPACITY_CONSTANT has capacity alone")
      }
      constant = Int(config.capacity)
    } else if config.capacity != 0 {
      throw .invalid(
        "capacity = \(Int(config.capacity)), but capacity_formula = \(Int(config.capacity_formula)) is not MOE_CAPACITY_CONSTANT"
      )
    }
    least = config.min_capacity == 0 ? nil : Int(config.min_capacity)
    factor = try factorOf(config.capacity_factor, "capacity_factor", config)
    evaluationFactor = try factorOf(config.eval_capacity_factor, "eval_capacity_factor", config)
    if formula == .nllb && factor != nil {
      throw .invalid(
        "capacity_factor = \(config.capacity_factor), but capacity_formula = MOE_CAPACITY_NLLB has eval_capacity_factor alone"
      )
    }
    perSequence = config.capacity_per_sequence == 1
    order = try named(config.drop)
    nextBest = config.overflow == Int32(MOE_OVERFLOW_NEXT_BEST.rawValue)
    adaptive = try Adaptive(config)
    if !router.traits.admits {
      let name: StaticString? =
        order != .position
        ? "drop"
        : nextBest ? "overflow" : config.renormalize != 0 ? "renormalize" : adaptive != nil ? "adaptive_capacity" : nil
      if let name { throw .invalid("\(name) has no use with router = MOE_ROUTER_EXPERT_CHOICE, which drops nothing") }
    }
  }
}

/// nil for 0: as the formula says.
private func factorOf(_ value: Double, _ name: StaticString, _ config: moe_layer_config) throws(Fault) -> Double? {
  if value == 0 { return nil }
  if value < 0 && config.capacity_formula != Int32(MOE_CAPACITY_TUTEL.rawValue) {
    throw .invalid(
      "\(name) = \(value) is negative, but capacity_formula = \(Int(config.capacity_formula)) is not MOE_CAPACITY_TUTEL"
    )
  }
  if config.capacity_formula == Int32(MOE_CAPACITY_CONSTANT.rawValue) {
    throw .invalid("\(name) = \(value), but capacity_formula = MOE_CAPACITY_CONSTANT")
  }
  return value
}

/// Without capacity every other field about it is 0.
private func refuseAll(_ config: moe_layer_config) throws(Fault) {
  let name: StaticString? =
    config.capacity != 0
    ? "capacity"
    : config.min_capacity != 0
      ? "min_capacity"
      : config.capacity_factor != 0
        ? "capacity_factor"
        : config.eval_capacity_factor != 0
          ? "eval_capacity_factor"
          : config.capacity_per_sequence != 0
            ? "capacity_per_sequence"
            : config.drop != 0
              ? "drop"
              : config.overflow != 0
                ? "overflow"
                : config.adaptive_capacity != 0 ? "adaptive_capacity" : nil
  if let name { throw .invalid("\(name) is not 0, but capacity_formula = MOE_CAPACITY_NONE") }
  _ = try Capacity.Adaptive(config)
}

extension Capacity.Adaptive {
  /// nil where the room is the same for all experts.
  fileprivate init?(_ config: moe_layer_config) throws(Fault) {
    func value(_ value: Double, _ name: StaticString, _ usual: Double) throws(Fault) -> Double {
      if value != 0 && config.adaptive_capacity == 0 { throw .invalid("\(name) = \(value), but adaptive_capacity = 0") }
      return value == 0 ? usual : value
    }
    let high = try value(config.adaptive_high, "adaptive_high", 1.5)
    let highFactor = try value(config.adaptive_high_factor, "adaptive_high_factor", 1.2)
    let low = try value(config.adaptive_low, "adaptive_low", 0.5)
    let lowFactor = try value(config.adaptive_low_factor, "adaptive_low_factor", 0.8)
    guard config.adaptive_capacity == 1 else { return nil }
    if low > high { throw .invalid("adaptive_low = \(low) exceeds adaptive_high = \(high)") }
    self.init(high: high, highFactor: highFactor, low: low, lowFactor: lowFactor)
  }
}
