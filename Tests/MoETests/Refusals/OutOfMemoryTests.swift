import CMoE
import Testing

@Suite("Out of memory")
struct OutOfMemoryTests {
  /// A whole life, call by call: each call may be tried again after it has failed.
  private final class Life {
    let allocator = CountingAllocator()
    let type: moe_dtype  // of the weights
    let everything: Bool  // a layer with all that takes memory, and calls with all that they can bring
    let x = noise(20 * 5)
    let dy = noise(20 * 5, seed: 2)
    var y = [Float](repeating: .nan, count: 20 * 5)
    var dx = [Float](repeating: .nan, count: 20 * 5)
    var norm = 0.0
    var context, layer, tape, adamw, sgd, muon, statistics, routing: OpaquePointer?

    init(_ type: moe_dtype = MOE_DTYPE_F32, everything: Bool = false) {
      self.type = type
      self.everything = everything
    }

    typealias Call = (name: String, run: @Sendable (Life) throws -> moe_status)
    static let calls: [Call] = [
      ("moe_context_create", { $0.createContext() }),
      ("moe_layer_create", { $0.createLayer() }),
      ("moe_tape_create", { moe_tape_create($0.layer, &$0.tape) }),
      ("moe_routing_create", { moe_routing_create($0.context, &$0.routing) }),
      ("moe_layer_forward", { $0.forward() }),
      ("moe_layer_prepare", { moe_layer_prepare($0.layer, $0.prepared.int32) }),
      ("moe_layer_prepare", { moe_layer_prepare($0.layer, 0) }),
      ("moe_layer_backward", { moe_layer_backward($0.layer, $0.tape, $0.x, $0.dy, 1, &$0.dx, nil) }),
      ("moe_adamw_create", { moe_adamw_create($0.context, nil, try $0.trained(), try $0.count(), &$0.adamw) }),
      ("moe_sgd_create", { moe_sgd_create($0.context, nil, try $0.trained(), try $0.count(), &$0.sgd) }),
      ("moe_muon_create", { moe_muon_create($0.context, nil, try $0.trained(), try $0.count(), &$0.muon) }),
      ("moe_clip_grad_norm", { moe_clip_grad_norm($0.context, try $0.trained(), try $0.count(), 1, &$0.norm) }),
      ("moe_optimizer_step", { moe_optimizer_step($0.adamw, try $0.trained(), try $0.count()) }),
      ("moe_optimizer_step", { moe_optimizer_step($0.sgd, try $0.trained(), try $0.count()) }),
      ("moe_optimizer_step", { moe_optimizer_step($0.muon, try $0.trained(), try $0.count()) }),
      ("moe_statistics_create", { moe_statistics_create($0.context, 4, &$0.statistics) }),
    ]

    private func createContext() -> moe_status {
      var config = allocator.contextConfig
      config.n_threads = 2
      return moe_context_create(&config, &context)
    }

    private func createLayer() -> moe_status {
      var config = moe_layer_config()
      moe_layer_config_init(&config, MemoryLayout<moe_layer_config>.size)
      config.hidden_size = 5
      config.intermediate_size = 7
      config.n_experts = 4
      config.top_k = 2
      config.balance_coef = 0.01
      config.weight_dtype = type.int32
      if !everything { return moe_layer_create(context, &config, &layer) }

      // Room for half of the choices that a table makes; the next best expert is the gate's.
      config.router = MOE_ROUTER_HASH.int32
      (config.capacity_formula, config.capacity_factor, config.overflow) = (MOE_CAPACITY_MEGATRON.int32, 0.5, 1)
      (config.noise, config.jitter, config.router_batch_norm) = (MOE_NOISE_LEARNED.int32, 0.1, 1)
      (config.n_shared_experts, config.shared_gate, config.output_bias) = (2, MOE_SHARED_SIGMOID.int32, 1)
      var groups = [MOE_EXPERT_MLP, MOE_EXPERT_GATED, MOE_EXPERT_IDENTITY, MOE_EXPERT_CONSTANT].map {
        var group = moe_expert_group()
        (group.n_experts, group.expert_kind) = (1, $0.int32)
        if $0 == MOE_EXPERT_MLP || $0 == MOE_EXPERT_GATED { (group.intermediate_size, group.dropout) = (7, 0.1) }
        return group
      }
      let table = (0..<11 * 2).map { Int32($0 % 4) }
      let losses = [moe_loss_term(kind: MOE_LOSS_Z.int32, coefficient: 1)]
      return groups.withUnsafeMutableBufferPointer { groups in
        table.withUnsafeBufferPointer { table in
          losses.withUnsafeBufferPointer { losses in
            (config.expert_groups, config.n_expert_groups) = (UnsafePointer(groups.baseAddress), 4)
            config.intermediate_size = 0
            (config.hash_table, config.vocabulary_size) = (table.baseAddress, 11)
            (config.losses, config.n_losses) = (losses.baseAddress, 1)
            return moe_layer_create(context, &config, &layer)
          }
        }
      }
    }

