import CMoE
import Foundation
import Testing

@Suite("Adaptive clipping")
struct AdaptiveClipTests {
  private func newState() -> moe_clip_state {
    var state = moe_clip_state()
    moe_clip_state_init(&state, MemoryLayout<moe_clip_state>.size)
    return state
  }

  @Test func theDefaultsAreThePapers() {
    let state = newState()
    #expect(state.decay == 0.97 && state.threshold == 2.5 && state.warmup_steps == 25)
    #expect(state.mean == 0 && state.variance == 0 && state.count == 0)
  }

  @Test func spikesAreBroughtBackAndTheMeanFollows() throws {
    var state = newState()
    state.warmup_steps = 4
    var limit = -1.0
    for norm in [1.0, 3, 1, 3] {
      try check(moe_adaptive_clip(&state, norm, &limit))
      #expect(limit == .infinity)
    }
    #expect(state.mean == 2 && state.variance == 1 && state.count == 4)
    try check(moe_adaptive_clip(&state, 4.5, &limit))  // 2.5 deviations: not more
    #expect(limit == .infinity)
    #expect(abs(state.mean - (0.97 * 2 + 0.03 * 4.5)) < 1e-15)

    (state.mean, state.variance) = (2, 4)
    try check(moe_adaptive_clip(&state, 12, &limit))  // z = 5, so 2.5^2 / 5 deviations are left
    #expect(abs(limit - 4.5) < 1e-15)
    let mean = 0.97 * 2 + 0.03 * 7  // it counts as 2.5 deviations above
    #expect(abs(state.mean - mean) < 1e-15)
    #expect(abs(state.variance - (0.97 * 4 + 0.03 * (7 - mean) * (7 - mean))) < 1e-14)
    #expect(state.count == 4)
  }

  @Test func whatIsNoNormLeavesTheStateAlone() throws {
    for count in [0, 1] as [Int64] {
      var state = newState()
      (state.warmup_steps, state.count, state.mean, state.variance) = (1, count, 3, 2)
      var limit = -1.0
      for norm: Double in [.nan, .infinity, 1e300, -.infinity, -1] {
        let status = moe_adaptive_clip(&state, norm, &limit)
        refused("norm", status, norm < 0 ? MOE_ERROR_INVALID_ARGUMENT : MOE_ERROR_NOT_FINITE)
      }
      #expect(state.mean == 3 && state.variance == 2 && state.count == count && limit == -1)
    }
  }

  @Test func stepsThatClip() throws {
    let layer = try Layer()
    let (a, b) = (Variable("a", [1, 2], grad: [0, 0]), Variable("a", [1, 2], grad: [0, 0]))
    var optimizers: [OpaquePointer?] = [nil, nil]
    for i in 0...1 { try check(moe_sgd_create(layer.context, nil, [a.tensor], 1, &optimizers[i])) }
    defer { for optimizer in optimizers { moe_optimizer_free(optimizer) } }
    var (whole, apart) = (newState(), newState())
    (whole.warmup_steps, apart.warmup_steps) = (3, 3)
    var clipped = 0
    for scale: Float in [1, 2, 1, 2, 100, 1, 2, 1000, 2] {
      for variable in [a, b] { (variable.grad[0], variable.grad[1]) = (3 * scale, 4 * scale) }
      var (norm, measured, limit) = (0.0, 0.0, 0.0)
      try check(moe_optimizer_step_adaptive(optimizers[0], [a.tensor], 1, &whole, &norm))
      try check(moe_clip_grad_norm(layer.context, [b.tensor], 1, .infinity, &measured))
      try check(moe_adaptive_clip(&apart, measured, &limit))
      try check(moe_optimizer_step_clipped(optimizers[1], [b.tensor], 1, limit, nil))
      #expect(norm == measured && whole.mean == apart.mean && whole.variance == apart.variance)
      #expect(bits(Array(a.data)) == bits(Array(b.data)))
      if limit < measured { clipped += 1 }
    }
    #expect(clipped == 2)

    // A gradient that is not finite: nothing has changed.
    let before = (bits(Array(a.data)), whole.mean)
    a.grad[1] = .nan
    refused("a", moe_optimizer_step_adaptive(optimizers[0], [a.tensor], 1, &whole, nil), MOE_ERROR_NOT_FINITE)
    #expect(bits(Array(a.data)) == before.0 && whole.mean == before.1 && whole.count == 3)
    refused("state", moe_optimizer_step_adaptive(optimizers[0], [a.tensor], 1, nil, nil))
    refused("optimizer", moe_optimizer_step_adaptive(nil, [a.tensor], 1, &whole, nil))
  }

  @Test func refusals() throws {
    func clip(_ change: (inout moe_clip_state) -> Void) -> moe_status {
      var state = newState()
      change(&state)
      var limit = -7.0
      let status = moe_adaptive_clip(&state, 1, &limit)
      #expect(limit == -7)
      return status
    }
    for size in wrongStructSizes { refused("struct_size", clip { $0.struct_size = size }) }
    for value: Double in [.nan, -0.1, 1] { refused("decay", clip { $0.decay = value }) }
    for value: Double in [.nan, 1, -2, .infinity] { refused("threshold", clip { $0.threshold = value }) }
    for value: Double in [.nan, -1, .infinity] {
      refused("mean", clip { $0.mean = value })
      refused("variance", clip { $0.variance = value })
    }
    refused("warmup_steps", clip { $0.warmup_steps = 0 })
    for count: Int64 in [-1, 26, .max] { refused("count", clip { $0.count = count }) }
    var (state, limit) = (newState(), 0.0)
    refused("state", moe_adaptive_clip(nil, 1, &limit))
    refused("max_norm", moe_adaptive_clip(&state, 1, nil))
    #expect(withGrown(state, tail: 0) { moe_adaptive_clip($0, 1, &limit) } == MOE_OK)
    refused("struct_size", withGrown(state, tail: 1) { moe_adaptive_clip($0, 1, &limit) })
  }
}
