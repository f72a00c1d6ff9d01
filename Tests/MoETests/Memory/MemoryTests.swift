import CMoE
import Testing

/// Memory that is named before it is taken: plans, limits, and memory of the caller's.
@Suite("Memory")
struct MemoryTests {
  private static let tokens = 700  // two chunks of 256 and a rest

  private func layer(in context: moe_context_config? = nil, intermediate: Int64 = 48) throws -> Layer {
    try Layer(hidden: 40, intermediate: intermediate, in: context)
  }

  private func options(_ policy: moe_tape_policy = MOE_TAPE_AUTO, limit: Int = 0) -> moe_forward_options {
    var options = forwardOptions()
    (options.tape_policy, options.memory_limit) = (policy.int32, limit)
    return options
  }

  // MARK: plans

  @Test func initFillsWithZeros() {
    withUnsafeTemporaryAllocation(byteCount: 128, alignment: 16) { memory in
      let plan = memory.baseAddress!.assumingMemoryBound(to: moe_plan.self)
      let size = MemoryLayout<moe_plan>.size
      for written in [size, size + 16] {
        memory.initializeMemory(as: UInt8.self, repeating: 0xA5)
        moe_plan_init(plan, written)
        #expect(plan.pointee.struct_size == written)
        #expect(memory[8..<written].allSatisfy { $0 == 0 })
        #expect(memory[written...].allSatisfy { $0 == 0xA5 })
      }
      memory.initializeMemory(as: UInt8.self, repeating: 0xA5)
      moe_plan_init(plan, 4)  // no room for struct_size
      #expect(memory.allSatisfy { $0 == 0xA5 })
    }
    moe_plan_init(nil, MemoryLayout<moe_plan>.size)
  }

  @Test func badPlansAreRefused() throws {
    let layer = try layer()
    var plan = emptyPlan()
    plan.chunk_tokens = 77
    func ask(_ change: (inout moe_forward_options) -> Void) -> moe_status {
      var options = options()
      change(&options)
      return moe_layer_plan(layer.layer, 10, &options, 1, &plan)
    }
    refused("layer", moe_layer_plan(nil, 10, nil, 1, &plan))
    refused("n_tokens", moe_layer_plan(layer.layer, -1, nil, 1, &plan))
    refused("n_tokens", moe_layer_plan(layer.layer, 1 << 30, nil, 1, &plan))  // times K = 2
    refused("taped", moe_layer_plan(layer.layer, 10, nil, 2, &plan))
    refused("taped", moe_layer_plan(layer.layer, 10, nil, -1, &plan))
    refused("plan", moe_layer_plan(layer.layer, 10, nil, 1, nil))
    refused("plan", moe_layer_plan(layer.layer, 10, nil, 1, misaligned(&plan)))
    refused("options", ask { $0.struct_size = 0 })
    refused("tape_policy", ask { $0.tape_policy = 3 })
    refused("tape_policy", ask { $0.tape_policy = -1 })
    refused("reserved2", ask { $0.reserved2 = 1 })
    refused("training", ask { $0.training = 2 })
    refused("sequence_length", ask { $0.sequence_length = 3 })
    refused("memory_limit", ask { $0.memory_limit = 1 })
    for size in wrongStructSizes {
      var plan = plan
      plan.struct_size = size
      refused("plan", moe_layer_plan(layer.layer, 10, nil, 1, &plan))
    }
    #expect(plan.chunk_tokens == 77, "as it was")
    #expect(plan.total_bytes == 0)
  }

  /// What moe_plan_describe writes into so many bytes, and the length that it names.
  private func describe(_ plan: moe_plan, _ size: Int = 256) throws -> (text: String, length: Int) {
    var (plan, length) = (plan, -1)
    var bytes = [CChar](repeating: 77, count: size + 1)
    try check(moe_plan_describe(&plan, &bytes, size, &length))
    #expect(bytes[size] == 77)
    return (size == 0 ? "" : String(cString: bytes), length)
  }

