import CMoE
import Testing

/// Every field of every config wrong once.
@Suite("Bad configurations")
struct BadConfigTests {
  let layer: Layer

  init() throws { layer = try Layer() }

  // MARK: Context

  private func createContext(_ change: (inout moe_context_config) -> Void) -> moe_status {
    var config = defaultContextConfig()
    change(&config)
    var out = untouched
    let status = moe_context_create(&config, &out)
    #expect(out == untouched)
    return status
  }

  @Test func contexts() {
    refused("out", moe_context_create(nil, nil))
    for size in wrongStructSizes { refused("struct_size", createContext { $0.struct_size = size }) }
    for threads: Int32 in [-2, 1025, .min, .max] { refused("n_threads", createContext { $0.n_threads = threads }) }
    for instructions: Int32 in [-1, 5, .max] {
      refused("instructions", createContext { $0.instructions = instructions })
    }
    refused("reserved", createContext { $0.reserved = 1 })
    for matmul: Int32 in [-1, 4, .max] { refused("matmul", createContext { $0.matmul = matmul }) }
    let whole = CountingAllocator().contextConfig
    refused("dealloc", createContext { $0.alloc = whole.alloc })
    refused("alloc", createContext { $0.dealloc = whole.dealloc })
  }

  @Test func anAllocatorHasToAlign() {
    let status = createContext {
      $0.alloc = { _, size, _ in UnsafeMutableRawPointer.allocate(byteCount: size + 1, alignment: 64) + 1 }
      $0.dealloc = { _, memory in (memory! - 1).deallocate() }
    }
    refused("alloc", status)
  }

  // MARK: Layer

  private func createLayer(_ change: (inout moe_layer_config) -> Void) -> moe_status {
    var config = layer.config
    change(&config)
    var out = untouched
    let status = moe_layer_create(layer.context, &config, &out)
    #expect(out == untouched)
    return status
  }

  @Test func layers() {
    var config = layer.config
    var out = untouched
    refused("context", moe_layer_create(nil, &config, &out))
    refused("config", moe_layer_create(layer.context, nil, &out))
    refused("out", moe_layer_create(layer.context, &config, nil))
    #expect(out == untouched)
    for size in wrongStructSizes { refused("struct_size", createLayer { $0.struct_size = size }) }
  }

  @Test func layerSizes() {
    for size: Int64 in [0, -1, .min, 1 << 31, 1 << 62, .max] {
      refused("hidden_size", createLayer { $0.hidden_size = size })
      refused("intermediate_size", createLayer { $0.intermediate_size = size })
      refused("n_experts", createLayer { $0.n_experts = size })
    }
    for size: Int64 in [0, -1, .min, 5, 1 << 31, 1 << 62, .max] { refused("top_k", createLayer { $0.top_k = size }) }
    // Each size is legal, their product is not.
    let most = Int64(Int32.max)
    let status = createLayer {
      $0.hidden_size = most
      $0.intermediate_size = most
      $0.n_experts = most
    }
    #expect(status == MOE_ERROR_INVALID_ARGUMENT)
    #expect(["hidden_size", "intermediate_size", "n_experts"].contains { lastError().contains($0) }, "\(lastError())")
  }

  @Test func layerOptions() {
    for value: Int32 in [-1, .min, .max] {
      refused("router_weights", createLayer { $0.router_weights = value })
      refused("router_normalize", createLayer { $0.router_normalize = value })
      refused("router_bias", createLayer { $0.router_bias = value })
      refused("expert_kind", createLayer { $0.expert_kind = value })
      refused("activation", createLayer { $0.activation = value })
      refused("expert_bias", createLayer { $0.expert_bias = value })
      refused("inference_only", createLayer { $0.inference_only = value })
      refused("weight_dtype", createLayer { $0.weight_dtype = value })
      refused("io_dtype", createLayer { $0.io_dtype = value })
    }
    // The first value behind the last of each.
    refused("router_weights", createLayer { $0.router_weights = 5 })
    refused("router_normalize", createLayer { $0.router_normalize = 5 })
    refused("router_bias", createLayer { $0.router_bias = 3 })
    refused("expert_kind", createLayer { $0.expert_kind = 6 })
    refused("activation", createLayer { $0.activation = 6 })
    refused("expert_bias", createLayer { $0.expert_bias = 3 })
    refused("inference_only", createLayer { $0.inference_only = 2 })
    for sum: Int32 in [-1, 4, 1 << 30, .min, .max] {
      refused("unallocated", createLayer { $0.unallocated = sum })
    }
    refused("weight_dtype", createLayer { $0.weight_dtype = 3 })
    refused("io_dtype", createLayer { $0.io_dtype = 3 })
    refused("MOE_DTYPE_F16", createLayer { $0.io_dtype = MOE_DTYPE_F16.int32 })

    for value: Float in [.nan, -0.1, 1, 2, .infinity, -.infinity] {
      refused("dropout", createLayer { $0.dropout = value })
    }
    for value: Float in [.nan, -1, .infinity, -.infinity] {
      refused("balance_coef", createLayer { $0.balance_coef = value })
      refused("z_coef", createLayer { $0.z_coef = value })
    }
    refused("renormalize", createLayer { $0.renormalize = 2 })
  }

