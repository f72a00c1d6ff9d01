/// Names and forms of a layer's tensors in the checkpoints of known models; sources in docs/checkpoints.md. Never guessed:
/// the same shapes may mean different things. Numbers as in moe_layout.
public enum Layout: Int32 {
  case libmoe = 0
  case mixtral = 1
  case qwen2MoE = 2
  case qwen3MoE = 3
  case olmoe = 4
  case deepSeek = 5
  case gptOSS = 6
  case gptOSSMXFP4 = 7
  case llama4 = 8
  case graniteMoE = 9
  case dbrx = 10
  case switchEncoder = 11
  case switchDecoder = 12
  case transformers5 = 13
  case llama4Text = 14

  /// What stands before and behind the layer's number at the beginning of each name.
  private var prefix: (StaticString, StaticString) {
    switch self {
    case .libmoe: ("layers.", ".")
    case .mixtral, .graniteMoE: ("model.layers.", ".block_sparse_moe.")
    case .qwen2MoE, .qwen3MoE, .olmoe, .deepSeek, .gptOSS, .gptOSSMXFP4, .transformers5: ("model.layers.", ".mlp.")
    case .llama4: ("language_model.model.layers.", ".feed_forward.")
    case .llama4Text: ("model.layers.", ".feed_forward.")
    case .dbrx: ("transformer.blocks.", ".ffn.")
    case .switchEncoder: ("encoder.block.", ".layer.1.mlp.")
    case .switchDecoder: ("decoder.block.", ".layer.2.mlp.")
    }
  }

  /// The beginning of a tensor's name; without a number (of libmoe's layout alone) there is none.
  func begin(_ text: inout TextBuffer, layer: Int?) {
    guard let layer else { return }
    text.append(prefix.0)
    text.append(layer)
    text.append(prefix.1)
  }

  /// Hands over every rule. Tensors of parameters that a layer does not have are not there.
  func rules(_ layer: Layer, _ visit: (TensorRule) throws(Fault) -> Void) throws(Fault) {
    switch self {
    case .libmoe:
      for index in 0..<layer.parameterCount {
        try visit(TensorRule(of: layer.parameter(index)))
      }
    case .mixtral:
      try visit(TensorRule("gate.weight", .plain, "router.weight"))
      try visit(TensorRule("experts.", .numbered(".w1.weight"), "experts.gate.weight"))
      try visit(TensorRule("experts.", .numbered(".w3.weight"), "experts.up.weight"))
      try visit(TensorRule("experts.", .numbered(".w2.weight"), "experts.down.weight"))
    case .qwen2MoE:
      try Self.numbered(visit)
      try Self.shared("shared_expert.", visit)
      try visit(TensorRule("shared_expert_gate.weight", .plain, "shared.router.weight", isOptional: true))
    case .qwen3MoE, .olmoe: try Self.numbered(visit)
    case .deepSeek:
      try Self.numbered(visit)
      try visit(TensorRule("gate.e_score_correction_bias", .plain, "router.selection_bias", isOptional: true))
      try Self.shared("shared_experts.", visit)
    case .gptOSS, .gptOSSMXFP4: try gptOSS(visit)
    case .llama4, .llama4Text:
      try visit(TensorRule("router.weight", .plain, "router.weight"))
      try visit(
        TensorRule("experts.gate_up_proj", .stacked, "experts.gate.weight", "experts.up.weight", transposed: true))
      try visit(TensorRule("experts.down_proj", .stacked, "experts.down.weight", transposed: true))
      try Self.shared("shared_expert.", visit)
    case .graniteMoE:
      try visit(TensorRule("router.layer.weight", .plain, "router.weight"))
      try visit(TensorRule("input_linear.weight", .stacked, "experts.gate.weight", "experts.up.weight"))
      try visit(TensorRule("output_linear.weight", .stacked, "experts.down.weight"))
    case .dbrx:
      try visit(TensorRule("router.layer.weight", .plain, "router.weight"))
      try visit(TensorRule("experts.mlp.w1", .flattened, "experts.gate.weight"))
      try visit(TensorRule("experts.mlp.v1", .flattened, "experts.up.weight"))
      try visit(TensorRule("experts.mlp.w2", .flattened, "experts.down.weight", transposed: true))
    case .switchEncoder, .switchDecoder:
      try visit(TensorRule("router.classifier.weight", .plain, "router.weight"))
      try visit(TensorRule("experts.expert_", .numbered(".wi.weight"), "experts.up.weight"))
      try visit(TensorRule("experts.expert_", .numbered(".wo.weight"), "experts.down.weight"))
    case .transformers5:
      try visit(TensorRule("gate.weight", .plain, "router.weight"))
      try visit(TensorRule("gate.e_score_correction_bias", .plain, "router.selection_bias", isOptional: true))
      try visit(TensorRule("experts.gate_up_proj", .stacked, "experts.gate.weight", "experts.up.weight"))
      try visit(TensorRule("experts.down_proj", .stacked, "experts.down.weight"))
      // Qwen2's shared expert has a gate, DeepSeek's has none and another name.
      if layer.configuration.sharedGate == .sigmoid {
        try Self.shared("shared_expert.", visit)
        try visit(TensorRule("shared_expert_gate.weight", .plain, "shared.router.weight", isOptional: true))
      } else {
        try Self.shared("shared_experts.", visit)
      }
    }
  }

  private static func numbered(_ visit: (TensorRule) throws(Fault) -> Void) throws(Fault) {
    try visit(TensorRule("gate.weight", .plain, "router.weight"))
    try visit(TensorRule("experts.", .numbered(".gate_proj.weight"), "experts.gate.weight"))
    try visit(TensorRule("experts.", .numbered(".up_proj.weight"), "experts.up.weight"))
    try visit(TensorRule("experts.", .numbered(".down_proj.weight"), "experts.down.weight"))
  }

  private static func shared(
    _ name: StaticString, _ visit: (TensorRule) throws(Fault) -> Void
  ) throws(Fault) {
    // A shared expert is like one more of the numbered ones, without a number.
    try visit(TensorRule(name, .single("gate_proj.weight"), "shared.gate.weight", isOptional: true))
    try visit(TensorRule(name, .single("up_proj.weight"), "shared.up.weight", isOptional: true))
    try visit(TensorRule(name, .single("down_proj.weight"), "shared.down.weight", isOptional: true))
  }

  private func gptOSS(_ visit: (TensorRule) throws(Fault) -> Void) throws(Fault) {
    let packed = self == .gptOSSMXFP4
    try visit(TensorRule("router.weight", .plain, "router.weight"))
    try visit(TensorRule("router.bias", .plain, "router.bias"))
    // Packed matrices are not transposed: the numbers of a block stand along what is summed.
    try visit(
      TensorRule(
        "experts.gate_up_proj", packed ? .mxfp4 : .stacked, "experts.gate.weight", "experts.up.weight",
        interleaved: true, transposed: !packed))
    try visit(
      TensorRule("experts.gate_up_proj_bias", .stacked, "experts.gate.bias", "experts.up.bias", interleaved: true))
    try visit(
      TensorRule("experts.down_proj", packed ? .mxfp4 : .stacked, "experts.down.weight", transposed: !packed))
    try visit(TensorRule("experts.down_proj_bias", .stacked, "experts.down.bias"))
  }
}