  @Test func plansAsText() throws {
    var plan = emptyPlan()
    (plan.n_tokens, plan.chunk_tokens, plan.tape_policy) = (16385, 512, MOE_TAPE_LEAN.int32)
    (plan.forward_bytes, plan.backward_bytes, plan.tape_bytes) = (43_200_000, 44_040_192, 1_572_864)
    plan.total_bytes = 45_613_056
    let whole = """
      16385 tokens in 33 chunks of 512, lean tape; scratch 41.2 MiB forward, 42.0 MiB backward; tape 1.5 MiB; \
      43.5 MiB in all
      """
    #expect(try describe(plan) == (whole, whole.utf8.count))
    #expect(try describe(plan, whole.utf8.count + 1).text == whole)
    #expect(try describe(plan, 10) == (String(whole.prefix(9)), whole.utf8.count))
    #expect(try describe(plan, 1) == ("", whole.utf8.count))
    #expect(try describe(plan, 0).length == whole.utf8.count)
    #expect(moe_plan_describe(&plan, nil, 0, nil) == MOE_OK)
    (plan.n_tokens, plan.tape_policy) = (512, MOE_TAPE_FULL.int32)
    #expect(try describe(plan).text.hasPrefix("512 tokens at once, full tape;"))
    (plan.backward_bytes, plan.tape_bytes, plan.total_bytes) = (0, 0, 43_200_000)
    #expect(try describe(plan).text == "512 tokens at once, no tape; scratch 41.2 MiB forward; 41.2 MiB in all")
    #expect(try describe(self.plan(layer(), 10)).text.hasPrefix("10 tokens at once, full tape; scratch "))
    #expect(try describe(self.plan(layer(), 0)).text.hasPrefix("0 tokens at once"))

    refused("text", moe_plan_describe(&plan, nil, 5, nil))
    refused("plan", moe_plan_describe(nil, nil, 0, nil))
    plan.tape_policy = 0
    refused("tape_policy", moe_plan_describe(&plan, nil, 0, nil))
    (plan.tape_policy, plan.chunk_tokens) = (1, 0)
    refused("chunk_tokens", moe_plan_describe(&plan, nil, 0, nil))
    (plan.chunk_tokens, plan.n_tokens) = (1, -1)
    refused("n_tokens", moe_plan_describe(&plan, nil, 0, nil))
    // The longest line there can be.
    (plan.n_tokens, plan.tape_policy) = (.max, MOE_TAPE_LEAN.int32)
    (plan.forward_bytes, plan.backward_bytes, plan.tape_bytes, plan.total_bytes) = (-1, -1, -1, -1)
    #expect(try describe(plan).length < 255)
  }

  @Test func aLaterHostsPlanIsFilledWhereItIsKnown() throws {
    let layer = try layer()
    let expected = try self.plan(layer, 10)
    withGrown(emptyPlan(), tail: 0) { plan in
      #expect(moe_layer_plan(layer.layer, 10, nil, 1, plan) == MOE_OK)
      #expect(plan.pointee.total_bytes == expected.total_bytes)
      #expect(plan.pointee.struct_size == MemoryLayout<moe_plan>.size + 16)
    }
    withGrown(emptyPlan(), tail: 1) { plan in
      refused("plan", moe_layer_plan(layer.layer, 10, nil, 1, plan))
    }
  }

  @Test func whatNoAddressSpaceHoldsIsOutOfMemory() throws {
    // Experts without parameters, so that the layer itself takes nothing.
    var group = moe_expert_group()
    (group.n_experts, group.expert_kind) = (1, MOE_EXPERT_IDENTITY.int32)
    let layer = try withUnsafePointer(to: &group) { group in
      try Layer(hidden: Int64(Int32.max), intermediate: 0, experts: 1, topK: 1) {
        $0.router = MOE_ROUTER_EXTERNAL.int32
        ($0.n_expert_groups, $0.expert_groups) = (1, group)
      }
    }
    var plan = emptyPlan()
    #expect(moe_layer_plan(layer.layer, Int64(Int32.max), nil, 1, &plan) == MOE_ERROR_OUT_OF_MEMORY)
    #expect(plan.total_bytes == 0)
  }

