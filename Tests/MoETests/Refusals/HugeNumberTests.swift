import CMoE
import Testing

/// Numbers whose sums and products leave 63 bits, or are no numbers: a status, and the process lives on.
@Suite("Huge numbers")
struct HugeNumberTests {
  @Test func tensorsWithAHugeDimensionBeforeAZero() throws {
    let layer = try Layer()
    var tensor = Variable("t", [], grad: []).tensor
    var out: OpaquePointer?
    for shape: (Int64, Int64, Int64, Int64) in [
      (1 << 62, 4, 0, 0), (1 << 62, 0, 1 << 62, 4), (0, 1 << 62, 4, 1), (.max, .max, 0, .max),
    ] {
      (tensor.rank, tensor.shape) = (4, shape)
      refused("shape", moe_adamw_create(layer.context, nil, &tensor, 1, &out))
      refused("shape", moe_clip_grad_norm(layer.context, &tensor, 1, 1, nil))
      refused("shape", moe_layer_upcycle(layer.layer, &tensor, 1))
      var training = moe_training()
      moe_training_init(&training, MemoryLayout<moe_training>.size)
      training.n_tensors = 1
      withUnsafePointer(to: tensor) {
        training.tensors = $0
        refused("shape", moe_training_save(layer.context, &training, "/nonexistent/state"))
      }
    }
    // An empty tensor that is only large is one.
    (tensor.rank, tensor.shape) = (3, (1 << 40, 0, 1 << 20, 0))
    try check(moe_adamw_create(layer.context, nil, &tensor, 1, &out))
    defer { moe_optimizer_free(out) }
    try check(moe_optimizer_step(out, &tensor, 1))
  }

  private func plan(_ layer: Layer, tokens: Int64, limit: Int = 0) -> (status: moe_status, plan: moe_plan) {
    var plan = moe_plan()
    moe_plan_init(&plan, MemoryLayout<moe_plan>.size)
    var options = forwardOptions(training: true)
    options.memory_limit = limit
    return (moe_layer_plan(layer.layer, tokens, &options, 1, &plan), plan)
  }

  /// Tape and scratch each fit in 63 bits, and their sum does not.
  @Test func plansBeyondTheAddressSpace() throws {
    let layer = try Layer(hidden: 1, intermediate: 355_000_000, experts: 1, topK: 1) {
      $0.unallocated = MOE_UNALLOCATED_EXPERT_WEIGHTS.int32
    }
    let tokens = Int64(Int32.max)
    #expect(plan(layer, tokens: tokens).status == MOE_ERROR_OUT_OF_MEMORY)
    // In chunks it fits: a limit is kept by what any smaller plan of the same layer needs.
    let few = plan(layer, tokens: 4096)
    try check(few.status)
    let limited = plan(layer, tokens: 1 << 22, limit: 1 << 46)
    try check(limited.status)
    #expect(limited.plan.chunk_tokens < 1 << 22 && limited.plan.total_bytes <= 1 << 46)
  }

  /// [E,H] of a gate may be too large where no matrix of an expert is.
  @Test func gatesBeyondTheAddressSpace() {
    var context, out: OpaquePointer?
    #expect(moe_context_create(nil, &context) == MOE_OK)
    defer { moe_context_free(context) }
    var group = moe_expert_group()
    (group.n_experts, group.expert_kind) = ((1 << 27) - 1, MOE_EXPERT_IDENTITY.int32)
    var config = moe_layer_config()
    moe_layer_config_init(&config, MemoryLayout<moe_layer_config>.size)
    (config.hidden_size, config.n_experts, config.top_k) = (Int64(Int32.max), 16 * group.n_experts, 1)
    [moe_expert_group](repeating: group, count: 16).withUnsafeBufferPointer {
      (config.expert_groups, config.n_expert_groups) = ($0.baseAddress, 16)
      refused("hidden_size", moe_layer_create(context, &config, &out))
    }
    #expect(out == nil)
  }