    private func forward() -> moe_status {
      if !everything { return moe_layer_forward(layer, x, 20, nil, &y, tape, nil) }
      let ids = (0..<20).map { Int64($0 % 11) }
      let mask = (0..<20).map { UInt8($0 % 3 == 0 ? 0 : 1) }
      return ids.withUnsafeBufferPointer { ids in
        mask.withUnsafeBufferPointer { mask in
          var options = forwardOptions(training: true, step: 3)
          (options.token_ids, options.valid_mask, options.record) = (ids.baseAddress, mask.baseAddress, routing)
          return moe_layer_forward(layer, x, 20, &options, &y, tape, nil)
        }
      }
    }

    private var prepared: moe_prepared { type == MOE_DTYPE_BF16 ? MOE_PREPARED_BF16 : MOE_PREPARED_F32 }

    /// What optimisers step, and how many that are.
    func trained() throws -> [moe_tensor] { try tensors().filter { $0.grad != nil } }
    func count() throws -> Int64 { Int64(try trained().count) }

    func tensors() throws -> [moe_tensor] {
      var count: Int64 = 0
      try check(moe_layer_parameter_count(layer, &count))
      return try (0..<count).map { index in
        var tensor = moe_tensor()
        moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
        try check(moe_layer_parameter(layer, index, &tensor))
        return tensor
      }
    }

    /// Everything that the calls have computed.
    func results() throws -> [UInt32] {
      bits(try y + dx + [Float(norm)] + tensors().flatMap { $0.numbers + Array($0.gradient) })
    }

    /// The handles and how each is freed.
    func frees() -> [() -> Void] {
      [
        { moe_context_free(self.context) }, { moe_layer_free(self.layer) }, { moe_tape_free(self.tape) },
        { moe_optimizer_free(self.adamw) }, { moe_optimizer_free(self.sgd) },
        { moe_optimizer_free(self.muon) },
        { moe_statistics_free(self.statistics) }, { moe_routing_free(self.routing) },
      ]
    }
  }

