import CMoE
import MoE

extension Exploration {
  init(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    self.init()
    noise = try named(config.noise)
    if (noise == .gaussian) != (config.noise_std > 0) {
      throw .invalid(
        "noise_std = \(Double(config.noise_std)) beside noise = \(Int(config.noise)): one goes with MOE_NOISE_GAUSSIAN")
    }
    noiseDeviation = config.noise_std
    jitter = config.jitter
    jitterExperts = config.jitter_experts == 1
    if jitterExperts && jitter == 0 { throw .invalid("jitter_experts = 1, but jitter = 0") }
    dropout = config.router_dropout
    dropoutOnLogits = config.router_dropout_on == Int32(MOE_ROUTER_DROPOUT_LOGITS.rawValue)
    if dropoutOnLogits && dropout == 0 {
      throw .invalid("router_dropout_on = \(Int(config.router_dropout_on)), but router_dropout = 0")
    }
    batchNorm = try BatchNorm(config)
    randomSecond = config.random_second == 1
    if randomSecond && (config.top_k != 2 || !router.traits.takes.contains(.randomSecond)) {
      throw .invalid(
        "random_second = 1 needs top_k = 2 and router = 0, but they are \(Int(config.top_k)) and \(Int(config.router))")
    }
  }
}

extension Exploration.BatchNorm {
  /// nil where there is none.
  fileprivate init?(_ config: moe_layer_config) throws(Fault) {
    let (momentum, epsilon) = (config.batch_norm_momentum, config.batch_norm_epsilon)
    guard config.router_batch_norm == 1 else {
      if momentum != 0 { throw .invalid("batch_norm_momentum = \(Double(momentum)), but router_batch_norm = 0") }
      if epsilon != 0 { throw .invalid("batch_norm_epsilon = \(Double(epsilon)), but router_batch_norm = 0") }
      return nil
    }
    self.init(momentum: momentum == 0 ? 0.1 : momentum, epsilon: epsilon == 0 ? 1e-5 : epsilon)
  }
}

extension DynamicK {
  /// nil where every token has K.
  init?(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    if config.dynamic_k == 0 {
      if config.dynamic_value != 0 {
        throw .invalid("dynamic_value = \(Double(config.dynamic_value)), but dynamic_k = MOE_DYNAMIC_K_NONE")
      }
      if config.min_k != 0 { throw .invalid("min_k = \(Int(config.min_k)), but dynamic_k = MOE_DYNAMIC_K_NONE") }
      return nil
    }
    if config.min_k > config.top_k {
      throw .invalid("min_k = \(Int(config.min_k)) exceeds top_k = \(Int(config.top_k))")
    }
    let rule: Rule = try named(config.dynamic_k)
    if !router.traits.takes.contains(.dynamicK) {
      throw .invalid(
        "dynamic_k = \(Int(config.dynamic_k)), but router = \(Int(config.router)) is not MOE_ROUTER_TOKEN_CHOICE")
    }
    if config.dynamic_value == 0 && rule != .complexity {
      throw .invalid("dynamic_value = 0, but dynamic_k = \(Int(config.dynamic_k)) needs one above 0")
    }
    self.init(
      rule: rule, value: config.dynamic_value == 0 ? 10 : config.dynamic_value, least: max(1, Int(config.min_k)))
  }
}

extension RouterNorm.Options {
  /// nil where there is none.
  init?(_ config: moe_layer_config) throws(Fault) {
    if config.router_norm == 0 {
      func refuse(_ name: StaticString, _ value: Float) throws(Fault) {
        if value != 0 { throw .invalid("\(name) = \(Double(value)), but router_norm = MOE_ROUTER_NORM_NONE") }
      }
      try refuse("router_norm_scale", config.router_norm_scale)
      try refuse("router_norm_epsilon", config.router_norm_epsilon)
      return nil
    }
    if config.router_batch_norm != 0 {
      throw .invalid("router_norm = \(Int(config.router_norm)) beside router_batch_norm = 1: the gate has one norm")
    }
    self.init(
      hasWeight: config.router_norm == Int32(MOE_ROUTER_NORM_RMS_WEIGHT.rawValue),
      scale: config.router_norm_scale == 0
        ? Float(1 / Double(config.hidden_size).squareRoot()) : config.router_norm_scale,
      epsilon: config.router_norm_epsilon == 0 ? 1e-6 : Double(config.router_norm_epsilon))
  }
}

extension Warmup {
  /// nil where all experts are in use from the start.
  init?(_ config: moe_layer_config, _ router: Configuration.RouterKind) throws(Fault) {
    if config.warmup_steps == 0 {
      if config.warmup_experts != 0 {
        throw .invalid("warmup_experts = \(Int(config.warmup_experts)), but warmup_steps = 0")
      }
      return nil
    }
    let start = config.warmup_experts == 0 ? config.top_k : config.warmup_experts
    if start < config.top_k || start > config.n_experts {
      throw .invalid(
        "warmup_experts = \(Int(config.warmup_experts)) is not from top_k = \(Int(config.top_k)) to n_experts = \(Int(config.n_experts))"
      )
    }
    if config.n_groups > 0 {
      throw .invalid(
        "warmup_steps = \(Int(config.warmup_steps)) beside n_groups = \(Int(config.n_groups)): whole groups would be closed"
      )
    }
    if router.traits.gate != .forChoices {
      throw .invalid(
        "warmup_steps = \(Int(config.warmup_steps)), but router = \(Int(config.router)) does not choose by logits")
    }
    self.init(steps: Int(config.warmup_steps), start: Int(start))
  }
}
