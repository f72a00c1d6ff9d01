import CMoE
import Testing

/// A small language model: one dense layer, one MoE layer.
final class ModelLife {
  let allocator = CountingAllocator()
  let (sequences, length, vocabulary) = (2, 5, 11)
  var context, model, tape, cache: OpaquePointer?
  var tokens: [Int32] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
  var targets: [Int32] = [2, 3, 4, 5, 6, 7, 8, 9, 10, -100]
  var logits = [Float](repeating: .nan, count: 2 * 5 * 11)
  var last = [Float](repeating: .nan, count: 2 * 11)
  var report = moe_model_report()
  /// Of the rank that the model is made by.
  var communicator: moe_communicator?

  init() { moe_model_report_init(&report, MemoryLayout<moe_model_report>.size) }

  deinit { free() }

  func free() {
    moe_cache_free(cache)
    moe_model_tape_free(tape)
    moe_model_free(model)
    moe_context_free(context)
    (cache, tape, model, context) = (nil, nil, nil, nil)
  }

  func create(_ change: (inout moe_model_config) -> Void = { _ in }) -> moe_status {
    var moe = moe_layer_config()
    moe_layer_config_init(&moe, MemoryLayout<moe_layer_config>.size)
    (moe.n_experts, moe.top_k, moe.intermediate_size, moe.balance_coef) = (4, 2, 7, 0.01)
    var config = moe_model_config()
    moe_model_config_init(&config, MemoryLayout<moe_model_config>.size)
    (config.hidden_size, config.n_layers, config.n_heads, config.vocabulary_size) = (8, 2, 2, Int64(vocabulary))
    (config.causal, config.tied_output, config.final_norm, config.rope_theta) = (1, 1, 1, 10000)
    (config.dense_intermediate_size, config.moe_every, config.pooled_balance_coef) = (9, 2, 0.1)
    return withUnsafePointer(to: moe) {
      config.moe = $0
      change(&config)
      if var communicator { return moe_model_create_distributed(context, &config, &communicator, nil, &model) }
      return moe_model_create(context, &config, &model)
    }
  }

  func withInput<R>(_ body: (UnsafeMutablePointer<moe_model_input>) -> R) -> R {
    tokens.withUnsafeBufferPointer { tokens in
      targets.withUnsafeBufferPointer { targets in
        var input = moe_model_input()
        moe_model_input_init(&input, MemoryLayout<moe_model_input>.size)
        (input.n_sequences, input.sequence_length) = (Int64(sequences), Int64(length))
        (input.tokens, input.targets) = (tokens.baseAddress, targets.baseAddress)
        return body(&input)
      }
    }
  }

  func forward() -> moe_status {
    withInput { input in
      logits.withUnsafeMutableBufferPointer {
        moe_model_forward(model, input, nil, $0.baseAddress, tape, &report)
      }
    }
  }

  func backward() -> moe_status { withInput { moe_model_backward(model, tape, $0, 1, nil, nil) } }

  func read() -> moe_status {
    tokens.withUnsafeBufferPointer { tokens in
      last.withUnsafeMutableBufferPointer {
        moe_model_read(model, cache, tokens.baseAddress, Int64(length), $0.baseAddress)
      }
    }
  }

  /// One token more.
  func readWith(_ cache: OpaquePointer?, _ options: UnsafePointer<moe_read_options>) -> moe_status {
    moe_model_read_with(model, cache, [1], 1, options, &last)
  }

  /// Call by call.
  var calls: [(ModelLife) -> moe_status] {
    [
      { life in
        var config = life.allocator.contextConfig
        config.n_threads = 2
        return moe_context_create(&config, &life.context)
      },
      { $0.create() },
      { moe_model_tape_create($0.model, &$0.tape) },
      { $0.forward() },
      { $0.backward() },
      { moe_cache_create($0.model, Int64($0.sequences), Int64($0.length), &$0.cache) },
      { $0.read() },
    ]
  }
}

