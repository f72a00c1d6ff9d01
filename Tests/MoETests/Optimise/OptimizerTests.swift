import CMoE
import Foundation
import Testing

@Suite("Optimisers")
final class OptimizerTests {
  let context: OpaquePointer

  init() throws {
    var created: OpaquePointer?
    try check(moe_context_create(nil, &created))
    context = try #require(created)
  }

  deinit { moe_context_free(context) }

  private func adamw(
    _ variables: [Variable], in other: OpaquePointer? = nil, configure: (inout moe_adamw_config) -> Void = { _ in }
  ) throws -> OpaquePointer {
    var config = moe_adamw_config()
    moe_adamw_config_init(&config, MemoryLayout<moe_adamw_config>.size)
    configure(&config)
    var optimizer: OpaquePointer?
    try check(moe_adamw_create(other ?? context, &config, variables.map(\.tensor), Int64(variables.count), &optimizer))
    return try #require(optimizer)
  }

  private func sgd(
    _ variables: [Variable], in other: OpaquePointer? = nil, configure: (inout moe_sgd_config) -> Void
  ) throws -> OpaquePointer {
    var config = moe_sgd_config()
    moe_sgd_config_init(&config, MemoryLayout<moe_sgd_config>.size)
    configure(&config)
    var optimizer: OpaquePointer?
    try check(moe_sgd_create(other ?? context, &config, variables.map(\.tensor), Int64(variables.count), &optimizer))
    return try #require(optimizer)
  }

  private func step(_ optimizer: OpaquePointer, _ variables: [Variable]) throws {
    try check(moe_optimizer_step(optimizer, variables.map(\.tensor), Int64(variables.count)))
  }

  @Test func theDefaultsArePyTorchs() {
    var adamw = moe_adamw_config()
    moe_adamw_config_init(&adamw, MemoryLayout<moe_adamw_config>.size)
    #expect(adamw.struct_size == MemoryLayout<moe_adamw_config>.size)
    #expect(adamw.learning_rate == 1e-3 && adamw.beta1 == 0.9 && adamw.beta2 == 0.999)
    #expect(adamw.epsilon == 1e-8 && adamw.weight_decay == 0.01)
    #expect(adamw.state_dtype == MOE_DTYPE_F32.int32 && adamw.seed == 0)
    var sgd = moe_sgd_config()
    moe_sgd_config_init(&sgd, MemoryLayout<moe_sgd_config>.size)
    #expect(sgd.struct_size == MemoryLayout<moe_sgd_config>.size)
    #expect(sgd.learning_rate == 1e-3 && sgd.momentum == 0 && sgd.weight_decay == 0)
  }

  @Test func adamwsFirstStepGoesByTheSignOfTheGradient() throws {
    // m / (1 - beta1) = g and sqrt(v / (1 - beta2)) = |g|, so p moves by lr against the sign of g.
    let w = Variable("w", [1, 1, 1, 1], grad: [0.5, -3, 1e-3, 0])
    let optimizer = try adamw([w]) {
      $0.learning_rate = 0.1
      $0.weight_decay = 0
    }
    defer { moe_optimizer_free(optimizer) }
    try step(optimizer, [w])
    expectClose(Array(w.data), [0.9, 1.1, 0.9, 1], within: 1e-5)
    #expect(Array(w.grad) == [0.5, -3, 1e-3, 0], "the gradient is read only")
  }

  @Test func adamwFollowsItsFormula() throws {
    let (a, b) = (Variable("a", noise(7), grad: noise(7)), Variable("b", noise(3, seed: 5), grad: noise(3)))
    let (beta1, beta2, epsilon, decay) = (0.8, 0.95, 1e-3, 0.1)
    let optimizer = try adamw([a, b]) {
      $0.beta1 = beta1
      $0.beta2 = beta2
      $0.epsilon = epsilon
      $0.weight_decay = decay
    }
    defer { moe_optimizer_free(optimizer) }

    var p = (Array(a.data) + Array(b.data)).map(Double.init)
    var m = [Double](repeating: 0, count: 10)
    var v = m
    for t in 1...6 {
      let rate = 0.05 / Double(t)
      let g = noise(10, seed: UInt64(100 + t))
      _ = a.grad.update(from: g[..<7])
      _ = b.grad.update(from: g[7...])
      try check(moe_optimizer_set_learning_rate(optimizer, rate))
      try step(optimizer, [a, b])
      for i in p.indices {
        let gradient = Double(g[i])
        p[i] -= rate * decay * p[i]
        m[i] = beta1 * m[i] + (1 - beta1) * gradient
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient
        let (mHat, vHat) = (m[i] / (1 - pow(beta1, Double(t))), v[i] / (1 - pow(beta2, Double(t))))
        p[i] -= rate * mHat / (vHat.squareRoot() + epsilon)
      }
    }
    expectClose(Array(a.data) + Array(b.data), p, within: 1e-6)
  }

