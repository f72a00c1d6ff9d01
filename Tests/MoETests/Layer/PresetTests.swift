import CMoE
import Testing

@Suite("Presets")
struct PresetTests {
  struct Preset: Sendable, CustomTestStringConvertible {
    let name: String
    let fill: @convention(c) (UnsafeMutablePointer<moe_layer_config>?, Int) -> Void
    /// H, I, E, K, as the checkpoint's config.json has them.
    let sizes: [Float]
    /// What else is not 0.
    let fields: [String: Float]
    /// Nearly all models: SwiGLU experts, a gate without a bias.
    var gated = true

    var testDescription: String { name }
  }

  static let presets: [Preset] = [
    Preset(name: "mixtral", fill: moe_preset_mixtral, sizes: [4096, 14336, 8, 2], fields: [:]),
    Preset(
      name: "qwen2_moe", fill: moe_preset_qwen2_moe, sizes: [3584, 2560, 64, 8],
      fields: [
        "router_normalize": 1, "n_shared_experts": 1, "shared_intermediate_size": 20480, "shared_gate": 1,
      ]),
    Preset(name: "qwen3_moe", fill: moe_preset_qwen3_moe, sizes: [4096, 1536, 128, 8], fields: [:]),
    Preset(name: "olmoe", fill: moe_preset_olmoe, sizes: [2048, 1024, 64, 8], fields: ["router_normalize": 1]),
    Preset(
      name: "deepseek_v2", fill: moe_preset_deepseek_v2, sizes: [5120, 1536, 160, 6],
      fields: [
        "router_normalize": 1, "n_groups": 8, "top_groups": 3, "group_mask": 1, "routed_scale": 16,
        "n_shared_experts": 1, "shared_intermediate_size": 3072,
      ]),
    Preset(
      name: "deepseek_v3", fill: moe_preset_deepseek_v3, sizes: [7168, 2048, 256, 8],
      fields: [
        "score": 1, "selection_bias": 1, "n_groups": 8, "top_groups": 4, "group_top_m": 2, "normalize_epsilon": 1e-20,
        "routed_scale": 2.5, "n_shared_experts": 1, "shared_intermediate_size": 2048,
      ]),
    Preset(
      name: "glm4_moe", fill: moe_preset_glm4_moe, sizes: [5120, 1536, 160, 8],
      fields: [
        "score": 1, "selection_bias": 1, "normalize_epsilon": 1e-20, "routed_scale": 2.5, "n_shared_experts": 1,
        "shared_intermediate_size": 1536,
      ]),
    Preset(
      name: "gpt_oss", fill: moe_preset_gpt_oss, sizes: [2880, 2880, 128, 4],
      fields: [
        "router_weights": 1, "router_bias": 2, "expert_bias": 2, "glu_limit": 7, "glu_alpha": 1.702, "glu_offset": 1,
      ]),
    Preset(
      name: "granite_moe", fill: moe_preset_granite_moe, sizes: [1536, 512, 40, 8], fields: ["router_weights": 1]),
    Preset(
      name: "jetmoe", fill: moe_preset_jetmoe, sizes: [2048, 5632, 8, 2],
      fields: ["router_weights": 1, "output_bias": 1]),
    Preset(
      name: "phimoe", fill: moe_preset_phimoe, sizes: [4096, 6400, 16, 2],
      fields: ["router_weights": 4, "router_normalize": 1, "mask_threshold": 0.01]),
    Preset(name: "dbrx", fill: moe_preset_dbrx, sizes: [6144, 10752, 16, 4], fields: ["router_normalize": 2]),
    Preset(
      name: "llama4", fill: moe_preset_llama4, sizes: [5120, 8192, 128, 1],
      fields: [
        "router_weights": 2, "router_normalize": 1, "weight_on_input": 1, "n_shared_experts": 1,
      ]),
    Preset(
      name: "minimax_m2", fill: moe_preset_minimax_m2, sizes: [3072, 1536, 256, 8],
      fields: ["score": 1, "selection_bias": 1]),
    Preset(
      name: "ernie4_5", fill: moe_preset_ernie4_5, sizes: [2560, 1536, 64, 6],
      fields: [
        "selection_bias": 1, "epsilon_form": 1, "normalize_epsilon": 1e-12, "n_shared_experts": 1,
        "shared_intermediate_size": 3072,
      ]),
    Preset(
      name: "longcat_flash", fill: moe_preset_longcat_flash, sizes: [6144, 0, 768, 12],
      fields: [
        "router_normalize": 1, "router_bias": 1, "selection_bias": 1, "routed_scale": 6, "n_expert_groups": 2,
      ],
      gated: false),
    Preset(
      name: "switch", fill: moe_preset_switch, sizes: [768, 3072, 8, 1],
      fields: [
        "router_normalize": 1, "router_bias": 1, "activation": 3, "expert_bias": 1, "dropout": 0.1,
        "capacity_formula": 1, "capacity": 64, "capacity_per_sequence": 1, "jitter": 0.01,
      ],
      gated: false),
    Preset(name: "jamba", fill: moe_preset_jamba, sizes: [4096, 14336, 16, 2], fields: ["router_normalize": 1]),
    Preset(
      name: "gemma4", fill: moe_preset_gemma4, sizes: [2816, 704, 128, 8],
      fields: ["activation": 1, "router_norm": 2, "expert_scale": 1]),
    Preset(
      name: "llama_cpp", fill: moe_preset_llama_cpp, sizes: [4096, 14336, 8, 2],
      fields: ["epsilon_form": 1, "normalize_epsilon": 6.103515625e-5]),
    Preset(name: "qwen3_vl_moe", fill: moe_preset_qwen3_vl_moe, sizes: [2048, 768, 128, 8], fields: [:]),
    Preset(
      name: "qwen3_5_moe", fill: moe_preset_qwen3_5_moe, sizes: [2048, 512, 256, 8],
      fields: ["n_shared_experts": 1, "shared_intermediate_size": 512, "shared_gate": 1]),
    Preset(
      name: "dots1", fill: moe_preset_dots1, sizes: [4096, 1408, 128, 6],
      fields: [
        "score": 1, "selection_bias": 1, "normalize_epsilon": 1e-20, "routed_scale": 2.5, "n_shared_experts": 1,
        "shared_intermediate_size": 2816,
      ]),
    Preset(
      name: "hunyuan", fill: moe_preset_hunyuan, sizes: [4096, 3072, 64, 8],
      fields: ["n_shared_experts": 1, "shared_intermediate_size": 3072]),
    Preset(
      name: "nemotron_h", fill: moe_preset_nemotron_h, sizes: [2688, 1856, 128, 6],
      fields: [
        "router_bias": 1, "activation": 4, "expert_bias": 1, "score": 1, "selection_bias": 1,
        "normalize_epsilon": 1e-20, "routed_scale": 2.5, "n_shared_experts": 1, "shared_intermediate_size": 3712,
      ],
      gated: false),
    Preset(
      name: "lfm2_moe", fill: moe_preset_lfm2_moe, sizes: [2048, 1792, 32, 4],
      fields: ["score": 1, "selection_bias": 1, "normalize_epsilon": 1e-6]),
    Preset(
      name: "afmoe", fill: moe_preset_afmoe, sizes: [2048, 1024, 128, 8],
      fields: [
        "score": 1, "selection_bias": 1, "normalize_epsilon": 1e-20, "routed_scale": 2.826, "n_shared_experts": 1,
        "shared_intermediate_size": 1024,
      ]),
    Preset(
      name: "deepseek_v4", fill: moe_preset_deepseek_v4, sizes: [4096, 2048, 256, 6],
      fields: [
        "score": 2, "selection_bias": 1, "normalize_epsilon": 1e-20, "routed_scale": 1.5, "glu_limit": 10,
        "n_shared_experts": 1, "shared_intermediate_size": 2048,
      ]),
    Preset(
      name: "nllb_moe", fill: moe_preset_nllb_moe, sizes: [2048, 8192, 128, 2],
      fields: [
        "router_bias": 1, "activation": 3, "epsilon_form": 1, "normalize_epsilon": 1.1920929e-7, "routed_scale": 0.8,
      ],
      gated: false),
  ]