  @Test(arguments: [false, true], [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func everyAllocationOfALifeMayFail(once: Bool, type: moe_dtype) throws {
    try everyAllocationMayFail(once: once, calm: Life(type), life: Life(type))
  }

  @Test(arguments: [false, true], [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func everyAllocationOfABigLifeMayFail(once: Bool, type: moe_dtype) throws {
    try everyAllocationMayFail(once: once, calm: Life(type, everything: true), life: Life(type, everything: true))
  }

  private func everyAllocationMayFail(once: Bool, calm: Life, life: Life) throws {
    var expectedLive: [Int] = []  // after each call
    for call in Life.calls {
      try check(try call.run(calm))
      expectedLive.append(calm.allocator.live)
    }
    let expected = try calm.results()
    for free in calm.frees() { free() }
    #expect(calm.allocator.live == 0)

    let allocator = life.allocator
    var failures: [String: Int] = [:]
    for (call, expectedLive) in zip(Life.calls, expectedLive) {
      let before = allocator.live
      var k = 1
      while true {
        let live = allocator.live
        allocator.fail(at: k, once: once)
        let status = try call.run(life)
        let failed = allocator.hasFailed
        allocator.fail(at: nil)
        if !failed {
          try check(status)
          break
        }
        try #require(status == MOE_ERROR_OUT_OF_MEMORY, "allocation \(k) of \(call.name)")
        // Tapes and scratch may have grown, to what the whole call would have left; a create keeps nothing.
        let most = call.name.hasSuffix("_create") ? before : max(before, expectedLive)
        #expect(allocator.live <= most, "after allocation \(k) of \(call.name)")
        failures[call.name, default: 0] += 1
        // What was kept is not asked for again: the allocation behind it is the kth now.
        if allocator.live == live { k += 1 }
      }
      #expect(allocator.live == expectedLive, "after \(call.name)")
    }
    let hungry = [
      "moe_layer_create", "moe_layer_forward", "moe_adamw_create", "moe_statistics_create", "moe_routing_create",
    ]
    for name in hungry {
      #expect(failures[name, default: 0] > 0, "\(name) takes no memory from the allocator?")
    }
    #expect(try life.results() == expected, "failures leave no trace")
    for free in life.frees() { free() }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
    #expect(calm.allocator.complaints.isEmpty, "\(calm.allocator.complaints)")
  }

  @Test func handlesStayAsTheyWereWhenCreationFails() throws {
    let life = Life()
    life.context = untouched
    for call in Life.calls where call.name.hasSuffix("_create") {
      life.allocator.fail(at: 1)
      let status = try call.run(life)
      let failed = life.allocator.hasFailed
      life.allocator.fail(at: nil)
      if failed {
        #expect(status == MOE_ERROR_OUT_OF_MEMORY)
        switch call.name {
        case "moe_context_create": #expect(life.context == untouched)
        case "moe_layer_create": #expect(life.layer == nil)
        case "moe_tape_create": #expect(life.tape == nil)
        case "moe_adamw_create": #expect(life.adamw == nil)
        case "moe_sgd_create": #expect(life.sgd == nil)
        case "moe_muon_create": #expect(life.muon == nil)
        case "moe_statistics_create": #expect(life.statistics == nil)
        default: #expect(life.routing == nil)
        }
        try check(try call.run(life))
      }
    }
    for free in life.frees() { free() }
    #expect(life.allocator.live == 0)
  }

  @Test func aTapeThatCannotGrowIsEmptyAndUsable() throws {
    let allocator = CountingAllocator()
    try {
      let layer = try Layer(in: allocator.contextConfig)
      let (small, large) = (noise(3 * layer.hidden), noise(300 * layer.hidden, seed: 2))
      let expected = bits(try layer.forward(small).y)
      var y = large
      var failures = 0
      for k in 1...1000 {
        allocator.fail(at: k)
        let status = moe_layer_forward(layer.layer, large, 300, nil, &y, layer.tape, nil)
        let failed = allocator.hasFailed
        allocator.fail(at: nil)
        if !failed { break }
        failures += 1
        #expect(status == MOE_ERROR_OUT_OF_MEMORY)
        #expect(moe_layer_backward(layer.layer, layer.tape, large, large, 0, nil, nil) == MOE_ERROR_BAD_STATE)
        #expect(bits(try layer.forward(small).y) == expected)
        _ = try layer.backward(small, dy: small)
      }
      #expect(failures > 0)
      #expect(try layer.backward(large, dy: large).allSatisfy { $0.isFinite })
    }()
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }

  @Test func whatCannotRunOutOfMemoryTakesNone() throws {
    // Their documented statuses do not include OUT_OF_MEMORY. No forward comes first: it would leave memory to reuse.
    let life = Life()
    for call in Life.calls where call.name.hasSuffix("_create") { try check(try call.run(life)) }
    let data = UnsafeMutableBufferPointer<Float>.allocate(capacity: 20)
    defer { data.deallocate() }
    data.initialize(repeating: 0)

    life.allocator.fail(at: 1)
    let (tensors, count) = (try life.trained(), try life.count())
    var index: Int64 = 0
    try check(moe_layer_find_parameter(life.layer, "router.weight", &index))
    try check(moe_clip_grad_norm(life.context, tensors, count, 1, nil))
    try check(moe_optimizer_step(life.adamw, tensors, count))
    try check(moe_optimizer_step(life.sgd, tensors, count))
    try check(moe_optimizer_set_learning_rate(life.sgd, 0.5))
    try check(moe_layer_bind_parameter(life.layer, index, data.baseAddress, nil))
    try check(moe_layer_zero_grad(life.layer))
    try checkStatisticsAndRouting(life)
    for free in life.frees() { free() }
    #expect(life.allocator.live == 0)
  }

  private func checkStatisticsAndRouting(_ life: Life) throws {
    var counts: [Int64] = [1, 2, 3, 4]
    try counts.withUnsafeMutableBufferPointer { counts in
      var report = moe_report()
      moe_report_init(&report, MemoryLayout<moe_report>.size)
      report.tokens_per_expert = counts.baseAddress
      try check(moe_statistics_add(life.statistics, &report))
      try check(moe_statistics_read(life.statistics, &report))
      try check(moe_statistics_reset(life.statistics))
    }
    var size = 0
    try check(moe_routing_saved_size(life.routing, &size))
    var memory = [UInt8](repeating: 0, count: size)
    try check(moe_routing_save(life.routing, &memory, size))
  }

  @Test func anAbsurdLayerIsOutOfMemory() throws {
    // 4 * 2^50 bytes of expert weights: a legal size that no machine has.
    let small = try Layer()
    var config = small.config
    config.hidden_size = 1 << 14
    config.intermediate_size = 1 << 29
    config.n_experts = 1 << 7
    var out = untouched
    #expect(moe_layer_create(small.context, &config, &out) == MOE_ERROR_OUT_OF_MEMORY)
    #expect(out == untouched)
  }

  @Test func handlesMayBeFreedInAnyOrder() throws {
    // The last three: some before everything else, the others behind it.
    for order in permutations([0, 1, 2, 3, 4]).map({ $0[0] < 2 ? [5] + $0 + [6, 7] : [6, 7] + $0 + [5] }) {
      let life = Life()
      for call in Life.calls { try check(try call.run(life)) }
      let frees = life.frees()
      for (done, index) in order.enumerated() {
        frees[index]()
        // A layer and its tape are usable without their context.
        if !order[...done].contains(1) && !order[...done].contains(2) {
          try check(moe_layer_forward(life.layer, life.x, 20, nil, &life.y, life.tape, nil))
        }
      }
      #expect(life.allocator.live == 0, "\(order)")
      #expect(life.allocator.complaints.isEmpty, "\(life.allocator.complaints)")
    }
  }

  @Test func bindingFreesWhatTheLibraryOwned() throws {
    let allocator = CountingAllocator()
    let layer = try Layer(hidden: 32, intermediate: 64, experts: 4, in: allocator.contextConfig)
    let count = try layer.parameter("experts.up.weight").count
    let data = UnsafeMutableBufferPointer<Float>.allocate(capacity: count)
    defer { data.deallocate() }
    data.initialize(repeating: 0)
    var index: Int64 = 0
    try check(moe_layer_find_parameter(layer.layer, "experts.up.weight", &index))
    let before = allocator.liveBytes
    try check(moe_layer_bind_parameter(layer.layer, index, data.baseAddress, nil))
    #expect(allocator.liveBytes <= before - 4 * count)
  }

  @Test func inferenceOnlyTakesNoMemoryForGradients() throws {
    func bytes(inferenceOnly: Int32) throws -> (all: Int, parameters: Int) {
      let allocator = CountingAllocator()
      let layer = try Layer(hidden: 32, intermediate: 64, in: allocator.contextConfig) {
        $0.inference_only = inferenceOnly
      }
      let parameters = try layer.tensors().reduce(0) { $0 + 4 * $1.count }
      return (allocator.liveBytes, parameters)
    }
    let (training, inference) = (try bytes(inferenceOnly: 0), try bytes(inferenceOnly: 1))
    #expect(inference.all <= training.all - training.parameters)
  }
}

private func permutations(_ items: [Int]) -> [[Int]] {
  if items.isEmpty { return [[]] }
  return items.flatMap { first in permutations(items.filter { $0 != first }).map { [first] + $0 } }
}