  @Test func sgdIsPlainDescent() throws {
    let w = Variable("w", [1, 2], grad: [2, -4])
    let optimizer = try sgd([w]) { $0.learning_rate = 0.25 }
    defer { moe_optimizer_free(optimizer) }
    try step(optimizer, [w])
    #expect(Array(w.data) == [0.5, 3])
  }

  @Test func sgdCarriesMomentum() throws {
    let w = Variable("w", [1], grad: [2])
    let optimizer = try sgd([w]) {
      $0.learning_rate = 0.25
      $0.momentum = 0.5
    }
    defer { moe_optimizer_free(optimizer) }
    try step(optimizer, [w])  // v = 2,           p = 1 - 0.5
    #expect(Array(w.data) == [0.5])
    try step(optimizer, [w])  // v = 1 + 2 = 3,   p = 0.5 - 0.75
    #expect(Array(w.data) == [-0.25])
    try step(optimizer, [w])  // v = 1.5 + 2,     p = -0.25 - 0.875
    #expect(Array(w.data) == [-1.125])
  }

  @Test func weightDecayIsDecoupled() throws {
    // p = 2 - 0.5 * 0.25 * 2 = 1.75, then the gradient's own step; the decay leaves no trace in the momentum.
    let w = Variable("w", [2], grad: [1])
    let optimizer = try sgd([w]) {
      $0.learning_rate = 0.5
      $0.momentum = 0.5
      $0.weight_decay = 0.25
    }
    defer { moe_optimizer_free(optimizer) }
    try step(optimizer, [w])
    #expect(Array(w.data) == [1.25])
    try step(optimizer, [w])  // 1.25 * 0.875 - 0.5 * 1.5
    #expect(Array(w.data) == [0.34375])
  }

  @Test func groupsHaveRatesAndDecaysOfTheirOwn() throws {
    let variables = ["a", "b", "c"].map { Variable($0, [2], grad: [1]) }
    let optimizer = try sgd(variables) {
      $0.learning_rate = 0.5
      $0.weight_decay = 0.25
    }
    defer { moe_optimizer_free(optimizer) }
    try check(moe_optimizer_set_group(optimizer, [1], 1, 0.5, 0))
    try check(moe_optimizer_set_group(optimizer, [2], 1, 0, 1))
    try step(optimizer, variables)
    #expect(variables[0].data[0] == 2 - 0.5 * 0.25 * 2 - 0.5)
    #expect(variables[1].data[0] == 2 - 0.25)
    #expect(variables[2].data[0] == 2)
  }

  @Test func theLearningRateMayChangeBetweenSteps() throws {
    let w = Variable("w", [1], grad: [1])
    let optimizer = try sgd([w]) { $0.learning_rate = 0.5 }
    defer { moe_optimizer_free(optimizer) }
    try check(moe_optimizer_set_learning_rate(optimizer, 0.25))
    try step(optimizer, [w])
    #expect(Array(w.data) == [0.75])
    try check(moe_optimizer_set_learning_rate(optimizer, 0))
    try step(optimizer, [w])
    #expect(Array(w.data) == [0.75])
  }

  @Test func theMomentumMayChangeBetweenSteps() throws {
    let w = Variable("w", [1], grad: [1])
    let optimizer = try sgd([w]) { ($0.learning_rate, $0.momentum) = (1, 0.5) }
    defer { moe_optimizer_free(optimizer) }
    try step(optimizer, [w])  // v = 1
    try check(moe_optimizer_set_momentum(optimizer, 0.25))
    try step(optimizer, [w])  // v = 0.25 + 1
    #expect(Array(w.data) == [1 - 1 - 1.25])
    for momentum in [1, -0.1, Double.nan, .infinity] {
      refused("momentum", moe_optimizer_set_momentum(optimizer, momentum))
    }
    refused("optimizer", moe_optimizer_set_momentum(nil, 0.5))
  }

  @Test func tensorsMayMoveBetweenSteps() throws {
    // Moments belong to the place in the list, not to an address.
    let (stays, before) = (Variable("w", [1, 2], grad: [1, -1]), Variable("w", [1, 2], grad: [1, -1]))
    let (one, other) = (try adamw([stays]), try adamw([before]))
    defer {
      moe_optimizer_free(one)
      moe_optimizer_free(other)
    }
    try step(one, [stays])
    try step(other, [before])
    let after = Variable("w", Array(before.data), grad: Array(before.grad))
    try step(one, [stays])
    try step(other, [after])
    #expect(bits(Array(stays.data)) == bits(Array(after.data)))
    #expect(bits(Array(before.data)) != bits(Array(after.data)))
  }