  @Test func clamps() throws {
    func createGated(_ change: (inout moe_layer_config) -> Void) -> moe_status {
      createLayer {
        $0.expert_kind = MOE_EXPERT_GATED.int32
        $0.activation = MOE_ACTIVATION_SILU.int32
        change(&$0)
      }
    }
    let fields: [(String, WritableKeyPath<moe_layer_config, Float>)] = [
      ("glu_limit", \.glu_limit), ("glu_alpha", \.glu_alpha), ("glu_offset", \.glu_offset),
    ]
    for (name, field) in fields {
      for value: Float in [.nan, -1, .infinity, -.infinity, -.leastNonzeroMagnitude] {
        refused(name, createGated { $0[keyPath: field] = value })
      }
      // Two fields that contradict each other are both named.
      for word in [name, "expert_kind"] {
        refused(
          word,
          createLayer {
            $0.activation = MOE_ACTIVATION_SILU.int32
            $0[keyPath: field] = 1
          })
      }
    }
    for activation: Int32 in [0, 1, 3, 4, 5] {
      for word in ["glu_alpha", "activation"] {
        refused(
          word,
          createGated {
            $0.activation = activation
            $0.glu_alpha = 1.702
          })
      }
    }
  }

  @Test func tokenChoice() {
    for value: Int32 in [-1, 4, .max] { refused("score", createLayer { $0.score = value }) }
    for value: Int32 in [-1, 2, .max] {
      refused("selection_bias", createLayer { $0.selection_bias = value })
      refused("expert_scale", createLayer { $0.expert_scale = value })
      refused("epsilon_form", createLayer { $0.epsilon_form = value })
    }
    for value: Float in [.nan, -1, .infinity] {
      refused("normalize_epsilon", createLayer { $0.normalize_epsilon = value })
      refused("routed_scale", createLayer { $0.routed_scale = value })
    }
    // 4 experts, 2 of which are chosen.
    func groups(_ count: Int32, _ top: Int32, _ m: Int32 = 0, mask: Int32 = 0) -> moe_status {
      createLayer { ($0.n_groups, $0.top_groups, $0.group_top_m, $0.group_mask) = (count, top, m, mask) }
    }
    for count: Int32 in [-2, 3, 5] { refused("n_groups", groups(count, 1)) }
    for top: Int32 in [-1, 0, 3] { refused("top_groups", groups(2, top)) }
    refused("top_k", groups(4, 1))
    for m: Int32 in [-1, 3] { refused("group_top_m", groups(2, 1, m)) }
    refused("group_mask", groups(2, 1, mask: 2))
    refused("n_groups", groups(0, 1))
  }

  @Test func linearExperts() {
    func createLinear(_ change: (inout moe_layer_config) -> Void) -> moe_status {
      createLayer {
        $0.setExperts(MOE_EXPERT_LINEAR)
        change(&$0)
      }
    }
    for size: Int64 in [-1, .max, .min] { refused("intermediate_size", createLinear { $0.intermediate_size = size }) }
    for size in [1, Int64(layer.hidden) - 1] {
      for word in ["intermediate_size", "hidden_size"] {
        refused(word, createLinear { $0.intermediate_size = size })
      }
    }
    refused("hidden_size", createLinear { $0.hidden_size = 0 })
    for word in ["dropout", "expert_kind"] { refused(word, createLinear { $0.dropout = 0.1 }) }
    for word in ["activation", "expert_kind"] { refused(word, createLinear { $0.activation = 2 }) }
    for word in ["glu_limit", "expert_kind"] { refused(word, createLinear { $0.glu_limit = 7 }) }
  }

  // MARK: Optimisers

  private func createAdamW(_ change: (inout moe_adamw_config) -> Void) -> moe_status {
    var config = moe_adamw_config()
    moe_adamw_config_init(&config, MemoryLayout<moe_adamw_config>.size)
    change(&config)
    var out = untouched
    let status = moe_adamw_create(layer.context, &config, nil, 0, &out)
    #expect(out == untouched)
    return status
  }

