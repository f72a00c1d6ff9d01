import CMoE
import Testing

/// A model's backward with a step, when the host wants to stop, or what it brings does not fit. What it computes is tested
/// from Python.
@Suite("A model's backward with a step")
final class ModelStepTests {
  private let canceller = Canceller()

  /// A model without its experts' gradients, an optimiser of it, and a filled tape.
  private final class Step {
    let life = ModelLife()
    private(set) var optimizer: OpaquePointer?
    private var count: Int64 = 0

    init(_ change: (inout moe_context_config) -> Void = { _ in }) throws {
      var config = life.allocator.contextConfig
      config.n_threads = 2
      change(&config)
      try check(moe_context_create(&config, &life.context))
      try check(
        life.create {
          UnsafeMutablePointer(mutating: $0.moe)!.pointee.unallocated = MOE_UNALLOCATED_EXPERT_GRADIENTS.int32
        })
      try check(moe_model_tape_create(life.model, &life.tape))
      try check(moe_model_parameter_count(life.model, &count))
      let tensors = try self.tensors()
      try check(moe_adamw_create(life.context, nil, tensors, count, &optimizer))
      try check(life.forward())
    }

    deinit { free() }

    func free() {
      moe_optimizer_free(optimizer)
      optimizer = nil
      life.free()
    }

    func run(clip: Float = 0.5) -> moe_status {
      life.withInput { moe_model_backward_step(life.model, life.tape, $0, 1, nil, nil, optimizer, clip) }
    }

    func tensors() throws -> [moe_tensor] {
      try (0..<count).map { index in
        var tensor = moe_tensor()
        moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
        try check(moe_model_parameter(life.model, index, &tensor))
        return tensor
      }
    }

    func values() throws -> [UInt32] { bits(try tensors().flatMap { Array($0.values) }) }
  }

  private func calmResult() throws -> [UInt32] {
    let calm = try Step()
    try check(calm.run())
    return try calm.values()
  }

  @Test func cancelledWholeOrNotAtAll() throws {
    let expected = try calmResult()
    let step = try Step(canceller.join)
    #expect(try canceller.cancelAtEach({ step.run() }, leaving: step.values) >= 1)
    #expect(try step.values() == expected, "and no step was counted")
  }

  @Test func whatDoesNotFitIsRefused() throws {
    let step = try Step()
    let before = try step.values()
    for clip in [-1, .infinity, .nan] as [Float] { refused("clip_factor", step.run(clip: clip)) }
    let life = step.life
    refused(
      "optimizer", life.withInput { moe_model_backward_step(life.model, life.tape, $0, 1, nil, nil, nil, 1) })
    refused(
      "d_objective",
      life.withInput {
        moe_model_backward_step(life.model, life.tape, $0, .nan, nil, nil, step.optimizer, 1)
      })
    refused("memory", life.backward(), MOE_ERROR_BAD_STATE)
    var other: OpaquePointer?
    let tensors = try step.tensors()
    try check(moe_adamw_create(life.context, nil, tensors, Int64(tensors.count) - 1, &other))
    refused(
      "optimizer", life.withInput { moe_model_backward_step(life.model, life.tape, $0, 1, nil, nil, other, 1) })
    moe_optimizer_free(other)
    #expect(try step.values() == before)
  }
}