@Suite("Models")
struct ModelTests {
  @Test("a life: parameters, a step, memory as planned, reading")
  func life() throws {
    let life = ModelLife()
    for call in life.calls.prefix(3) { try check(call(life)) }

    var count: Int64 = 0
    try check(moe_model_parameter_count(life.model, &count))
    // embed; twice two norms with biases, qkv, output; up and down with biases; router, up and down with biases; norm
    #expect(count == 1 + 2 * 6 + 4 + 6 + 2)
    var index: Int64 = -1
    try check(moe_model_find_parameter(life.model, "layers.1.ffn.router.weight", &index))
    var tensor = moe_tensor()
    moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
    try check(moe_model_parameter(life.model, index, &tensor))
    #expect(tensor.dimensions == [4, 8] && String(cString: tensor.name) == "layers.1.ffn.router.weight")
    let own = Variable("router", Array(tensor.values), grad: Array(tensor.gradient))
    try check(moe_model_bind_parameter(life.model, index, own.data.baseAddress, own.grad.baseAddress))

    var keep: [Int32] = [-1, -1]
    var plan = moe_model_plan()
    moe_model_plan_init(&plan, MemoryLayout<moe_model_plan>.size)
    try keep.withUnsafeMutableBufferPointer { keep in
      plan.keep = keep.baseAddress
      try check(life.withInput { moe_model_plan_memory(life.model, $0, 1, &plan) })
    }
    #expect(keep == [MOE_KEEP_ALL.int32, MOE_KEEP_ALL.int32] && plan.kept_all == 2)
    var (before, after) = (0, 0)
    try check(moe_context_memory(life.context, &before, nil))
    try check(life.forward())
    try check(life.backward())
    try check(moe_context_memory(life.context, &after, nil))
    #expect(after - before == plan.total_bytes)
    #expect(life.report.n_targets == 9 && life.report.loss > 0 && life.report.loss < 4)
    #expect(life.report.objective > life.report.loss + life.report.aux_loss && life.report.aux_loss > 0)
    #expect(own.grad.contains { $0 != 0 })
    try check(moe_model_zero_grad(life.model))
    #expect(own.grad.allSatisfy { $0 == 0 })

    var layer: OpaquePointer?
    try check(moe_model_layer(life.model, 1, &layer))
    try check(moe_layer_prepare(layer, MOE_PREPARED_F32.int32))
    try check(moe_model_prepare(life.model, MOE_PREPARED_F32.int32))

    for call in life.calls.suffix(2) { try check(call(life)) }
    for (b, v) in (0..<2).flatMap({ b in (0..<11).map { (b, $0) } }) {
      #expect(abs(life.last[b * 11 + v] - life.logits[(b * 5 + 4) * 11 + v]) < 1e-5)
    }
    try check(moe_cache_truncate(life.cache, 0))
    let first = life.last
    try check(life.read())
    #expect(life.last == first)
    life.free()
    #expect(life.allocator.live == 0 && life.allocator.complaints.isEmpty)
  }

  @Test("what a matrix reads is gathered, packed by, read, and given back")
  func calibration() throws {
    let life = ModelLife()
    for call in life.calls.prefix(3) { try check(call(life)) }
    var calibration: OpaquePointer?
    try check(moe_calibration_create(life.model, 1 << 20, &calibration))
    try check(life.withInput { moe_model_calibrate(life.model, $0, calibration) })
    var index: Int64 = -1
    try check(moe_model_find_parameter(life.model, "layers.1.ffn.experts.up.weight", &index))
    var (found, tokens) = (moe_calibrated(), Int64(0))
    moe_calibrated_init(&found, MemoryLayout<moe_calibrated>.size)
    for expert in 0..<Int64(4) {
      try check(moe_calibration_read(calibration, index, expert, &found))
      tokens += found.n_tokens
      #expect(found.n_experts == 4 && found.n_inputs == 8 && found.is_few == 1)
      #expect((0..<8).allSatisfy { found.square_sums![$0] > 0 || found.n_tokens == 0 })
      #expect(found.n_product_tokens == 10)
      #expect(found.products![9] > 0 && found.products![1] == found.products![8])
    }
    #expect(tokens % 10 == 0 && tokens > 0 && String(cString: found.name) == "layers.1.ffn.experts.up.weight")
    refused("expert", moe_calibration_read(calibration, index, 4, &found))
    refused("parameter", moe_calibration_read(calibration, 1 << 40, 0, &found))
    refused("prepared", moe_model_prepare_calibrated(life.model, MOE_PREPARED_F32.int32, calibration))
    refused("calibration", moe_model_prepare_calibrated(life.model, MOE_PREPARED_INT8.int32, nil))
    refused("calibration", life.withInput { moe_model_calibrate(life.model, $0, nil) })
    refused("model", moe_calibration_create(nil, 0, &calibration))
    try check(moe_model_prepare_calibrated(life.model, MOE_PREPARED_INT8.int32, calibration))
    refused("weights", life.withInput { moe_model_calibrate(life.model, $0, calibration) }, MOE_ERROR_BAD_STATE)
    moe_calibration_free(calibration)
    moe_calibration_free(nil)
    life.free()
    #expect(life.allocator.live == 0 && life.allocator.complaints.isEmpty)
  }