  /// Every formula with every factor that is a number, for no tokens and for some.
  @Test func capacityFactors() throws {
    for formula in 1...11 as ClosedRange<Int32> {
      for factor in [1e-320, 1e-30, 1, 3e38, 1e39, 1e300, Double.greatestFiniteMagnitude, -1e39] {
        if factor < 0 && formula != MOE_CAPACITY_TUTEL.int32 { continue }
        let layer = try Layer(hidden: 2, intermediate: 2, experts: 4, topK: 2) {
          $0.capacity_formula = formula
          if formula == MOE_CAPACITY_CONSTANT.int32 {
            $0.capacity = 3
          } else {
            if formula != MOE_CAPACITY_NLLB.int32 { $0.capacity_factor = factor }
            $0.eval_capacity_factor = factor
          }
          ($0.adaptive_capacity, $0.adaptive_high_factor, $0.adaptive_low_factor) = (1, 1e300, 1e300)
        }
        for tokens in [0, 3] {
          for training: Int32 in [0, 1] {
            var mask = [UInt8](repeating: 0, count: 3)
            try mask.withUnsafeMutableBufferPointer {
              var options = forwardOptions(training: training == 1)
              options.valid_mask = UnsafePointer($0.baseAddress)
              let found = try layer.forward([Float](repeating: 1, count: 2 * tokens), options: options)
              #expect(found.y.allSatisfy { $0 == 0 } && found.report.n_dropped == 0)
            }
            let all = try layer.forward([Float](repeating: 1, count: 2 * tokens))
            if factor >= 1e30 { #expect(all.report.n_dropped == 0, "\(formula) \(factor)") }
          }
        }
      }
    }
  }

  @Test func stepsOfSchedules() throws {
    let extremes: [Int64] = [0, 1, 2, 1 << 53, .max - 1, .max]
    for kind in 0...4 as ClosedRange<Int32> {
      for total in extremes where total > 0 || kind == 0 {
        for warmup in kind > 2 ? [0] : extremes.filter({ $0 <= total || kind == 0 }) {
          for step in extremes {
            var schedule = moe_schedule()
            moe_schedule_init(&schedule, MemoryLayout<moe_schedule>.size)
            (schedule.kind, schedule.total_steps, schedule.warmup_steps) = (kind, total, warmup)
            var rate = Double.nan
            try check(moe_learning_rate(&schedule, step, &rate))
            #expect(rate >= 0 && rate <= 1e-3 * (1 + 1e-12), "\(kind) \(total) \(warmup) \(step): \(rate)")
          }
        }
      }
    }
    var schedule = moe_schedule()
    moe_schedule_init(&schedule, MemoryLayout<moe_schedule>.size)
    (schedule.kind, schedule.total_steps, schedule.div_factor) = (3, 9, 5e-324)
    var rate = -7.0
    refused("div_factor", moe_learning_rate(&schedule, 3, &rate))
    #expect(rate == -7)
  }

  @Test func aFileBeyond63Bits() throws {
    let (layer, folder) = (try Layer(), try Folder())
    var value: Float = 0
    withUnsafeBytes(of: &value) { memory in
      for (dtype, shape) in [(MOE_DTYPE_U8, Int64.max), (MOE_DTYPE_F32, Int64.max / 4), (MOE_DTYPE_U8, .max - 64)] {
        for path in ["one", "many.safetensors.index.json"] {
          "t".withCString { name in
            var tensor = moe_stored_tensor()
            moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
            (tensor.name, tensor.dtype, tensor.rank) = (name, dtype.int32, 1)
            tensor.shape.0 = shape
            tensor.data = memory.baseAddress
            let file = folder.file(path)
            let status =
              path == "one"
              ? moe_checkpoint_write(layer.context, file, &tensor, 1)
              : moe_checkpoint_write_sharded(layer.context, file, &tensor, 1, -1)  // SIZE_MAX
            #expect(status == MOE_ERROR_INVALID_ARGUMENT, "\(lastError())")
            #expect(lastError().contains("2^63"), "\(lastError())")
          }
        }
      }
    }
    #expect(try folder.contents() == [])
  }

  /// A size_t from 2^63 on arrives negative: it is large, not none.
  @Test func limitsOfSizeMax() throws {
    var context = defaultContextConfig()
    context.memory_limit = 1
    let layer = try Layer(in: context)
    var y = noise(15)
    refused("memory_limit", moe_layer_forward(layer.layer, noise(15), 3, nil, &y, nil, nil))
    var options = forwardOptions()
    options.memory_limit = -1  // SIZE_MAX
    _ = try layer.forward(noise(15), options: options)
  }
}
