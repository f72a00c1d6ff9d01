import CMoE
import Testing

/// Backward with a step, when something comes between: no memory, or a host that wants to stop. What it computes is
/// tested from Python.
@Suite("Backward with a step")
final class FusedStepTests {
  private let canceller = Canceller()
  private let allocator = CountingAllocator()

  /// A layer without its experts' gradients, an optimiser of it, and a filled tape.
  private final class Step {
    let layer: Layer
    private(set) var optimizer: OpaquePointer?
    let x: [Float]
    let dy: [Float]

    init(in config: moe_context_config, inChunks: Bool) throws {
      // With so many inner features backward needs more memory than forward.
      let layer = try Layer(hidden: 40, intermediate: 802, experts: 4, in: config) {
        $0.unallocated = MOE_UNALLOCATED_EXPERT_GRADIENTS.int32
        ($0.selection_bias, $0.n_shared_experts, $0.shared_gate) = (1, 1, MOE_SHARED_SIGMOID.int32)
      }
      self.layer = layer
      (x, dy) = (noise(700 * layer.hidden), noise(700 * layer.hidden, seed: 2))
      // As moe.h tells buffers from the others.
      let trained = try layer.tensors().filter { $0.buffer == 0 }
      #expect(try trained.count == layer.tensors().count - 1)
      try check(moe_adamw_create(layer.context, nil, trained, Int64(trained.count), &optimizer))
      var options = forwardOptions()
      options.tape_policy = MOE_TAPE_LEAN.int32
      if inChunks { options.memory_limit = try least(options) }
      _ = try layer.forward(x, options: options)
    }

    deinit { moe_optimizer_free(optimizer) }

    /// The smallest limit, which the refusal ends with.
    private func least(_ options: moe_forward_options) throws -> Int {
      var (options, plan) = (options, moe_plan())
      moe_plan_init(&plan, MemoryLayout<moe_plan>.size)
      options.memory_limit = 1
      #expect(moe_layer_plan(layer.layer, 700, &options, 1, &plan) == MOE_ERROR_INVALID_ARGUMENT)
      let least = try #require(lastError().split(separator: " ").last.flatMap { Int($0) })
      options.memory_limit = least
      try check(moe_layer_plan(layer.layer, 700, &options, 1, &plan))
      #expect(plan.chunk_tokens == 256)
      return least
    }

    func run() -> moe_status {
      var options = moe_backward_options()
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      options.optimizer = optimizer
      var dx = x
      return moe_layer_backward(layer.layer, layer.tape, x, dy, 0, &dx, &options)
    }

    func values() throws -> [UInt32] { bits(try layer.tensors().flatMap { Array($0.values) }) }
  }

  private func calmResult(inChunks: Bool) throws -> [UInt32] {
    let calm = try Step(in: defaultContextConfig(), inChunks: inChunks)
    try check(calm.run())
    return try calm.values()
  }

  @Test(arguments: [false, true])
  func withoutMemoryNothingChanges(inChunks: Bool) throws {
    let expected = try calmResult(inChunks: inChunks)
    try {
      let step = try Step(in: allocator.contextConfig, inChunks: inChunks)
      let before = try step.values()
      allocator.fail(at: 1)
      #expect(step.run() == MOE_ERROR_OUT_OF_MEMORY)
      allocator.fail(at: nil)
      #expect(try step.values() == before)
      try check(step.run())
      #expect(try step.values() == expected, "and no step was counted")
    }()
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }

  @Test(arguments: [false, true])
  func cancelledWholeOrNotAtAll(inChunks: Bool) throws {
    let expected = try calmResult(inChunks: inChunks)
    var config = defaultContextConfig()
    canceller.join(&config)
    let step = try Step(in: config, inChunks: inChunks)
    #expect(try canceller.cancelAtEach(step.run, leaving: step.values) >= 2)
    #expect(try step.values() == expected, "and no step was counted")
  }
}
