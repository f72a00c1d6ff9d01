import CMoE
import Testing

@Suite("Backward")
struct BackwardTests {
  @Test(arguments: ForwardTests.Variant.all.filter { $0.activation != MOE_ACTIVATION_RELU })
  func gradientsAreTheSlopesOfTheObjective(variant: ForwardTests.Variant) throws {
    let layer = try Layer(hidden: 6, intermediate: 9, experts: 4, topK: 2, configure: variant.apply)
    try expectSlopes(layer, tokens: 8)
  }

  @Test(arguments: [
    ForwardTests.Size(tokens: 1, hidden: 1, intermediate: 1, experts: 1, topK: 1),
    ForwardTests.Size(tokens: 1, hidden: 5, intermediate: 3, experts: 7, topK: 7),
    ForwardTests.Size(tokens: 19, hidden: 3, intermediate: 17, experts: 1, topK: 1),
    ForwardTests.Size(tokens: 2, hidden: 5, intermediate: 3, experts: 17, topK: 2),
    ForwardTests.Size(tokens: 2, hidden: 3, intermediate: 2, experts: 40, topK: 33),
  ])
  func anySizeIsGood(size: ForwardTests.Size) throws {
    let layer = try Layer(
      hidden: size.hidden, intermediate: size.intermediate, experts: size.experts, topK: size.topK,
      in: contextConfig(threads: 2)
    ) {
      $0.balance_coef = 0.01
      $0.z_coef = 0.001
    }
    try expectSlopes(layer, tokens: Int(size.tokens))
  }

  @Test func oneExpertMayHaveAllTokens() throws {
    let layer = try Layer(hidden: 3, intermediate: 5, experts: 4, topK: 1) { $0.z_coef = 0.001 }
    try layer.parameter("router.bias").values[2] = 5
    try expectSlopes(layer, tokens: 11)
    #expect(try layer.parameter("experts.up.weight").gradient.prefix(15).allSatisfy { $0 == 0 }, "expert 0 has none")
  }

  /// Gradients equal central differences of the float64 oracle, which knows nothing of the library's backward.
  private func expectSlopes(_ layer: Layer, tokens: Int) throws {
    let x = noise(tokens * layer.hidden)
    let dy = noise(x.count, seed: 2)
    let dAuxLoss: Float = 20  // large enough for the losses' share to show
    let oracle = try Oracle(layer, x: x)
    let choices = oracle.run().choices
    func slope(_ change: (inout Oracle, Double) -> Void) -> Double {
      let step = 1e-4
      let ends = [step, -step].map { step in
        var moved = oracle
        change(&moved, step)
        return moved.objective(dy: dy, dAuxLoss: Double(dAuxLoss), choices: choices)
      }
      return (ends[0] - ends[1]) / (2 * step)
    }

    _ = try layer.forward(x)
    let dx = try layer.backward(x, dy: dy, dAuxLoss: dAuxLoss)
    let slopes = x.indices.map { i in slope { $0.x[i] += $1 } }
    expectClose(dx, slopes, within: 1e-5, "dx")
    for tensor in try layer.tensors() {
      let name = String(cString: tensor.name)
      let some = Array(stride(from: 0, to: tensor.count, by: 3))
      let slopes = some.map { i in slope { $0.parameters[name]![i] += $1 } }
      expectClose(some.map { tensor.gradient[$0] }, slopes, within: 1e-5, name)
    }
  }

  @Test func reluPassesOrStops() throws {
    // y = 2 relu(3x + b) with b in {1, -10}: dy/dx is 6 where the activation is on, else 0.
    for (bias, expected) in [(Float(1), Float(6)), (-10, 0)] {
      let layer = try Layer(hidden: 1, intermediate: 1, experts: 1, topK: 1) {
        $0.activation = MOE_ACTIVATION_RELU.int32
      }
      for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
      try layer.parameter("experts.up.weight").values[0] = 3
      try layer.parameter("experts.up.bias").values[0] = bias
      try layer.parameter("experts.down.weight").values[0] = 2
      _ = try layer.forward([1])
      #expect(try layer.backward([1], dy: [1]) == [expected])
      #expect(try layer.parameter("experts.up.weight").gradient[0] == expected / 3)
      #expect(try layer.parameter("experts.down.bias").gradient[0] == 1)
    }
  }