  @Test func tensorsOfALaterHeaderAreFurtherApart() throws {
    let size = MemoryLayout<moe_tensor>.size + 16
    let list = UnsafeMutableRawPointer.allocate(byteCount: 2 * size, alignment: 16)
    defer { list.deallocate() }
    list.initializeMemory(as: UInt8.self, repeating: 0, count: 2 * size)
    let variables = [Variable("a", [7], grad: [3]), Variable("b", [7], grad: [4])]
    for (i, variable) in variables.enumerated() {
      var tensor = variable.tensor
      tensor.struct_size = size
      (list + i * size).storeBytes(of: tensor, as: moe_tensor.self)
    }
    var norm = 0.0
    try check(moe_clip_grad_norm(context, list.assumingMemoryBound(to: moe_tensor.self), 2, .infinity, &norm))
    #expect(norm == 5)
  }

  @Test func anEmptyListIsFine() throws {
    for create in [true, false] {
      var optimizer: OpaquePointer?
      try check(
        create ? moe_adamw_create(context, nil, nil, 0, &optimizer) : moe_sgd_create(context, nil, nil, 0, &optimizer))
      try check(moe_optimizer_step(optimizer, nil, 0))
      var norm = -1.0
      try check(moe_optimizer_step_clipped(optimizer, nil, 0, 1, &norm))
      #expect(norm == 0)
      moe_optimizer_free(optimizer)
    }
    var norm = -1.0
    try check(moe_clip_grad_norm(context, nil, 0, 1, &norm))
    #expect(norm == 0)
  }

  @Test func clippingScalesAllGradientsTogether() throws {
    let (a, b) = (Variable("a", [7], grad: [3]), Variable("b", [7, 7], grad: [0, -4]))
    var norm = 0.0
    try check(moe_clip_grad_norm(context, [a.tensor, b.tensor], 2, 1, &norm))
    #expect(norm == 5)
    let scale = 1 / (5 + 1e-6)
    expectClose(Array(a.grad) + Array(b.grad), [3 * scale, 0, -4 * scale], within: 1e-7)
    #expect(Array(a.data) + Array(b.data) == [7, 7, 7])
  }

  @Test(arguments: [6, .infinity])
  func clippingLeavesShortGradientsAlone(maxNorm: Double) throws {
    let w = Variable("w", [7, 7], grad: [3, 4])
    var norm = 0.0
    try check(moe_clip_grad_norm(context, [w.tensor], 1, maxNorm, &norm))
    #expect(norm == 5)
    #expect(Array(w.grad) == [3, 4])
    try check(moe_clip_grad_norm(context, [w.tensor], 1, maxNorm, nil))
  }

  @Test(arguments: [1e30, 1e-30])
  func clippingMeasuresWhatFloatCannotSquare(scale: Double) throws {
    let w = Variable("w", [0, 0], grad: [Float(3 * scale), Float(4 * scale)])
    var norm = 0.0
    try check(moe_clip_grad_norm(context, [w.tensor], 1, .infinity, &norm))
    #expect(abs(norm / (5 * scale) - 1) < 1e-6, "\(norm)")
  }

  @Test func clippingMeasuresTensorsOfAnyLength() throws {
    // More than one thread's share, and the last element must count: a norm of sqrt(n) of n ones.
    for n in [1, 4097, 300_001] {
      let w = Variable("w", [Float](repeating: 0, count: n), grad: [Float](repeating: 1, count: n))
      var norm = 0.0
      try check(moe_clip_grad_norm(context, [w.tensor], 1, 1, &norm))
      #expect(abs(norm / Double(n).squareRoot() - 1) < 1e-6, "\(n) elements")
      #expect(w.grad.allSatisfy { abs(Double($0) * (norm + 1e-6) - 1) < 1e-6 })
    }
  }

  @Test(arguments: [Float.nan, .infinity, -.infinity])
  func clippingRefusesWhatIsNotFinite(poison: Float) throws {
    let (a, b) = (Variable("first", [7], grad: [3]), Variable("second", [7, 7], grad: [1, poison]))
    var norm = -1.0
    #expect(moe_clip_grad_norm(context, [a.tensor, b.tensor], 2, 1, &norm) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().contains("second"), "\(lastError())")
    #expect(norm == -1 && Array(a.grad) == [3] && b.grad[0] == 1, "nothing is scaled")
  }

