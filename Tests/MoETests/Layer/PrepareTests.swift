import CMoE
import Testing

@Suite("Prepared layers")
struct PrepareTests {
  private static let kinds =
    [MOE_EXPERT_MLP, MOE_EXPERT_GATED].map {
      ExpertKind(kind: $0, activation: MOE_ACTIVATION_GELU, bias: MOE_BIAS_DEFAULT, dropout: 0)
    } + ExpertKind.clamped + ExpertKind.linear

  @Test(arguments: kinds, [1, 3, 40])
  func preparedLayersGiveTheSameBits(kind: ExpertKind, tokens: Int) throws {
    // More than 512 features, so that panels are read in pieces, and no multiple of 32.
    let layer = try Layer(hidden: 600, intermediate: 70, experts: 5, in: contextConfig(threads: 2)) {
      kind.apply(to: &$0)
    }
    let x = noise(tokens * layer.hidden)
    let plain = try layer.forward(x)
    let dx = try layer.backward(x, dy: x)
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    #expect(bits(try layer.forward(x).y) == bits(plain.y))
    #expect(bits(try layer.backward(x, dy: x)) == bits(dx))
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_NONE.int32))
    #expect(bits(try layer.forward(x).y) == bits(plain.y))
  }

  /// Weights and activations rounded, as a bfloat16 layer has them: the same seed gives it the rounded weights.
  @Test(
    .enabled(if: Processor.hasFMA), arguments: kinds, [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX2])
  func bfloat16ComputesAsABFloat16Layer(kind: ExpertKind, instructions: moe_instructions) throws {
    func layer(_ type: moe_dtype) throws -> Layer {
      try Layer(
        hidden: 300, intermediate: 71, experts: 5, in: contextConfig(threads: 2, instructions: instructions)
      ) {
        kind.apply(to: &$0)
        $0.weight_dtype = type.int32
      }
    }
    let (float, half) = (try layer(MOE_DTYPE_F32), try layer(MOE_DTYPE_BF16))
    let x = noise(41 * float.hidden)
    let expected = try half.forward(x).y
    #expect(bits(try float.untaped(x)) != bits(expected))
    try check(moe_layer_prepare(float.layer, MOE_PREPARED_BF16.int32))
    #expect(bits(try float.untaped(x)) == bits(expected))
    try check(moe_layer_prepare(half.layer, MOE_PREPARED_BF16.int32))
    #expect(bits(try half.forward(x).y) == bits(expected))
  }

  @Test(.enabled(if: Processor.hasFMA)) func bfloat16OfFloat32WeightsIsForInference() throws {
    let layer = try Layer(in: contextConfig(matmul: MOE_MATMUL_NATIVE))
    let x = noise(6 * layer.hidden)
    let plain = try layer.forward(x).y
    var y = x
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_BF16.int32))
    refused("tape", moe_layer_forward(layer.layer, x, 6, nil, &y, layer.tape, nil), MOE_ERROR_BAD_STATE)
    refused("tape", moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil), MOE_ERROR_BAD_STATE)
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    #expect(bits(try layer.forward(x).y) == bits(plain))
  }

  /// Q8_0 by hand: the layer with these weights, whoever multiplies.
  @Test(arguments: [MOE_MATMUL_AUTO, MOE_MATMUL_REFERENCE], [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_BASE])
  func int8ComputesAsALayerWithItsWeights(matmul: moe_matmul, instructions: moe_instructions) throws {
    func layer() throws -> Layer {
      try Layer(
        hidden: 70, intermediate: 37, experts: 3,
        in: contextConfig(threads: 2, matmul: matmul, instructions: instructions))
    }
    let (prepared, twin) = (try layer(), try layer())
    for (name, width) in [("experts.up.weight", 70), ("experts.down.weight", 37)] {
      let values = try twin.parameter(name).values
      for row in stride(from: 0, to: values.count, by: width) {
        for first in stride(from: row, to: row + width, by: 32) {
          let block = first..<min(first + 32, row + width)
          let step = block.map { values[$0].magnitude }.max()! / 127
          for i in block {
            let number = (values[i] * (1 / step)).rounded(.toNearestOrAwayFromZero)
            values[i] = Float(Float16(step)) * number
          }
        }
      }
    }
    try check(moe_layer_prepare(prepared.layer, MOE_PREPARED_INT8.int32))
    for tokens in [1, 40] {
      let x = noise(tokens * twin.hidden)
      #expect(bits(try prepared.untaped(x)) == bits(try twin.untaped(x)))
    }
  }

  @Test(arguments: [MOE_PREPARED_INT8, MOE_PREPARED_INT4_A8])
  func weightsOfFewBitsAreFinite(form: moe_prepared) throws {
    let layer = try Layer()
    let values = try layer.parameter("experts.down.weight").values
    let x = noise(6 * layer.hidden)
    let plain = try layer.untaped(x)
    let kept = values[1]
    for number: Float in [.nan, -.infinity, 9e6] {
      values[1] = number
      refused("expert", moe_layer_prepare(layer.layer, form.int32), MOE_ERROR_NOT_FINITE)
    }
    values[1] = kept
    #expect(bits(try layer.untaped(x)) == bits(plain))
  }

  @Test func float32IsNoFormForBFloat16Weights() throws {
    let layer = try Layer { $0.weight_dtype = MOE_DTYPE_BF16.int32 }
    let x = noise(6 * layer.hidden)
    let plain = try layer.forward(x).y
    refused("prepared", moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    #expect(bits(try layer.forward(x).y) == bits(plain))
  }

  @Test func changedParametersAreNotComputedWithTheOldOnes() throws {
    let layer = try Layer(in: contextConfig(matmul: MOE_MATMUL_NATIVE))
    let x = noise(6 * layer.hidden)
    var y = [Float](repeating: 0, count: x.count)
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    for name in ["experts.up.weight", "experts.down.weight"] {
      let values = try layer.parameter(name).values
      for i in values.indices { values[i] *= 1.5 }
      #expect(moe_layer_forward(layer.layer, x, 6, nil, &y, layer.tape, nil) == MOE_ERROR_BAD_STATE, "\(name)")
      #expect(lastError().contains("moe_layer_prepare"))
      // Prepared again it computes with the new ones.
      try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
      let prepared = try layer.forward(x).y
      try check(moe_layer_prepare(layer.layer, MOE_PREPARED_NONE.int32))
      #expect(bits(prepared) == bits(try layer.forward(x).y))
      try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    }
  }

  @Test func theRouterMayChange() throws {
    let layer = try Layer()
    let x = noise(6 * layer.hidden)
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    try layer.parameter("router.weight").values.update(repeating: 0)
    let prepared = try layer.forward(x).y
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_NONE.int32))
    #expect(bits(prepared) == bits(try layer.forward(x).y))
  }

  @Test(arguments: [MOE_MATMUL_OPENBLAS, MOE_MATMUL_REFERENCE])
  func otherProductsTakeNoNotice(matmul: moe_matmul) throws {
    let layer = try Layer(in: contextConfig(matmul: matmul))
    let x = noise(6 * layer.hidden)
    let plain = try layer.forward(x).y
    try check(moe_layer_prepare(layer.layer, MOE_PREPARED_F32.int32))
    #expect(bits(try layer.forward(x).y) == bits(plain))
  }

  @Test func badCalls() throws {
    let layer = try Layer()
    refused("layer", moe_layer_prepare(nil, 1))
    for prepared: Int32 in [-1, 32] { refused("prepared", moe_layer_prepare(layer.layer, prepared)) }
  }
}