  @Test("a frozen parameter gives up its gradient, and the others keep their bits")
  func frozen() throws {
    let life = ModelLife()
    for call in life.calls.prefix(5) { try check(call(life)) }
    var tensor = moe_tensor()
    moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
    var count: Int64 = 0
    try check(moe_model_parameter_count(life.model, &count))
    func gradients() throws -> [[Float]?] {
      try (0..<count).map {
        try check(moe_model_parameter(life.model, $0, &tensor))
        return tensor.grad == nil ? nil : Array(tensor.gradient)
      }
    }
    let whole = try gradients()
    for index in stride(from: 0, to: count, by: 2) {
      let (live, bytes) = (life.allocator.live, life.allocator.liveBytes)
      for _ in 0..<2 { try check(moe_model_freeze(life.model, index)) }
      #expect(life.allocator.live == live - 1)
      #expect(life.allocator.liveBytes <= bytes - 4 * whole[Int(index)]!.count)
    }
    try check(moe_model_zero_grad(life.model))
    try check(life.forward())
    try check(life.backward())
    let part = try gradients()
    for index in whole.indices { #expect(part[index] == (index % 2 == 0 ? nil : whole[index])) }

    var optimizer = untouched
    try check(moe_model_parameter(life.model, 0, &tensor))
    #expect(tensor.frozen == 1 && String(cString: tensor.name) == "embed.weight")
    refused("frozen", moe_adamw_create(life.context, nil, &tensor, 1, &optimizer))
    refused("frozen", moe_clip_grad_norm(life.context, &tensor, 1, 1, nil))
    tensor.frozen = 2
    refused("frozen", moe_adamw_create(life.context, nil, &tensor, 1, &optimizer))
    #expect(optimizer == untouched)

    // A gradient ends it, the values being where they are.
    let own = Variable("embed", [Float](repeating: 0, count: whole[0]!.count), grad: whole[0]!)
    try check(moe_model_bind_parameter(life.model, 0, tensor.data, own.grad.baseAddress))
    try check(moe_model_zero_grad(life.model))
    try check(life.backward())
    #expect(Array(own.grad) == whole[0]!)
    try check(moe_model_freeze(life.model, 0))
    try check(life.backward())
    #expect(Array(own.grad) == whole[0]!)
    life.free()
    #expect(life.allocator.live == 0 && life.allocator.complaints.isEmpty)
  }

  @Test("a padded prompt is read as the prompt alone, and what follows it too")
  func readsPadded() throws {
    let life = ModelLife()
    for call in life.calls.prefix(2) { try check(call(life)) }
    var options = moe_read_options()
    moe_read_options_init(&options, MemoryLayout<moe_read_options>.size)
    // Two prompts, padded in front and behind, then a token each; and the second of them alone.
    try check(moe_cache_create(life.model, 2, 6, &life.cache))
    let valid: [UInt8] = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    var steps = [[Float]]()
    try valid.withUnsafeBufferPointer { valid in
      options.valid_mask = valid.baseAddress
      try check(moe_model_read_with(life.model, life.cache, life.tokens, 5, &options, &life.last))
    }
    steps.append(Array(life.last[11...]))
    try check(moe_model_read_with(life.model, life.cache, [1, 9], 1, nil, &life.last))
    steps.append(Array(life.last[11...]))
    var alone: OpaquePointer?
    try check(moe_cache_create(life.model, 1, 6, &alone))
    defer { moe_cache_free(alone) }
    let positions: [Int64] = [0, 1, 2]
    try positions.withUnsafeBufferPointer { positions in
      (options.valid_mask, options.positions) = (nil, positions.baseAddress)
      try check(moe_model_read_with(life.model, alone, Array(life.tokens[5..<8]), 3, &options, &life.last))
      for v in 0..<11 { #expect(abs(life.last[v] - steps[0][v]) < 1e-5) }
      try check(moe_model_read(life.model, alone, [9], 1, &life.last))
      for v in 0..<11 { #expect(abs(life.last[v] - steps[1][v]) < 1e-5) }
    }
    options.positions = nil
    refused("struct_size", withChanged(options, { $0.struct_size = 4 }) { life.readWith(alone, $0) })
    let two: [UInt8] = [2]
    two.withUnsafeBufferPointer { two in
      refused("valid_mask", withChanged(options, { $0.valid_mask = two.baseAddress }) { life.readWith(alone, $0) })
    }
    let far: [Int64] = [1 << 40]
    far.withUnsafeBufferPointer { far in
      refused("positions", withChanged(options, { $0.positions = far.baseAddress }) { life.readWith(alone, $0) })
    }
  }

  @Test("an encoder layer as PyTorch has it")
  func encoderLayer() throws {
    var config = moe_model_config()
    moe_encoder_layer_config_init(&config, MemoryLayout<moe_model_config>.size)
    #expect(config.norm_place == MOE_NORM_POST.int32 && config.n_layers == 1 && config.dense_dropout == 0.1)
    (config.hidden_size, config.n_heads, config.dense_intermediate_size) = (8, 2, 9)
    let life = ModelLife()
    try check(moe_context_create(nil, &life.context))
    try check(moe_model_create(life.context, &config, &life.model))
    let x = noise(6 * 8)
    var y = [Float](repeating: .nan, count: x.count)
    try x.withUnsafeBufferPointer { x in
      var input = moe_model_input()
      moe_model_input_init(&input, MemoryLayout<moe_model_input>.size)
      (input.n_sequences, input.sequence_length, input.hidden) = (2, 3, x.baseAddress)
      try check(moe_model_forward(life.model, &input, &y, nil, nil, nil))
    }
    // LayerNorm comes last: every row has mean 0 and variance 1.
    for t in 0..<6 {
      let row = y[t * 8..<(t + 1) * 8]
      #expect(abs(row.reduce(0, +)) < 1e-4 && abs(row.reduce(0) { $0 + $1 * $1 } - 8) < 1e-2)
    }
  }

  @Test("whichever allocation fails, the call says so, nothing is lost, and it works when tried again")
  func outOfMemory() throws {
    for step in 0..<ModelLife().calls.count {
      var k = 1
      while true {
        let life = ModelLife()
        for call in life.calls.prefix(step) { try check(call(life)) }
        let live = life.allocator.live
        life.allocator.fail(at: k)
        let status = life.calls[step](life)
        let failed = life.allocator.hasFailed
        life.allocator.fail(at: nil)
        if !failed {
          try check(status)
          break
        }
        // A context starts fewer threads rather than to fail.
        if status != MOE_OK { #expect(status == MOE_ERROR_OUT_OF_MEMORY) }
        if step == 1 { #expect(life.allocator.live == live) }
        if status != MOE_OK { try check(life.calls[step](life)) }
        life.free()
        #expect(life.allocator.live == 0 && life.allocator.complaints.isEmpty)
        k += 1
      }
      // Backward and reading may find enough in the context's scratch.
      if step != 4 && step != 6 { #expect(k > 1, "call \(step) takes no memory") }
    }
  }

  @Test("A model tells what it was made with, in memory of its own")
  func configuration() throws {
    let life = ModelLife()
    try check(life.calls[0](life))
    let (frequencies, layers) = (
      UnsafeMutablePointer<Double>.allocate(capacity: 2),
      UnsafeMutablePointer<moe_model_layer_config>.allocate(capacity: 2)
    )
    frequencies.initialize(to: 0.5)
    (frequencies + 1).initialize(to: 0.125)
    layers.initialize(to: moe_model_layer_config(dense: 1, rotary: -1, window: 0, chunk: 0, dense_intermediate_size: 0))
    (layers + 1).initialize(
      to: moe_model_layer_config(dense: 0, rotary: 0, window: 3, chunk: 0, dense_intermediate_size: 0))
    var table = moe_rotary_table()
    table.frequencies = UnsafePointer(frequencies)
    try withUnsafePointer(to: &table) { table in
      try check(
        life.create {
          ($0.rope_theta, $0.moe_every, $0.layers) = (0, 0, UnsafePointer(layers))
          ($0.rotary_tables, $0.n_rotary_tables) = (table, 1)
        })
    }
    frequencies.update(repeating: .nan, count: 2)
    layers.update(repeating: moe_model_layer_config(), count: 2)
    var config = moe_model_config()
    moe_model_config_init(&config, MemoryLayout<moe_model_config>.size)
    try check(moe_model_configuration(life.model, &config))
    #expect(config.struct_size == MemoryLayout<moe_model_config>.size)
    #expect(config.hidden_size == 8 && config.vocabulary_size == 11 && config.dense_intermediate_size == 9)
    #expect(config.moe.pointee.n_experts == 4 && config.moe.pointee.top_k == 2)
    #expect(config.layers[0].dense == 1 && config.layers[0].rotary == -1 && config.layers[1].window == 3)
    #expect(config.rotary_tables[0].frequencies[0] == 0.5 && config.rotary_tables[0].frequencies[1] == 0.125)
    frequencies.deallocate()
    layers.deallocate()
  }

  @Test("NULL, sizes and states are refused by name")
  func refusals() throws {
    let life = ModelLife()
    for call in life.calls.prefix(3) { try check(call(life)) }
    var (count, index): (Int64, Int64) = (0, 0)
    var out = untouched
    refused("context", moe_model_create(nil, nil, &out))
    refused("config", moe_model_create(life.context, nil, &out))
    refused("hidden_size", life.create { $0.hidden_size = 0 })
    refused("struct_size", life.create { $0.struct_size = 8 })
    refused("dense_kind", life.create { $0.dense_kind = MOE_EXPERT_LINEAR.int32 })
    refused("dense_activation", life.create { $0.dense_activation = 6 })
    refused("tied_output", life.create { ($0.vocabulary_size, $0.tied_output) = (0, 1) })
    refused("moe_every", life.create { $0.moe = nil })
    refused("norm_place", life.create { $0.norm_place = 3 })
    refused("model", moe_model_parameter_count(nil, &count))
    refused("index", moe_model_parameter(life.model, 99, nil), MOE_ERROR_INVALID_ARGUMENT, orName: "tensor")
    refused("name", moe_model_find_parameter(life.model, "none", &index))
    refused("data", moe_model_bind_parameter(life.model, 0, nil, nil))
    refused("model", moe_model_zero_grad(nil))
    refused("model", moe_model_freeze(nil, 0))
    refused("index", moe_model_freeze(life.model, -1))
    refused("index", moe_model_freeze(life.model, 1 << 40))
    refused("n", moe_model_layer(life.model, 2, &out))
    refused("model", moe_model_prepare(nil, 0))
    refused("prepared", moe_model_prepare(life.model, -1))
    var config = moe_model_config()
    refused("struct_size", moe_model_configuration(life.model, &config))
    refused("config", moe_model_configuration(life.model, nil))
    refused("model", moe_model_tape_create(nil, &out))
    refused("input", moe_model_forward(life.model, nil, nil, nil, nil, nil))
    refused("input", moe_model_plan_memory(life.model, nil, 1, nil), MOE_ERROR_INVALID_ARGUMENT, orName: "plan")
    refused("tape", life.backward(), MOE_ERROR_BAD_STATE)
    try check(life.forward())
    life.targets[0] = 11
    refused("targets", life.forward())
    life.targets[0] = 2
    refused("tape", life.backward(), MOE_ERROR_BAD_STATE)  // emptied by the error
    refused("max_length", moe_cache_create(life.model, 1, 0, &out))
    refused("cache", moe_model_read(life.model, nil, life.tokens, 1, &life.last))
    refused("cache", moe_cache_truncate(nil, 0))
    #expect(out == untouched)
  }
}

private func withChanged(
  _ options: moe_read_options, _ change: (inout moe_read_options) -> Void,
  read: (UnsafePointer<moe_read_options>) -> moe_status
) -> moe_status {
  var own = options
  change(&own)
  return read(&own)
}

/// Of two arguments that are wrong, either may be named.
private func refused(
  _ argument: String, _ actual: moe_status, _ expected: moe_status, orName other: String,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let text = lastError()
  #expect(actual == expected, sourceLocation: sourceLocation)
  #expect(text.contains(argument) || text.contains(other), "\(text)", sourceLocation: sourceLocation)
}
