import CMoE
import Testing

/// Experts over routing and weights that every call brings: the same bits in every way to compute and in every layout, what is
/// refused, and memory. Numbers are compared with float64 in Python.
@Suite("Experts by call")
struct ExpertsByCallTests {
  @Test(arguments: [MOE_EXPERT_GATED, MOE_EXPERT_MLP, MOE_EXPERT_LINEAR])
  func everyWayGivesTheSameBits(kind: moe_expert_kind) throws {
    for layout in ExpertLayout.all {
      try Way.expectTheSame("\(kind.rawValue), \(layout)") { context, type in
        let experts = try CalledExperts(kind, layout, type, in: context)
        return Record(try experts.everything())
      }
    }
  }

  @Test(arguments: Way.types)
  func layoutsAndPreparedWeightsGiveTheSameBits(type: moe_dtype) throws {
    let context = contextConfig(threads: 2)
    let expected = try CalledExperts(MOE_EXPERT_GATED, .rows, type, in: context).everything()
    for layout in ExpertLayout.all {
      let experts = try CalledExperts(MOE_EXPERT_GATED, layout, type, in: context)
      #expect(try experts.everything() == expected, "\(layout)")
      guard Processor.hasFMA else { continue }
      let form = type == MOE_DTYPE_BF16 ? MOE_PREPARED_BF16 : MOE_PREPARED_F32
      try experts.prepare(form)
      var bytes = 0
      try check(moe_experts_prepared_size(experts.prepared, &bytes))
      #expect(bytes > 0)
      #expect(bits(try experts.forward()) == expected["y"], "\(layout), prepared")
    }
  }

  @Test(arguments: Way.types)
  func theBitsAreALayers(type: moe_dtype) throws {
    let context = contextConfig(threads: 3)
    let experts = try CalledExperts(MOE_EXPERT_GATED, .columns, type, in: context)
    let layer = try Layer(hidden: 37, intermediate: 45, experts: 4, topK: 2, in: context) {
      $0.setExperts(MOE_EXPERT_GATED)
      $0.activation = MOE_ACTIVATION_SILU.int32
      $0.router = MOE_ROUTER_EXTERNAL.int32
      $0.weight_dtype = type.int32
    }
    for part in experts.parts {
      let tensor = try layer.parameter("experts.\(part.name).weight")
      tensor.data.copyMemory(from: part.rowMajor, byteCount: part.rowMajor.count)
    }
    let found = try experts.everything()
    try experts.indices.withUnsafeBufferPointer { indices in
      try experts.routing.withUnsafeBufferPointer { routing in
        var options = forwardOptions()
        (options.expert_indices, options.expert_weights) = (indices.baseAddress, routing.baseAddress)
        let y = try layer.forward(experts.x, options: options).y
        #expect(bits(y) == found["y"])
        let (dx, dWeights) = try layer.backwardToWeights(experts.x, dy: experts.dy)
        #expect(bits(dx) == found["dx"])
        #expect(bits(dWeights) == found["dw"])
        for part in experts.parts {
          let gradient = try layer.parameter("experts.\(part.name).weight").gradient
          #expect(bits(Array(gradient)) == found["d \(part.name)"], "\(part.name)")
        }
      }
    }
  }

  @Test func initFillsWithTheDefaults() {
    var config = moe_experts_config()
    config.reserved = 7
    moe_experts_config_init(&config, MemoryLayout<moe_experts_config>.size)
    #expect(config.struct_size == MemoryLayout<moe_experts_config>.size && config.reserved == 0)
    var call = moe_experts_call()
    moe_experts_call_init(&call, MemoryLayout<moe_experts_call>.size)
    #expect(call.index_dtype == MOE_DTYPE_I32.int32 && call.top_k == 0)
    var gradients = moe_experts_gradients()
    gradients.overwrite = 1
    moe_experts_gradients_init(&gradients, MemoryLayout<moe_experts_gradients>.size)
    #expect(gradients.struct_size == MemoryLayout<moe_experts_gradients>.size && gradients.overwrite == 0)
    moe_experts_gradients_init(nil, 8)
    moe_experts_config_init(nil, 8)
    moe_experts_call_init(nil, 8)
    moe_experts_prepared_free(nil)
  }

  // MARK: memory