  private let size = MemoryLayout<moe_layer_config>.size

  private func config(of preset: Preset) -> moe_layer_config {
    // What was there before must not shine through.
    var config = moe_layer_config()
    withUnsafeMutableBytes(of: &config) { $0.copyBytes(from: [UInt8](repeating: 0x5A, count: size)) }
    preset.fill(&config, size)
    return config
  }

  @Test(arguments: presets)
  func everyFieldIsTheModels(preset: Preset) throws {
    let config = config(of: preset)
    var expected = preset.fields
    for (name, value) in zip(["hidden_size", "intermediate_size", "n_experts", "top_k"], preset.sizes) {
      expected[name] = value
    }
    if preset.gated {
      for (name, value): (String, Float) in [("expert_kind", 1), ("activation", 2), ("router_bias", 1)] {
        expected[name] = expected[name] ?? value
      }
    }
    expected["struct_size"] = Float(size)
    for (name, value) in Mirror(reflecting: config).children {
      let name = try #require(name)
      if ["expert_groups", "hash_table", "losses"].contains(name) { continue }
      #expect(Float("\(value)") == expected.removeValue(forKey: name) ?? 0, "\(name)")
    }
    #expect(expected.isEmpty, "no such fields")
    #expect(config.hash_table == nil && config.losses == nil)
    #expect((config.expert_groups == nil) == (config.n_expert_groups == 0))
  }