  @Test(arguments: everyInstructionSet, [0.5, 1e6, .infinity])
  func aClippedStepHasTheBitsOfClippingAndAStep(instructions: moe_instructions, maxNorm: Double) throws {
    let owner = try Layer(in: contextConfig(threads: 2, instructions: instructions))
    func create(_ variables: [Variable]) throws -> [OpaquePointer] {
      let moving = try sgd(variables, in: owner.context) {
        $0.momentum = 0.9
        $0.weight_decay = 0.1
      }
      return [try adamw(variables, in: owner.context), moving]
    }
    // More than one thread's share, a tail, and next to nothing.
    let sizes = [70_001, 7, 1]
    func variables() -> [Variable] {
      sizes.map { Variable("w", noise($0), grad: [Float](repeating: 0, count: $0)) }
    }
    let (together, apart) = (variables(), variables())
    for (one, other) in zip(try create(together), try create(apart)) {
      defer {
        moe_optimizer_free(one)
        moe_optimizer_free(other)
      }
      for step in 1...3 {
        for (a, b) in zip(together, apart) {
          _ = a.grad.update(from: noise(a.data.count, seed: UInt64(step)))
          _ = b.grad.update(from: a.grad)
        }
        let before = together.map { bits(Array($0.grad)) }
        var norms = (-1.0, -2.0)
        try check(moe_optimizer_step_clipped(one, together.map(\.tensor), 3, maxNorm, &norms.0))
        try check(moe_clip_grad_norm(owner.context, apart.map(\.tensor), 3, maxNorm, &norms.1))
        try self.step(other, apart)
        #expect(norms.0 == norms.1)
        #expect(together.map { bits(Array($0.data)) } == apart.map { bits(Array($0.data)) }, "step \(step)")
        #expect(together.map { bits(Array($0.grad)) } == before, "the gradients are read only")
      }
    }
    // Clipping shows: what is compared is not the same step twice.
    #expect((bits(Array(apart[0].grad)) == bits(Array(together[0].grad))) == (maxNorm > 1))
  }

  @Test(arguments: [Float.nan, .infinity, -.infinity])
  func aClippedStepRefusesWhatIsNotFinite(poison: Float) throws {
    let (a, b) = (Variable("first", [7], grad: [3]), Variable("second", [7, 7], grad: [1, poison]))
    let optimizer = try adamw([a, b])
    defer { moe_optimizer_free(optimizer) }
    var norm = -1.0
    #expect(moe_optimizer_step_clipped(optimizer, [a.tensor, b.tensor], 2, 1, &norm) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().contains("second"), "\(lastError())")
    #expect(norm == -1 && Array(a.data) + Array(b.data) == [7, 7, 7] && Array(a.grad) == [3] && b.grad[0] == 1)

    // No step was counted and no moment moved: the next one is the first.
    b.grad[1] = 2
    let (fresh, freshB) = (Variable("first", [7], grad: [3]), Variable("second", [7, 7], grad: [1, 2]))
    let other = try adamw([fresh, freshB])
    defer { moe_optimizer_free(other) }
    try check(moe_optimizer_step_clipped(optimizer, [a.tensor, b.tensor], 2, 1, nil))
    try check(moe_optimizer_step_clipped(other, [fresh.tensor, freshB.tensor], 2, 1, nil))
    #expect(bits(Array(a.data) + Array(b.data)) == bits(Array(fresh.data) + Array(freshB.data)))
  }

  @Test func aLayerLearns() throws {
    // Fit y = -x: the mean square error begins at the square of the target or more, and ends far below it.
    let layer = try Layer(hidden: 3, intermediate: 16, experts: 4, topK: 2)
    let x = noise(64 * layer.hidden)
    let tensors = try layer.tensors()
    var optimizer: OpaquePointer?
    try check(moe_adamw_create(layer.context, nil, tensors, Int64(tensors.count), &optimizer))
    try check(moe_optimizer_set_learning_rate(optimizer, 0.01))
    var errors: [Float] = []
    for _ in 0..<200 {
      let y = try layer.forward(x).y
      let difference = zip(y, x).map { $0 + $1 }
      errors.append(difference.reduce(0) { $0 + $1 * $1 } / Float(x.count))
      try check(moe_layer_zero_grad(layer.layer))
      _ = try layer.backward(x, dy: difference.map { 2 * $0 / Float(x.count) })
      try check(moe_optimizer_step(optimizer, tensors, Int64(tensors.count)))
    }
    moe_optimizer_free(optimizer)
    let targetPower = x.reduce(0) { $0 + $1 * $1 } / Float(x.count)
    #expect(errors.last! < targetPower / 20, "\(errors.first!) -> \(errors.last!)")
  }
}