  @Test func dropoutIsReplayed() throws {
    // y = <mask, relu(up x)>: with ones everywhere dx = y / x, whichever activations were dropped.
    let layer = try Layer(hidden: 1, intermediate: 64, experts: 1, topK: 1) {
      $0.activation = MOE_ACTIVATION_RELU.int32
      $0.dropout = 0.5
    }
    for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
    try layer.parameter("experts.up.weight").values.update(repeating: 1)
    try layer.parameter("experts.down.weight").values.update(repeating: 1)
    let x: [Float] = [1, 1, 1, 1, 1]
    let y = try layer.forward(x, options: forwardOptions(training: true, step: 3)).y
    #expect(Set(y).count > 1)
    #expect(try layer.backward(x, dy: x) == y)
  }

  @Test func gradientsAreAddedAndDxIsOverwritten() throws {
    let layer = try Layer { $0.z_coef = 0.1 }
    let x = noise(12 * layer.hidden)
    let dy = noise(x.count, seed: 2)
    _ = try layer.forward(x)
    let first = try layer.backward(x, dy: dy, dAuxLoss: 1)
    let once = try layer.gradients()
    let second = try layer.backward(x, dy: dy, dAuxLoss: 1)
    #expect(bits(first) == bits(second))
    expectClose(try layer.gradients(), once.map { 2 * Double($0) }, within: 1e-6, "twice")

    try check(moe_layer_zero_grad(layer.layer))
    _ = try layer.backward(x, dy: dy, dAuxLoss: 1)
    #expect(bits(try layer.gradients()) == bits(once))
  }

  @Test func dxIsOptional() throws {
    let (with, without) = (try Layer(), try Layer())
    let x = noise(12 * with.hidden)
    let dy = noise(x.count, seed: 2)
    _ = try with.forward(x)
    _ = try without.forward(x)
    _ = try with.backward(x, dy: dy)
    try check(moe_layer_backward(without.layer, without.tape, x, dy, 0, nil, nil))
    #expect(bits(try with.gradients()) == bits(try without.gradients()))
    #expect(try with.gradients().contains { $0 != 0 })
  }

  @Test func theAuxiliaryLossReachesTheRouterOnly() throws {
    let layer = try Layer {
      $0.balance_coef = 0.01
      $0.z_coef = 0.001
    }
    let x = noise(12 * layer.hidden)
    let dy = [Float](repeating: 0, count: x.count)
    _ = try layer.forward(x)
    _ = try layer.backward(x, dy: dy, dAuxLoss: 0)
    #expect(try layer.gradients().allSatisfy { $0 == 0 }, "nothing asked, nothing learnt")

    let dx = try layer.backward(x, dy: dy, dAuxLoss: 1)
    #expect(dx.contains { $0 != 0 })
    for tensor in try layer.tensors() {
      let isRouter = String(cString: tensor.name).hasPrefix("router.")
      #expect(tensor.gradient.contains { $0 != 0 } == isRouter, "\(String(cString: tensor.name))")
    }
  }

  @Test func anExpertWithoutTokensLearnsNothing() throws {
    let layer = try Layer(experts: 4, topK: 2)
    try layer.parameter("router.bias").values[2] = -.infinity
    let x = noise(30 * layer.hidden)
    _ = try layer.forward(x)
    _ = try layer.backward(x, dy: noise(x.count, seed: 2))
    for name in ["experts.up.weight", "experts.up.bias", "experts.down.weight", "experts.down.bias"] {
      let tensor = try layer.parameter(name)
      let perExpert = tensor.count / 4
      for e in 0..<4 {
        let ofExpert = tensor.gradient[e * perExpert..<(e + 1) * perExpert]
        #expect(ofExpert.contains { $0 != 0 } == (e != 2), "\(name) of expert \(e)")
      }
    }
  }

  @Test func aSingleNormalisedChoiceTeachesTheRouterNothing() throws {
    // Its weight is 1 whatever the logits are, so the objective has no slope there.
    let layer = try Layer(topK: 1)
    let x = noise(12 * layer.hidden)
    _ = try layer.forward(x)
    _ = try layer.backward(x, dy: noise(x.count, seed: 2))
    #expect(try layer.parameter("router.weight").gradient.allSatisfy { abs($0) < 1e-6 })
    #expect(try layer.parameter("experts.up.weight").gradient.contains { abs($0) > 1e-3 })
  }

  @Test func inferenceOnlyRefuses() throws {
    let layer = try Layer { $0.inference_only = 1 }
    let x = noise(4 * layer.hidden)
    for tensor in try layer.tensors() { #expect(tensor.grad == nil) }
    #expect(bits(try layer.forward(x).y) == bits(try Layer().forward(x).y))
    #expect(moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("inference_only"))
    #expect(moe_layer_zero_grad(layer.layer) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("inference_only"))
  }
}
