import CMoE
import Testing

/// What a call writes shares no memory with anything else that it is given; the message names both.
@Suite("Overlapping arrays")
final class OverlapTests {
  let layer: Layer
  let tokens: Int64 = 3
  /// Room for all arrays of a call, aligned as lent memory must be.
  static let room = 4 << 20
  let memory = UnsafeMutableRawPointer.allocate(byteCount: OverlapTests.room, alignment: 64)
  /// Where what is lent begins and how long it is, and where x, y, dy and dx are.
  let (tapeBytes, scratch, scratchBytes) = (1 << 16, 1 << 16, 1 << 20)
  let (x, y, dy, dx) = (3 << 20, 3 << 20 + 4096, 3 << 20 + 8192, 3 << 20 + 12288)

  init() throws {
    layer = try Layer()
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: Self.room)
  }

  deinit { memory.deallocate() }

  private func place<T>(_ offset: Int, as type: T.Type = T.self) -> UnsafeMutablePointer<T> {
    (memory + offset).assumingMemoryBound(to: T.self)
  }

  /// Refused, naming both.
  private func collide(
    _ first: String, _ second: String, _ status: moe_status, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(status == MOE_ERROR_INVALID_ARGUMENT, "\(first), \(second)", sourceLocation: sourceLocation)
    for name in [first, second] {
      #expect(lastError().contains(name), "\(name) in: \(lastError())", sourceLocation: sourceLocation)
    }
    #expect(lastError().contains("overlaps") && lastError().contains("memory of its own"), "\(lastError())")
    _ = moe_optimizer_set_learning_rate(nil, 1)
  }

  // MARK: lists of tensors

  private struct Lists {
    let a = Variable("a", noise(8), grad: noise(8, seed: 2))
    let b = Variable("b", noise(8, seed: 3), grad: noise(8, seed: 4))

    /// The second tensor changed so that it shares memory with the first.
    func list(_ change: (inout moe_tensor, moe_tensor) -> Void) -> [moe_tensor] {
      var second = b.tensor
      change(&second, a.tensor)
      return [a.tensor, second]
    }

    var wrong: [(first: String, second: String, list: [moe_tensor])] {
      [
        ("data of tensors[1] (b)", "data of tensors[0] (a)", list { $0.data = $1.data }),
        ("data of tensors[1] (b)", "data of tensors[0] (a)", list { $0.data = $1.data + 28 }),
        ("grad of tensors[1] (b)", "grad of tensors[0] (a)", list { $0.grad = $1.grad }),
        ("grad of tensors[1] (b)", "grad of tensors[0] (a)", list { $0.grad = $1.grad + 4 }),
        ("data of tensors[1] (b)", "grad of tensors[0] (a)", list { $0.data = $1.grad }),
        ("grad of tensors[1] (b)", "data of tensors[0] (a)", list { $0.grad = $1.data }),
        ("tensors[1] (a)", "tensors[0] (a)", [a.tensor, a.tensor]),
      ]
    }
  }

  @Test func tensorsAreListedOnce() throws {
    let lists = Lists()
    var optimizer: OpaquePointer?
    try check(moe_adamw_create(layer.context, nil, [lists.a.tensor, lists.b.tensor], 2, &optimizer))
    defer { moe_optimizer_free(optimizer) }
    var state = moe_clip_state()
    moe_clip_state_init(&state, MemoryLayout<moe_clip_state>.size)
    let before = Array(lists.a.data) + Array(lists.a.grad) + Array(lists.b.data) + Array(lists.b.grad)
    for (first, second, list) in lists.wrong {
      var out = untouched
      collide(first, second, moe_adamw_create(layer.context, nil, list, 2, &out))
      collide(first, second, moe_sgd_create(layer.context, nil, list, 2, &out))
      collide(first, second, moe_muon_create(layer.context, nil, list, 2, &out))
      #expect(out == untouched)
      collide(first, second, moe_optimizer_step(optimizer, list, 2))
      collide(first, second, moe_optimizer_step_clipped(optimizer, list, 2, 1, nil))
      collide(first, second, moe_optimizer_step_adaptive(optimizer, list, 2, &state, nil))
      collide(first, second, moe_clip_grad_norm(layer.context, list, 2, 0.1, nil))
    }
    #expect(Array(lists.a.data) + Array(lists.a.grad) + Array(lists.b.data) + Array(lists.b.grad) == before)
    #expect(state.count == 0)
    // Neighbours are no overlap: halves of one array.
    let both = Variable("both", noise(16), grad: noise(16))
    var halves = [both.tensor, both.tensor]
    (halves[0].shape.0, halves[1].shape.0) = (8, 8)
    (halves[1].data, halves[1].grad) = (halves[1].data + 32, halves[1].grad + 32)
    try check(moe_optimizer_step(optimizer, halves, 2))
  }

  /// Long lists are sorted: the one overlap is found wherever it is, and only that.
  @Test(arguments: [16, 17, 40, 500]) func inLongLists(count: Int) throws {
    let all = Variable("all", noise(4 * count), grad: noise(4 * count))
    var list = (0..<count).map { i in
      var tensor = all.tensor
      tensor.shape.0 = 4
      // In another order than their addresses'.
      let place = 16 * (i * 7 % count)
      (tensor.data, tensor.grad) = (tensor.data + place, tensor.grad + place)
      return tensor
    }
    try check(moe_clip_grad_norm(layer.context, list, Int64(count), .infinity, nil))
    for (i, other) in [(0, count - 1), (count / 2, count / 3), (count - 1, 0)] {
      let grad = list[i].grad
      list[i].grad = list[other].grad + 12
      #expect(
        moe_clip_grad_norm(layer.context, list, Int64(count), .infinity, nil) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError().contains("grad of tensors[\(i)]"), "\(lastError())")
      list[i].grad = grad
    }
  }

  @Test func theListItselfAndTheStateAreNoValues() throws {
    var config = moe_sgd_config()
    moe_sgd_config_init(&config, MemoryLayout<moe_sgd_config>.size)
    (config.unallocated_state, config.momentum) = (1, 0.9)
    let own = Variable("own", noise(8), grad: noise(8))
    var optimizer: OpaquePointer?
    try check(moe_sgd_create(layer.context, &config, [own.tensor], 1, &optimizer))
    defer { moe_optimizer_free(optimizer) }
    try check(moe_optimizer_bind_state(optimizer, memory, 1 << 10))

    let list: UnsafeMutablePointer<moe_tensor> = place(1 << 12)
    list.pointee = own.tensor
    try check(moe_optimizer_step(optimizer, list, 1))
    list.pointee.data = UnsafeMutableRawPointer(list) + 16
    collide("data of tensors[0] (own)", "tensors", moe_optimizer_step(optimizer, list, 1))
    collide("data of tensors[0] (own)", "tensors", moe_optimizer_step_clipped(optimizer, list, 1, 1, nil))
    list.pointee = own.tensor
    list.pointee.grad = UnsafeMutableRawPointer(list)
    collide("grad of tensors[0] (own)", "tensors", moe_clip_grad_norm(layer.context, list, 1, 1, nil))
    list.pointee = own.tensor
    list.pointee.data = memory + 4
    collide("data of tensors[0] (own)", "the optimizer's state", moe_optimizer_step(optimizer, list, 1))
    list.pointee = own.tensor
    list.pointee.grad = memory + 8
    collide("grad of tensors[0] (own)", "the optimizer's state", moe_optimizer_step(optimizer, list, 1))
    list.pointee = own.tensor
    let norm = UnsafeMutableRawPointer(own.grad.baseAddress!).assumingMemoryBound(to: Double.self)
    collide("grad of tensors[0] (own)", "norm", moe_optimizer_step_clipped(optimizer, list, 1, 1, norm))
    collide("grad of tensors[0] (own)", "norm", moe_clip_grad_norm(layer.context, list, 1, 1, norm))
  }

  @Test func whatATrainingStateIsLoadedInto() throws {
    let folder = try Folder()
    let own = Variable("own", noise(4), grad: [])
    var list = [own.tensor, own.tensor]
    (list[0].shape.0, list[1].shape.0) = (2, 2)
    list[1].data += 8
    var training = moe_training()
    moe_training_init(&training, MemoryLayout<moe_training>.size)
    func call(_ body: (UnsafeMutablePointer<moe_training>) -> moe_status) -> moe_status {
      list.withUnsafeBufferPointer { list in
        (training.tensors, training.n_tensors) = (list.baseAddress, 2)
        return body(&training)
      }
    }
    try check(call { moe_training_save(layer.context, $0, folder.file("state")) })
    try check(call { moe_training_load(layer.context, $0, folder.file("state")) })
    list[1].data -= 4
    collide(
      "data of tensors[1] (own)", "data of tensors[0] (own)",
      call { moe_training_load(layer.context, $0, folder.file("state")) })
  }

  // MARK: a layer's calls

  private func forward(
    x: Int? = nil, y: Int? = nil, tape: OpaquePointer? = nil, report: UnsafeMutablePointer<moe_report>? = nil,
    _ change: (inout moe_forward_options) -> Void = { _ in }
  ) -> moe_status {
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: Self.room)
    var options = forwardOptions()
    change(&options)
    return moe_layer_forward(
      layer.layer, memory + (x ?? self.x), tokens, &options, memory + (y ?? self.y), tape, report)
  }

  @Test func layerForward() throws {
    var tape: OpaquePointer?
    try check(moe_tape_create(layer.layer, &tape))
    defer { moe_tape_free(tape) }
    try check(moe_tape_bind(tape, memory, tapeBytes))
    func forward(scratch: Int, x: Int? = nil, y: Int? = nil) -> moe_status {
      self.forward(x: x, y: y, tape: tape) { ($0.scratch, $0.scratch_size) = (memory + scratch, scratchBytes) }
    }
    try check(forward(scratch: scratch))
    collide("y", "memory bound to tape", self.forward(y: 4096, tape: tape))
    collide("memory bound to tape", "x", self.forward(x: tapeBytes - 4, tape: tape))
    collide("scratch", "memory bound to tape", forward(scratch: 0))
    collide("scratch", "memory bound to tape", forward(scratch: tapeBytes - 64))
    collide("scratch", "y", forward(scratch: scratch, y: scratch + scratchBytes - 4))
    collide("scratch", "x", forward(scratch: scratch, x: scratch + 4096))
    collide("y", "options.expert_indices", self.forward { $0.expert_indices = UnsafePointer(place(y)) })
    collide("y", "options.valid_mask", self.forward { $0.valid_mask = UnsafePointer(place(y + 32)) })
    collide("y", "options.global_counts", self.forward { $0.global_counts = UnsafePointer(place(y - 24)) })

    var report = moe_report()
    func reported(_ first: String, _ second: String, _ change: (inout moe_report) -> Void) {
      moe_report_init(&report, MemoryLayout<moe_report>.size)
      change(&report)
      collide(first, second, self.forward(report: &report))
    }
    reported("report.tokens_per_expert", "y") { $0.tokens_per_expert = place(y) }
    reported("report.expert_weights", "x") { $0.expert_weights = place(x) }
    reported("report.expert_indices", "report.expert_weights") {
      ($0.expert_indices, $0.expert_weights) = (place(0), place(20))
    }
    reported("report.mean_probability", "report.dropped_per_expert") {
      ($0.mean_probability, $0.dropped_per_expert) = (place(24), place(0))
    }
    let bias = try layer.parameter("router.bias")
    reported("report.mean_probability", "router.bias") { $0.mean_probability = bias.values.baseAddress }
    reported("report.expert_weights", "gradient of router.bias") { $0.expert_weights = bias.gradient.baseAddress }
  }

  @Test func layerBackward() throws {
    var tape: OpaquePointer?
    try check(moe_tape_create(layer.layer, &tape))
    defer { moe_tape_free(tape) }
    try check(moe_tape_bind(tape, memory, tapeBytes))
    try check(forward(tape: tape))
    var options = moe_backward_options()
    func backward(
      dy: Int? = nil, dx: Int? = nil, scratch: Int? = nil, _ change: (inout moe_backward_options) -> Void = { _ in }
    ) -> moe_status {
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      (options.scratch, options.scratch_size) = (memory + (scratch ?? self.scratch), scratchBytes)
      change(&options)
      return moe_layer_backward(
        layer.layer, tape, memory + x, memory + (dy ?? self.dy), 0, memory + (dx ?? self.dx), &options)
    }
    collide("scratch", "memory bound to tape", backward(scratch: 0))
    collide("dx", "memory bound to tape", backward(dx: 8000))
    collide("dx", "scratch", backward(dx: scratch + 4096))
    collide("dx", "dy", backward(dx: dy))
    collide("dx", "options.d_mean_probability", backward { $0.d_mean_probability = UnsafePointer(place(dx)) })
    let gradient = UnsafeMutableRawPointer(try layer.parameter("experts.up.weight").gradient.baseAddress!)
    collide("gradient of experts.up.weight", "dy", backward(dy: gradient - memory))
    try check(backward())
  }

  @Test func selectionBias() throws {
    let biased = try Layer { $0.selection_bias = 1 }
    var index: Int64 = -1
    try check(moe_layer_find_parameter(biased.layer, "router.selection_bias", &index))
    try check(moe_layer_bind_parameter(biased.layer, index, memory, nil))
    collide(
      "router.selection_bias", "tokens_per_expert",
      moe_layer_update_selection_bias(biased.layer, UnsafePointer(place(8)), 0.1, 0))
  }

  // MARK: blocks

  @Test func blocks() throws {
    let c = layer.context
    func at(_ offset: Int) -> UnsafeMutablePointer<Float> { place(offset) }
    func loss(
      _ loss: Int, _ counted: Int, _ losses: Int, dx: Int = 4096, dweight: Int = 8192, targets: Int = 12288
    ) -> moe_status {
      var config = moe_cross_entropy_config()
      moe_cross_entropy_config_init(&config, MemoryLayout<moe_cross_entropy_config>.size)
      (config.n_tokens, config.hidden_size, config.vocabulary_size) = (3, 4, 5)
      return moe_cross_entropy(
        c, &config, at(16384), at(20480), place(targets), place(loss), place(counted), at(losses), at(dx), at(dweight))
    }
    collide("counted", "loss", loss(0, 0, 64))
    collide("token_losses", "loss", loss(8, 64, 0))
    collide("token_losses", "counted", loss(64, 8, 0))
    collide("dx", "counted", loss(0, 4096 + 40, 64))
    collide("dweight", "token_losses", loss(0, 8, 8192 + 76))
    collide("loss", "targets", loss(12288 + 8, 64, 128))
    try check(loss(0, 8, 16))

    // In place is in place: the very same memory, and nothing else there.
    func norm(x: Int, y: Int, weight: Int = 4096, statistics: Int = 8192, tokens: Int64 = 3) -> moe_status {
      var config = moe_norm_config()
      moe_norm_config_init(&config, MemoryLayout<moe_norm_config>.size)
      (config.n_tokens, config.hidden_size, config.norm) = (tokens, 4, MOE_NORM_RMS.int32)
      return moe_norm_forward(c, &config, at(x), at(weight), nil, at(y), at(statistics))
    }
    try check(norm(x: 0, y: 0))
    collide("y", "x", norm(x: 0, y: 4))
    collide("y", "weight", norm(x: 0, y: 0, weight: 0))
    collide("y", "weight", norm(x: 0, y: 0, weight: 0, tokens: 1))  // of x's very memory
    let rotary: UnsafeMutablePointer<moe_rotary_config> = place(256)
    moe_rotary_config_init(rotary, MemoryLayout<moe_rotary_config>.size)
    (rotary.pointee.n_tokens, rotary.pointee.n_heads, rotary.pointee.head_size) = (3, 1, 4)
    collide("x", "config", moe_rotate(c, rotary, at(256 + 40)))
    rotary.pointee.positions = UnsafePointer(place(1024))
    collide("x", "positions", moe_rotate(c, rotary, at(1024 + 16)))
    collide("statistics", "x", norm(x: 0, y: 0, statistics: 40))
    collide("current", "peak", moe_context_memory(c, place(0), place(0)))
    collide(
      "loss", "n_valid",
      moe_pooled_balance_loss(1, 2, place(256), place(0), at(512), at(4), nil))
    var sampling = moe_sampling()
    moe_sampling_init(&sampling, MemoryLayout<moe_sampling>.size)
    collide("token", "logits", moe_sample(c, at(0), 5, &sampling, 0, place(16)))
    collide("count", "events", moe_profile_events(c, 0, place(0), 2, place(64)))
    let clip: UnsafeMutablePointer<moe_clip_state> = place(1024)
    moe_clip_state_init(clip, MemoryLayout<moe_clip_state>.size)
    collide("max_norm", "state", moe_adaptive_clip(clip, 1, place(1024 + 32)))
  }
}
