import CMoE
import Testing

/// The same of models, whose reports have arrays for each layer.
@Suite("Overlapping arrays of models")
final class ModelOverlapTests {
  private let hidden = 8
  private var context, model, tape: OpaquePointer?
  private let memory = UnsafeMutableRawPointer.allocate(byteCount: 1 << 16, alignment: 64)

  /// A language model of 3 MoE layers, or an encoder.
  private func create(vocabulary: Int64) throws {
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: 1 << 16)
    try check(moe_context_create(nil, &context))
    var moe = moe_layer_config()
    moe_layer_config_init(&moe, MemoryLayout<moe_layer_config>.size)
    (moe.n_experts, moe.top_k, moe.intermediate_size) = (4, 2, 4)
    var config = moe_model_config()
    moe_model_config_init(&config, MemoryLayout<moe_model_config>.size)
    (config.hidden_size, config.n_layers, config.n_heads) = (Int64(hidden), 3, 2)
    (config.vocabulary_size, config.causal) = (vocabulary, 1)
    try withUnsafePointer(to: moe) {
      config.moe = $0
      try check(moe_model_create(context, &config, &model))
    }
    try check(moe_model_tape_create(model, &tape))
  }

  deinit {
    moe_model_tape_free(tape)
    moe_model_free(model)
    moe_context_free(context)
    memory.deallocate()
  }

  private func at<T>(_ offset: Int) -> UnsafeMutablePointer<T> { (memory + offset).assumingMemoryBound(to: T.self) }

  private func collide(_ first: String, _ second: String, _ status: moe_status) {
    #expect(status == MOE_ERROR_INVALID_ARGUMENT, "\(first), \(second)")
    #expect(lastError().hasPrefix("\(first) overlaps \(second):"), "\(first), \(second) in: \(lastError())")
    _ = moe_optimizer_set_learning_rate(nil, 1)
  }

  private var input: moe_model_input {
    var input = moe_model_input()
    moe_model_input_init(&input, MemoryLayout<moe_model_input>.size)
    (input.n_sequences, input.sequence_length) = (1, 3)
    return input
  }

  @Test func forward() throws {
    try create(vocabulary: 5)
    var reports = (0..<3).map { _ in
      var report = moe_report()
      moe_report_init(&report, MemoryLayout<moe_report>.size)
      return report
    }
    func forward(
      hidden: Int = 4096, logits: Int = 8192, losses: Int = 12288, targets: Int = 1024,
      _ change: (inout [moe_report]) -> Void = { _ in }
    ) -> moe_status {
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: 1 << 16)
      var given = input
      (given.tokens, given.targets) = (UnsafePointer(at(0)), UnsafePointer(at(targets)))
      var changed = reports
      change(&changed)
      return changed.withUnsafeMutableBufferPointer { layers in
        var report = moe_model_report()
        moe_model_report_init(&report, MemoryLayout<moe_model_report>.size)
        (report.layers, report.token_losses) = (layers.baseAddress, at(losses))
        return moe_model_forward(model, &given, at(hidden), at(logits), tape, &report)
      }
    }
    try check(forward())
    collide("hidden", "input.targets", forward(targets: 4096))
    collide("logits", "input.targets", forward(targets: 8192))
    collide("report.token_losses", "input.targets", forward(losses: 1024))
    collide("report.token_losses", "input.tokens", forward(losses: 8))
    collide("report.token_losses", "logits", forward(losses: 8192))
    collide("report.layers[0].expert_weights", "input.targets", forward { $0[0].expert_weights = at(1024) })
    collide("report.layers[2].tokens_per_expert", "hidden", forward { $0[2].tokens_per_expert = at(4096) })
    collide(
      "report.layers[2].expert_indices", "report.layers[1].mean_probability",
      forward {
        $0[1].mean_probability = at(16384)
        $0[2].expert_indices = at(16392)
      })
    var tensor = moe_tensor()
    moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
    var index: Int64 = -1
    try check(moe_model_find_parameter(model, "layers.1.norm1.weight", &index))
    try check(moe_model_parameter(model, index, &tensor))
    collide(
      "report.layers[0].mean_probability", "layers.1.norm1.weight",
      forward { $0[0].mean_probability = tensor.values.baseAddress })
    let weight = UnsafeMutableRawPointer(tensor.values.baseAddress!)
    collide("hidden", "layers.1.norm1.weight", forward(hidden: weight - memory))
    // Reports that want arrays of all layers are no overlap, however many.
    try check(
      forward {
        for n in 0..<3 {
          $0[n].tokens_per_expert = at(16384 + 1024 * n)
          $0[n].expert_indices = at(16384 + 1024 * n + 32)
          $0[n].expert_weights = at(16384 + 1024 * n + 56)
        }
      })
    reports = []

    var cache: OpaquePointer?
    try check(moe_cache_create(model, 1, 8, &cache))
    defer { moe_cache_free(cache) }
    collide("logits", "tokens", moe_model_read(model, cache, at(0), 3, at(8)))
    collide("logits", "layers.1.norm1.weight", moe_model_read(model, cache, at(0), 3, at(weight - memory)))
    var plan = moe_model_plan()
    moe_model_plan_init(&plan, MemoryLayout<moe_model_plan>.size)
    withUnsafeMutablePointer(to: &plan) { plan in
      plan.pointee.keep = UnsafeMutableRawPointer(plan).assumingMemoryBound(to: Int32.self) + 4
      var given = input
      collide("plan.keep", "plan", moe_model_plan_memory(model, &given, 1, plan))
    }
    // What is planned reads no array: one number may stand for all targets.
    var given = input
    given.targets = UnsafePointer(at(0))
    plan.keep = at(4)
    try check(moe_model_plan_memory(model, &given, 1, &plan))
  }

  @Test func backward() throws {
    try create(vocabulary: 0)
    var given = input
    given.hidden = UnsafePointer(at(0))
    try check(moe_model_forward(model, &given, nil, nil, tape, nil))
    collide("dinput", "dhidden", moe_model_backward(model, tape, &given, 1, at(4096), at(4100)))
    collide("dinput", "input.hidden", moe_model_backward(model, tape, &given, 1, at(4096), at(0)))
    var tensor = moe_tensor()
    moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
    var index: Int64 = -1
    try check(moe_model_find_parameter(model, "layers.2.attention.qkv.weight", &index))
    try check(moe_model_parameter(model, index, &tensor))
    collide(
      "the gradient of layers.2.attention.qkv.weight", "dhidden",
      moe_model_backward(model, tape, &given, 1, tensor.gradient.baseAddress, at(8192)))
    try check(moe_model_backward(model, tape, &given, 1, at(4096), at(8192)))
  }
}