  @Test func adamw() {
    for size in wrongStructSizes { refused("struct_size", createAdamW { $0.struct_size = size }) }
    for value: Double in [.nan, -1, .infinity, -.infinity] {
      refused("learning_rate", createAdamW { $0.learning_rate = value })
      refused("weight_decay", createAdamW { $0.weight_decay = value })
      refused("epsilon", createAdamW { $0.epsilon = value })
    }
    for value: Double in [.nan, -0.1, 1, .infinity] {
      refused("beta1", createAdamW { $0.beta1 = value })
      refused("beta2", createAdamW { $0.beta2 = value })
    }
    refused("epsilon", createAdamW { $0.epsilon = 0 })
    for type: Int32 in [-1, 2, 3, .max] { refused("state_dtype", createAdamW { $0.state_dtype = type }) }
    for flag: Int32 in [-1, 2] { refused("unallocated_state", createAdamW { $0.unallocated_state = flag }) }
  }

  private func createSGD(_ change: (inout moe_sgd_config) -> Void) -> moe_status {
    var config = moe_sgd_config()
    moe_sgd_config_init(&config, MemoryLayout<moe_sgd_config>.size)
    change(&config)
    var out = untouched
    let status = moe_sgd_create(layer.context, &config, nil, 0, &out)
    #expect(out == untouched)
    return status
  }

  @Test func sgd() {
    for size in wrongStructSizes { refused("struct_size", createSGD { $0.struct_size = size }) }
    for value: Double in [.nan, -1, .infinity, -.infinity] {
      refused("learning_rate", createSGD { $0.learning_rate = value })
      refused("weight_decay", createSGD { $0.weight_decay = value })
    }
    for value: Double in [.nan, -0.1, 1, .infinity] { refused("momentum", createSGD { $0.momentum = value }) }
    for type: Int32 in [-1, 2, .max] { refused("state_dtype", createSGD { $0.state_dtype = type }) }
    for flag: Int32 in [-1, 2] { refused("unallocated_state", createSGD { $0.unallocated_state = flag }) }
  }

  // MARK: Structs of a later header

  @Test func aLaterHeadersFieldsMustBeZero() throws {
    var adamw = moe_adamw_config()
    moe_adamw_config_init(&adamw, MemoryLayout<moe_adamw_config>.size)
    var sgd = moe_sgd_config()
    moe_sgd_config_init(&sgd, MemoryLayout<moe_sgd_config>.size)
    var muon = moe_muon_config()
    moe_muon_config_init(&muon, MemoryLayout<moe_muon_config>.size)
    var report = moe_report()
    moe_report_init(&report, MemoryLayout<moe_report>.size)
    let variable = Variable("w", [1, 2], grad: [3, 4])
    let x = noise(2 * layer.hidden)
    var y = x
    var out: OpaquePointer?
    let calls: [(UInt8) -> moe_status] = [
      { tail in
        let status = withGrown(defaultContextConfig(), tail: tail) { moe_context_create($0, &out) }
        if status == MOE_OK { moe_context_free(out) }
        return status
      },
      { tail in
        let status = withGrown(layer.config, tail: tail) { moe_layer_create(layer.context, $0, &out) }
        if status == MOE_OK { moe_layer_free(out) }
        return status
      },
      { tail in
        let status = withGrown(adamw, tail: tail) { moe_adamw_create(layer.context, $0, nil, 0, &out) }
        if status == MOE_OK { moe_optimizer_free(out) }
        return status
      },
      { tail in
        let status = withGrown(sgd, tail: tail) { moe_sgd_create(layer.context, $0, nil, 0, &out) }
        if status == MOE_OK { moe_optimizer_free(out) }
        return status
      },
      { tail in
        let status = withGrown(muon, tail: tail) { moe_muon_create(layer.context, $0, nil, 0, &out) }
        if status == MOE_OK { moe_optimizer_free(out) }
        return status
      },
      { tail in
        withGrown(forwardOptions(), tail: tail) { moe_layer_forward(layer.layer, x, 2, $0, &y, nil, nil) }
      },
      { tail in withGrown(report, tail: tail) { moe_layer_forward(layer.layer, x, 2, nil, &y, nil, $0) } },
      { tail in withGrown(variable.tensor, tail: tail) { moe_clip_grad_norm(layer.context, $0, 1, 9, nil) } },
    ]
    for call in calls {
      try check(call(0))
      refused("struct_size", call(1))
    }
  }
}