  @Test func longCatsGroupsAreStatic() throws {
    let preset = try #require(Self.presets.first { $0.name == "longcat_flash" })
    let config = config(of: preset)
    let groups = try #require(config.expert_groups)
    #expect(groups == self.config(of: preset).expert_groups)
    let (real, identity) = (groups[0], groups[1])
    #expect(real.n_experts == 512 && real.intermediate_size == 2048)
    #expect(real.expert_kind == MOE_EXPERT_GATED.int32 && real.activation == MOE_ACTIVATION_SILU.int32)
    #expect(identity.n_experts == 256 && identity.intermediate_size == 0)
    #expect(identity.expert_kind == MOE_EXPERT_IDENTITY.int32 && identity.activation == 0)
    for group in [real, identity] {
      #expect(group.expert_bias == 0 && group.dropout == 0 && group.reserved == 0)
      #expect(group.glu_limit == 0 && group.glu_alpha == 0 && group.glu_offset == 0)
    }
  }

  @Test(arguments: presets)
  func theCallersStructMayBeOfAnotherHeader(preset: Preset) {
    preset.fill(nil, size)
    // An older and a later one: as far as there is room, and 0 beyond what is known.
    let memory = UnsafeMutableRawPointer.allocate(byteCount: size + 24, alignment: 16)
    defer { memory.deallocate() }
    for known in [0, 16, size + 16] {
      memory.initializeMemory(as: UInt8.self, repeating: 0xEE, count: size + 24)
      preset.fill(memory.assumingMemoryBound(to: moe_layer_config.self), known)
      let bytes = UnsafeRawBufferPointer(start: memory, count: size + 24)
      #expect(bytes[known...].allSatisfy { $0 == 0xEE })
      if known >= 16 {
        #expect(memory.load(as: Int.self) == known)
        #expect(memory.load(fromByteOffset: 8, as: Int64.self) == Int64(preset.sizes[0]))
      }
      if known > size { #expect(bytes[size..<known].allSatisfy { $0 == 0 }) }
    }
  }
}