  @Test(arguments: [MOE_TAPE_AUTO, MOE_TAPE_FULL, MOE_TAPE_LEAN])
  func aLimitTooSmallNamesTheLeast(policy: moe_tape_policy) throws {
    let layer = try layer()
    let least = try leastLimit(layer, Self.tokens, options(policy, limit: 1))
    let plan = try plan(layer, Self.tokens, options(policy, limit: least))
    #expect(plan.total_bytes <= least)
    #expect(plan.total_bytes == plan.tape_bytes + max(plan.forward_bytes, plan.backward_bytes))
    if policy != MOE_TAPE_AUTO { #expect(plan.tape_policy == policy.int32) }
    #expect(try leastLimit(layer, Self.tokens, options(policy, limit: least - 1)) == least)

    // Forward says the same, and its tape is empty then.
    let x = noise(Self.tokens * layer.hidden)
    var y = x
    _ = try layer.forward(x)
    var tight = options(policy, limit: least - 1)
    refused("memory_limit", moe_layer_forward(layer.layer, x, Int64(Self.tokens), &tight, &y, layer.tape, nil))
    refused("tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE)
  }

  @Test func aLimitOfTheContextGivesWayToOneOfTheCall() throws {
    var config = contextConfig()
    let free = try plan(layer(), Self.tokens)
    config.memory_limit = free.total_bytes - 1
    let layer = try layer(in: config)
    let bound = try plan(layer, Self.tokens)
    #expect(bound.total_bytes < free.total_bytes)
    #expect(bound.chunk_tokens < Self.tokens || bound.tape_policy == MOE_TAPE_LEAN.int32)
    let loosened = try plan(layer, Self.tokens, options(limit: free.total_bytes))
    #expect(loosened.total_bytes == free.total_bytes)
    #expect(loosened.chunk_tokens == Self.tokens && loosened.tape_policy == MOE_TAPE_FULL.int32)
  }

  @Test func withoutATapeThereIsNothingToKeep() throws {
    let layer = try layer()
    let plan = try plan(layer, Self.tokens, taped: 0)
    #expect(plan.tape_bytes == 0)
    #expect(plan.backward_bytes == 0)
    #expect(plan.total_bytes == plan.forward_bytes)
  }

  // MARK: scratch of the caller's

  @Test(arguments: [MOE_TAPE_FULL, MOE_TAPE_LEAN])
  func scratchOfTheCallersIsUsedToTheByte(policy: moe_tape_policy) throws {
    let x = noise(Self.tokens * 40)
    let expected = try Pass(layer(), x, options(policy))
    let layer = try layer()
    let least = try leastLimit(layer, Self.tokens, options(policy, limit: 1))
    let plan = try plan(layer, Self.tokens, options(policy, limit: least))
    let forward = Guarded(plan.forward_bytes)
    let backward = Guarded(plan.backward_bytes)
    let before = try memory(layer).current
    var options = options(policy, limit: least)
    (options.scratch, options.scratch_size) = (forward.start, plan.forward_bytes)
    var backwardOptions = moe_backward_options()
    moe_backward_options_init(&backwardOptions, MemoryLayout<moe_backward_options>.size)
    (backwardOptions.scratch, backwardOptions.scratch_size) = (backward.start, plan.backward_bytes)
    #expect(try Pass(layer, x, options, backwardOptions) == expected)
    #expect(forward.isWithinBounds && backward.isWithinBounds)
    #expect(try memory(layer).current == before + plan.tape_bytes, "no scratch of the library's")
  }

  @Test func badScratchIsRefused() throws {
    let layer = try layer()
    let x = noise(Self.tokens * layer.hidden)
    var y = x
    let plan = try plan(layer, Self.tokens)
    let block = Guarded(max(plan.forward_bytes, plan.backward_bytes) + 64)
    func forward(_ memory: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
      var options = options()
      (options.scratch, options.scratch_size) = (memory, size)
      return moe_layer_forward(layer.layer, x, Int64(Self.tokens), &options, &y, layer.tape, nil)
    }
    func backward(_ memory: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
      var options = moe_backward_options()
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      (options.scratch, options.scratch_size) = (memory, size)
      var dx = x
      return moe_layer_backward(layer.layer, layer.tape, x, x, 0, &dx, &options)
    }
    refused("scratch_size", forward(block.start, plan.forward_bytes - 1))
    refused("scratch", forward(block.start + 4, plan.forward_bytes))
    refused("scratch", forward(nil, plan.forward_bytes))
    try check(forward(block.start, plan.forward_bytes))
    refused("scratch_size", backward(block.start, plan.backward_bytes - 1))
    refused("scratch", backward(block.start + 4, plan.backward_bytes))
    refused("scratch", backward(nil, plan.backward_bytes))
    #expect(try layer.gradients().allSatisfy { $0 == 0 }, "nothing has been added")
    try check(backward(block.start, plan.backward_bytes))
  }

  // MARK: tapes in memory of the caller's

  @Test func aTapeInMemoryOfTheCallers() throws {
    let x = noise(Self.tokens * 40)
    let expected = try Pass(layer(), x)
    let layer = try layer()
    let size = try plan(layer, Self.tokens).tape_bytes
    let block = Guarded(size)
    let own = try memory(layer).current
    _ = try layer.forward(x)
    let filled = try memory(layer).current

    try check(moe_tape_bind(layer.tape, block.start, size))
    #expect(try memory(layer).current == filled - size, "the library's own is freed")
    refused("tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE)
    #expect(try Pass(layer, x) == expected)
    #expect(block.isWithinBounds)

    // One token more than it has room for.
    let more = noise((Self.tokens + 1) * 40)
    var y = more
    refused("tape", moe_layer_forward(layer.layer, more, Int64(Self.tokens + 1), nil, &y, layer.tape, nil))
    refused("tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE)

    try check(moe_tape_bind(layer.tape, nil, 0))
    #expect(try memory(layer).current > own, "scratch is still there")
    try check(moe_layer_zero_grad(layer.layer))
    #expect(try Pass(layer, x) == expected)
    #expect(try memory(layer).current >= own + size)
  }

  @Test func badTapeMemoryIsRefused() throws {
    let layer = try layer()
    let x = noise(Self.tokens * layer.hidden)
    let size = try plan(layer, Self.tokens).tape_bytes
    let block = Guarded(size + 64)
    _ = try layer.forward(x)
    refused("tape", moe_tape_bind(nil, block.start, size))
    refused("memory", moe_tape_bind(layer.tape, block.start + 4, size))
    refused("memory", moe_tape_bind(layer.tape, nil, size))
    _ = try layer.backward(x, dy: x)  // a bind that was refused leaves the tape filled
    try check(moe_tape_bind(layer.tape, block.start, size - 1))
    var y = x
    refused("tape", moe_layer_forward(layer.layer, x, Int64(Self.tokens), nil, &y, layer.tape, nil))
  }

  // MARK: what is in use

  @Test func theContextCountsWhatItsAllocatorGave() throws {
    let allocator = CountingAllocator()
    var config = allocator.contextConfig
    config.n_threads = 2
    var created: OpaquePointer?
    try check(moe_context_create(&config, &created))
    let context = try #require(created)
    let (blocks, bytes) = (allocator.live, allocator.liveBytes)
    // Every block has 64 bytes in front, which do not count.
    func expectTheSame(_ what: String) throws {
      var current = -1
      try check(moe_context_memory(context, &current, nil))
      #expect(current == allocator.liveBytes - bytes - 64 * (allocator.live - blocks), "\(what)")
    }
    try expectTheSame("nothing yet")
    var layerConfig = try layer().config
    layerConfig.balance_coef = 0.01
    try check(moe_layer_create(context, &layerConfig, &created))
    let layer = created
    try expectTheSame("a layer")
    try check(moe_tape_create(layer, &created))
    let tape = created
    let x = noise(Self.tokens * 40)
    var y = x
    try check(moe_layer_forward(layer, x, Int64(Self.tokens), nil, &y, tape, nil))
    try expectTheSame("forward")
    try check(moe_layer_backward(layer, tape, x, x, 0, nil, nil))
    try expectTheSame("backward")
    var (current, peak) = (0, 0)
    try check(moe_context_memory(context, &current, &peak))
    #expect(peak >= current)
    moe_tape_free(tape)
    moe_layer_free(layer)
    try expectTheSame("scratch alone")
    var after = 0
    try check(moe_context_memory(context, nil, &after))
    #expect(after == peak, "what has been stays the most")
    try check(moe_context_memory(context, nil, nil))
    refused("context", moe_context_memory(nil, &current, &peak))
    moe_context_free(context)
    #expect(allocator.live == 0)
  }

  @Test(arguments: [MOE_TAPE_FULL, MOE_TAPE_LEAN])
  func outOfMemoryInAChunkedCall(policy: moe_tape_policy) throws {
    let allocator = CountingAllocator()
    try {
      let x = noise(Self.tokens * 40)
      // With so many inner features a lean backward needs more memory than forward.
      let expected = try Pass(layer(intermediate: 800), x)
      let layer = try layer(in: allocator.contextConfig, intermediate: 800)
      let least = try leastLimit(layer, Self.tokens, options(policy, limit: 1))
      var options = options(policy, limit: least)
      var y = x
      var failures = 0
      for k in 1...10 {
        allocator.fail(at: k)
        let status = moe_layer_forward(layer.layer, x, Int64(Self.tokens), &options, &y, layer.tape, nil)
        let failed = allocator.hasFailed
        allocator.fail(at: nil)
        if !failed { break }
        failures += 1
        #expect(status == MOE_ERROR_OUT_OF_MEMORY)
        refused("tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE)
      }
      #expect(failures > 0)
      // Backward asks for memory where forward's scratch is too small for it.
      let plan = try plan(layer, Self.tokens, options)
      let needsMore = plan.backward_bytes > plan.forward_bytes
      allocator.fail(at: 1)
      var dx = x
      let status = moe_layer_backward(layer.layer, layer.tape, x, x, 0, &dx, nil)
      allocator.fail(at: nil)
      #expect(status == (needsMore ? MOE_ERROR_OUT_OF_MEMORY : MOE_OK))
      #expect(try layer.gradients().allSatisfy { $0 == 0 } == needsMore, "an error adds nothing")
      if policy == MOE_TAPE_LEAN { #expect(needsMore) }
      try check(moe_layer_zero_grad(layer.layer))
      #expect(try Pass(layer, x, options) == expected)
    }()
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }

  // MARK: the same bits

  private static let someSchemes = Scheme.all.filter {
    [
      "token choice", "expert choice", "hierarchical", "sinkhorn", "all exploration", "sinkhorn and next best",
      "shared experts, gate 2", "mixed groups, shared, dropped", "weights on the input, gated, shared, jitter",
    ].contains($0.description)
  }

  @Test(.enabled(if: Processor.hasFMA), arguments: someSchemes)
  func chunksAndTapesChangeNoBit(scheme: Scheme) throws {
    let tokens = 1203  // of which those that experts choose make more rows than one chunk can
    let inputs = scheme.inputs(tokens: tokens, masked: true)
    try withExtendedLifetime(inputs) {
      let expected = try Record(ofOnePassOver: scheme.layer(in: Way().context), tokens: tokens, inputs.options)
      for threads: Int32 in [1, 2, 3] {
        for (policy, limited) in [(MOE_TAPE_LEAN, false), (MOE_TAPE_FULL, true), (MOE_TAPE_LEAN, true)] {
          let layer = try scheme.layer(in: Way(threads: threads).context)
          var options = inputs.options
          options.tape_policy = policy.int32
          if limited {
            options.memory_limit = 1
            options.memory_limit = try leastLimit(layer, tokens, options)
            // Where experts choose, a full tape has room for more rows in chunks than at once.
            if policy == MOE_TAPE_LEAN { #expect(try plan(layer, tokens, options).chunk_tokens < tokens) }
          }
          let record = try Record(ofOnePassOver: layer, tokens: tokens, options)
          for (name, values) in expected.parts where record.parts[name] != values {
            Issue.record("\(name) differs: \(threads) threads, policy \(policy.rawValue), limited: \(limited)")
          }
        }
      }
    }
  }

  @Test func theSchemesAreThere() { #expect(Self.someSchemes.count == 9) }
}

// MARK: helpers

extension MemoryTests {
  /// The bits of one forward and backward.
  private struct Pass: Equatable {
    let bits: [UInt32]

    init(
      _ layer: Layer, _ x: [Float], _ options: moe_forward_options = forwardOptions(),
      _ backward: moe_backward_options? = nil
    ) throws {
      var backward = backward ?? moe_backward_options()
      if backward.struct_size == 0 {
        moe_backward_options_init(&backward, MemoryLayout<moe_backward_options>.size)
      }
      let y = try layer.forward(x, options: options).y
      var dx = [Float](repeating: .nan, count: x.count)
      try check(moe_layer_backward(layer.layer, layer.tape, x, y, 0, &dx, &backward))
      bits = MoETests.bits(try y + dx + layer.gradients())
    }
  }

  /// Memory aligned to 64 bytes, with a border behind it that nobody may write to.
  private final class Guarded {
    let start: UnsafeMutableRawPointer
    private let size: Int
    private static let border = 64

    init(_ size: Int) {
      self.size = size
      start = .allocate(byteCount: size + Self.border, alignment: 64)
      start.initializeMemory(as: UInt8.self, repeating: 0xA5, count: size + Self.border)
    }

    deinit { start.deallocate() }

    var isWithinBounds: Bool {
      UnsafeRawBufferPointer(start: start + size, count: Self.border).allSatisfy { $0 == 0xA5 }
    }
  }

  private func emptyPlan() -> moe_plan {
    var plan = moe_plan()
    moe_plan_init(&plan, MemoryLayout<moe_plan>.size)
    return plan
  }

  private func plan(
    _ layer: Layer, _ tokens: Int, _ options: moe_forward_options = forwardOptions(), taped: Int32 = 1
  ) throws -> moe_plan {
    var (plan, options) = (emptyPlan(), options)
    try check(moe_layer_plan(layer.layer, Int64(tokens), &options, taped, &plan))
    return plan
  }

  /// The number that ends the refusal of a limit that is too small.
  private func leastLimit(_ layer: Layer, _ tokens: Int, _ options: moe_forward_options) throws -> Int {
    var (plan, options) = (emptyPlan(), options)
    let status = moe_layer_plan(layer.layer, Int64(tokens), &options, 1, &plan)
    let words = lastError().split(separator: " ")
    refused("memory_limit", status)
    return try #require(words.last.flatMap { Int($0) })
  }

  private func memory(_ layer: Layer) throws -> (current: Int, peak: Int) {
    var (current, peak) = (0, 0)
    try check(moe_context_memory(layer.context, &current, &peak))
    return (current, peak)
  }
}