  /// What a plan says is what a call asks the context for: forward's scratch, then backward's if it is more.
  @Test(arguments: ExpertLayout.all, [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func plansAreExact(layout: ExpertLayout, type: moe_dtype) throws {
    let allocator = CountingAllocator()
    var config = allocator.contextConfig
    config.n_threads = 2
    do {
      let experts = try CalledExperts(MOE_EXPERT_GATED, layout, type, in: config)
      let plan = try experts.plan()
      func inUse() throws -> Int {
        var (now, peak) = (0, 0)
        try check(moe_context_memory(experts.context, &now, &peak))
        return now
      }
      var saved = [UInt8](repeating: 0, count: plan.tape_bytes)
      _ = try experts.forward(saved: &saved)
      #expect(try inUse() == plan.forward_bytes)
      _ = try experts.backward(saved: saved)
      #expect(try inUse() == max(plan.forward_bytes, plan.backward_bytes))
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty)
  }

  @Test func everyAllocationMayFail() throws {
    let allocator = CountingAllocator()
    var config = allocator.contextConfig
    config.matmul = (Processor.hasFMA ? MOE_MATMUL_NATIVE : MOE_MATMUL_REFERENCE).int32
    var expected: [UInt32]?
    for k in 1... {
      let experts = try CalledExperts(MOE_EXPERT_GATED, .columns, MOE_DTYPE_F32, in: config)
      allocator.fail(at: k)
      var failed = false
      for attempt in 0..<2 {
        do {
          if Processor.hasFMA { try experts.tryToPrepare(MOE_PREPARED_F32) }
          let y = try experts.tryForward()
          let dx = try experts.tryBackward()
          if expected == nil { expected = bits(y) + bits(dx) }
          #expect(bits(y) + bits(dx) == expected)
        } catch let error as CalledExperts.Refusal {
          #expect(attempt == 0 && error.status == MOE_ERROR_OUT_OF_MEMORY)
          failed = true
        }
        allocator.fail(at: nil)
      }
      if !failed { break }
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty)
  }

  @Test func aCallMayBeCancelled() throws {
    var config = contextConfig(threads: 2)
    config.cancel = { _ in 1 }
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32, in: config)
    #expect(throws: CalledExperts.Refusal(status: MOE_ERROR_CANCELLED)) { try experts.tryForward() }
    #expect(throws: CalledExperts.Refusal(status: MOE_ERROR_CANCELLED)) { try experts.tryBackward() }
  }

  // MARK: refusals

  private typealias Change = (inout moe_experts_config, inout moe_experts_call, inout [moe_expert_tensor]) -> Void

  private func forward(_ experts: CalledExperts, _ change: Change) -> moe_status {
    // The list of weights is one of the config's fields, so what changes both runs twice.
    experts.withCall { call in
      var (config, call, tensors) = (experts.config, call, experts.tensors)
      change(&config, &call, &tensors)
      var y = [Float](repeating: 0, count: experts.x.count)
      return experts.withConfig(tensors) { own in
        var (call, unused) = (call, tensors)
        change(&own, &call, &unused)
        return moe_experts_forward(experts.context, &own, &call, experts.x, &y, nil, 0, nil)
      }
    }
  }

  @Test func badCallsAreRefused() throws {
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32)
    #expect(forward(experts) { _, _, _ in } == MOE_OK)
    refused("config", forward(experts) { c, _, _ in c.struct_size = 8 })
    refused("18446744073709551608", forward(experts) { c, _, _ in c.struct_size = -8 })
    refused("n_weights", forward(experts) { c, _, _ in c.n_weights = -1 })
    refused("n_weights", forward(experts) { c, _, _ in c.n_weights = 8 })
    refused("weights", forward(experts) { c, _, _ in c.weights = nil })
    refused("gradients", experts.backwardStatus(gradients: { $0.struct_size = 8 }))
    refused("tensors", experts.backwardStatus(gradients: { $0.tensors = nil }))
    refused("n_tensors", experts.backwardStatus(gradients: { $0.n_tensors = 8 }))
    refused("overwrite", experts.backwardStatus(gradients: { $0.overwrite = 2 }))
    #expect(experts.backwardStatus(gradients: { ($0.tensors, $0.n_tensors) = (nil, 0) }) == MOE_OK)
    #expect(experts.backwardStatus(gradients: { ($0.dx, $0.d_expert_weights) = (nil, nil) }) == MOE_OK)
    refused("call", forward(experts) { _, call, _ in call.struct_size = 8 })
    refused("n_experts", forward(experts) { c, _, _ in c.n_experts = 0 })
    refused("hidden_size", forward(experts) { c, _, _ in c.hidden_size = 1 << 40 })
    refused("intermediate_size", forward(experts) { c, _, _ in c.intermediate_size = 0 })
    refused("io_dtype", forward(experts) { c, _, _ in c.io_dtype = MOE_DTYPE_F16.int32 })
    refused("glu_alpha", forward(experts) { c, _, _ in (c.activation, c.glu_alpha) = (0, 2) })
    refused("n_tokens", forward(experts) { _, call, _ in call.n_tokens = -1 })
    refused("n_tokens", forward(experts) { _, call, _ in call.n_tokens = 1 << 30 })
    refused("n_tokens", forward(experts) { _, call, _ in call.n_tokens = .max })
    refused("top_k", forward(experts) { _, call, _ in call.top_k = 1 << 31 })
    refused("index_dtype", forward(experts) { _, call, _ in call.index_dtype = MOE_DTYPE_F32.int32 })
    refused("routing_dtype", forward(experts) { _, call, _ in call.routing_dtype = MOE_DTYPE_I32.int32 })
    refused("expert_indices", forward(experts) { _, call, _ in call.expert_indices = nil })
    refused("expert_weights", forward(experts) { _, call, _ in call.expert_weights = nil })
    refused("hidden_size", forward(experts) { c, call, _ in (c.hidden_size, call.n_tokens) = ((1 << 31) - 1, 1 << 29) })
  }

