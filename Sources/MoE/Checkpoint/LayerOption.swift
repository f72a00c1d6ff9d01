/// What of a layer's configuration a parameter comes from: the cure that messages name.
enum LayerOption {
  static func with(_ parameter: UnsafePointer<CChar>) -> StaticString {
    switch Origin(parameter) {
    case .gate: "with a router that has a gate (router)"
    case .gateBias: "with router_bias"
    case .selectionBias: "with selection_bias"
    case .expertScale: "with expert_scale"
    case .coarse: "with a hierarchical router (router, n_groups)"
    case .noise: "with learned noise (noise)"
    case .norm: "with router_batch_norm or router_norm"
    case .warmup: "with warmup_steps"
    case .sharedGate: "with a shared_gate"
    case .expertBias: "with expert_bias"
    case .shared: "with n_shared_experts = 1 and their width as shared_intermediate_size"
    case .gated: "with gated experts (expert_kind)"
    case .experts: "with experts of that kind (expert_kind, expert_groups)"
    case .outputBias: "with output_bias"
    }
  }

  static func without(_ parameter: UnsafePointer<CChar>) -> StaticString {
    switch Origin(parameter) {
    case .gate: "with a router that has no gate (router)"
    case .gateBias: "without router_bias"
    case .selectionBias: "without selection_bias"
    case .expertScale: "without expert_scale"
    case .coarse: "with another router (router)"
    case .noise: "without learned noise (noise)"
    case .norm: "without router_batch_norm and router_norm"
    case .warmup: "without warmup_steps"
    case .sharedGate: "with a plain shared_gate"
    case .expertBias: "without expert_bias"
    case .shared: "without shared experts (n_shared_experts)"
    case .gated: "with experts that are not gated (expert_kind)"
    case .experts: "with experts of another kind (expert_kind, expert_groups)"
    case .outputBias: "without output_bias"
    }
  }

  /// Whether some layer may have a parameter that is called so, as far as its end shows.
  static func isParameter(_ name: UnsafePointer<CChar>) -> Bool {
    func ends(_ part: StaticString) -> Bool { hasEnd(name, cText(part)) }
    return ends(".weight") || ends(".bias") || ends("_bias") || ends("_scale") || ends(".constant")
      || ends(".running_mean")
      || ends(".running_var") || ends(".active_experts")
  }

  /// With a raw type, since that of others would bring a hash with a seed from the system.
  private enum Origin: UInt8 {
    case gate, gateBias, selectionBias, expertScale, coarse, noise, norm, warmup, sharedGate, expertBias, shared, gated
    case experts, outputBias

    init(_ name: UnsafePointer<CChar>) {
      func begins(_ part: StaticString) -> Bool { text(name, after: cText(part)) != nil }
      let isExpertBias = hasEnd(name, cText(".bias"))
      if begins("router.weight") {
        self = .gate
      } else if begins("router.bias") {
        self = .gateBias
      } else if begins("router.selection_bias") {
        self = .selectionBias
      } else if begins("router.expert_scale") {
        self = .expertScale
      } else if begins("router.coarse.") {
        self = .coarse
      } else if begins("router.noise.") {
        self = .noise
      } else if begins("router.norm.") {
        self = .norm
      } else if begins("router.active_experts") {
        self = .warmup
      } else if begins("shared.router.") {
        self = .sharedGate
      } else if begins("output.") {
        self = .outputBias
      } else if isExpertBias {
        self = .expertBias
      } else if begins("shared.") {
        self = .shared
      } else {
        self = begins("experts.gate.") ? .gated : .experts
      }
    }
  }
}