  @Test func badTensorsAreRefused() throws {
    let experts = try CalledExperts(MOE_EXPERT_GATED, .rows, MOE_DTYPE_F32)
    refused("MOE_EXPERT_PART_DOWN", forward(experts) { _, _, t in t.removeLast() })
    refused("MOE_EXPERT_PART_GATE", forward(experts) { _, _, t in t[1] = t[0] })
    refused("part", forward(experts) { _, _, t in t[0].part = 7 })
    refused("part", forward(experts) { _, _, t in t[0].part = -1 })
    refused("MOE_EXPERT_PART_CONSTANT", forward(experts) { _, _, t in t[0].part = MOE_EXPERT_PART_CONSTANT.int32 })
    refused("GATE", forward(experts) { _, _, t in t[0].dtype = MOE_DTYPE_F64.int32 })
    refused("MOE_EXPERT_PART_UP", forward(experts) { _, _, t in t[1].dtype = MOE_DTYPE_BF16.int32 })
    refused("data", forward(experts) { _, _, t in t[0].data = nil })
    refused("aligned", forward(experts) { _, _, t in t[0].data += 1 })
    for stride in [-1, Int64.min, Int64.max, 1 << 61] {
      refused("stride", forward(experts) { _, _, t in t[0].strides.0 = stride })
      refused("stride", forward(experts) { _, _, t in t[1].strides.1 = stride })
      refused("stride", forward(experts) { _, _, t in t[2].strides.2 = stride })
    }
    // Experts may be tied, as weights; a gradient has no element twice.
    #expect(forward(experts) { _, _, t in t[0].strides = (0, 0, 0) } == MOE_OK)
    refused("place", experts.backwardStatus { $0[0].strides.0 = 0 })  // two of its elements in one
    refused("stride", experts.backwardStatus { $0[2].strides.1 = 3 })
    refused("overlaps", experts.backwardStatus { $0[1].data = $0[0].data })
    let listed = try CalledExperts(MOE_EXPERT_GATED, .listed, MOE_DTYPE_F32)
    refused("experts", forward(listed) { _, _, t in t[0].experts[3] = nil })
    refused("experts", forward(listed) { _, _, t in t[0].data = experts.tensors[0].data })
    refused("experts", listed.backwardStatus { $0[0].experts[1] = $0[1].experts[2] })
  }

  @Test func savedBytesAreChecked() throws {
    let experts = try CalledExperts(MOE_EXPERT_MLP, .rows, MOE_DTYPE_F32)
    let plan = try experts.plan()
    var saved = [UInt8](repeating: 0, count: plan.tape_bytes + 8)
    func status(_ memory: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
      experts.withCall { call in
        var (call, y) = (call, experts.x)
        return experts.withConfig { config in
          moe_experts_forward(experts.context, &config, &call, experts.x, &y, memory, size, nil)
        }
      }
    }
    saved.withUnsafeMutableBytes { bytes in
      refused("saved_size", status(bytes.baseAddress!, plan.tape_bytes - 1))
      refused("saved_size", status(nil, 8))
      refused("aligned", status(bytes.baseAddress! + 1, plan.tape_bytes))
      #expect(status(bytes.baseAddress!, plan.tape_bytes) == MOE_OK)
    }
  }
}
