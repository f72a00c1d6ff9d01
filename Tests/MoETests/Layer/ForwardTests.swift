import CMoE
import Foundation
import Testing

@Suite("Forward")
struct ForwardTests {
  /// The calls themselves, without the fixture of the other tests.
  @Test func aFirstProgram() throws {
    var context: OpaquePointer?
    try check(moe_context_create(nil, &context))
    defer { moe_context_free(context) }

    var config = moe_layer_config()
    moe_layer_config_init(&config, MemoryLayout<moe_layer_config>.size)
    config.hidden_size = 4
    config.intermediate_size = 16
    config.n_experts = 8
    config.top_k = 2
    var layer: OpaquePointer?
    try check(moe_layer_create(context, &config, &layer))
    defer { moe_layer_free(layer) }

    let x: [Float] = [1, 2, 3, 4, 5, 6, 7, 8]  // [T,H] = [2,4]
    var y = [Float](repeating: 0, count: 8)  // [T,H]
    try check(moe_layer_forward(layer, x, 2, nil, &y, nil, nil))
    #expect(Set(y).count == 8)
  }

  struct Variant: Sendable {
    var kind = MOE_EXPERT_MLP
    var activation = MOE_ACTIVATION_GELU
    var weights = MOE_ROUTER_WEIGHTS_SCORES
    var normalize = MOE_NORMALIZE_SUM
    var bias = MOE_BIAS_ON
    var clamps: ExpertKind.Clamps?

    func apply(_ config: inout moe_layer_config) {
      config.setExperts(kind)
      config.activation = activation.int32
      config.router_weights = weights.int32
      config.router_normalize = normalize.int32
      config.router_bias = bias.int32
      config.expert_bias = bias.int32
      config.balance_coef = 0.01
      config.z_coef = 0.001
      clamps?.apply(to: &config)
    }

    static let all = [
      Variant(),
      Variant(activation: MOE_ACTIVATION_RELU, normalize: MOE_NORMALIZE_NONE),
      Variant(activation: MOE_ACTIVATION_GELU_TANH, weights: MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, bias: MOE_BIAS_OFF),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_SILU, bias: MOE_BIAS_OFF),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_GELU, normalize: MOE_NORMALIZE_NONE),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_RELU, weights: MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX),
      Variant(kind: MOE_EXPERT_LINEAR),
      Variant(kind: MOE_EXPERT_LINEAR, normalize: MOE_NORMALIZE_NONE, bias: MOE_BIAS_OFF),
      Variant(activation: MOE_ACTIVATION_RELU2),
      Variant(activation: MOE_ACTIVATION_QUICK_GELU),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_RELU2, bias: MOE_BIAS_OFF),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_QUICK_GELU),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_SILU, clamps: .gptOSS),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_SILU, bias: MOE_BIAS_OFF, clamps: .deepSeekV4),
      Variant(kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_GELU, clamps: .deepSeekV4),
    ]
  }

  @Test(arguments: Variant.all, [MOE_MATMUL_AUTO, MOE_MATMUL_OPENBLAS, MOE_MATMUL_REFERENCE])
  func resultsAreThoseOfTheDefinition(variant: Variant, matmul: moe_matmul) throws {
    let layer = try Layer(
      hidden: 11, intermediate: 13, experts: 5, topK: 3, in: contextConfig(matmul: matmul), configure: variant.apply)
    let x = noise(23 * layer.hidden)
    let output = try layer.forward(x)
    let expected = try Oracle(layer, x: x).run()

    #expect(output.indices.map(Int.init) == expected.choices.flatMap { $0 })
    expectClose(output.y, expected.y, within: 2e-6, "y")
    expectClose(output.weights, expected.weights, within: 1e-6, "expert_weights")
    expectClose([output.report.balance_loss], [expected.balanceLoss], within: 1e-6, "balance_loss")
    expectClose([output.report.z_loss], [expected.zLoss], within: 1e-6, "z_loss")
    expectClose([output.report.entropy], [expected.entropy], within: 1e-6, "entropy")
    let auxLoss = 0.01 * expected.balanceLoss + 0.001 * expected.zLoss
    expectClose([output.report.aux_loss], [auxLoss], within: 1e-6, "aux_loss")
  }

  struct Size: Sendable {
    var tokens, hidden, intermediate, experts, topK: Int64
  }

  @Test(arguments: [
    Size(tokens: 1, hidden: 1, intermediate: 1, experts: 1, topK: 1),
    Size(tokens: 1, hidden: 33, intermediate: 3, experts: 7, topK: 7),
    Size(tokens: 65, hidden: 2, intermediate: 129, experts: 1, topK: 1),
    Size(tokens: 3, hidden: 17, intermediate: 31, experts: 64, topK: 2),
    Size(tokens: 100, hidden: 64, intermediate: 48, experts: 3, topK: 2),
  ])
  func anySizeIsGood(size: Size) throws {
    let layer = try Layer(
      hidden: size.hidden, intermediate: size.intermediate, experts: size.experts, topK: size.topK,
      in: contextConfig(threads: 2))
    let x = noise(Int(size.tokens) * layer.hidden)
    let output = try layer.forward(x)
    let expected = try Oracle(layer, x: x).run()
    expectClose(output.y, expected.y, within: 2e-6, "y")
    #expect(output.tokensPerExpert.reduce(0, +) == size.tokens * size.topK)
    expectClose([output.meanProbability.reduce(0, +)], [1], within: 1e-6, "sum of mean_probability")
    for e in 0..<layer.experts {
      #expect(Int(output.tokensPerExpert[e]) == expected.choices.count { $0.contains(e) })
    }
  }

  @Test func oneExpertMayHaveAllTokens() throws {
    let layer = try Layer(hidden: 3, intermediate: 5, experts: 4, topK: 1)
    try layer.parameter("router.bias").values[2] = 30
    let x = noise(41 * layer.hidden)
    let output = try layer.forward(x)
    #expect(output.tokensPerExpert == [0, 0, 41, 0])
    expectClose(output.y, try Oracle(layer, x: x).run().y, within: 2e-6, "y")
  }

  @Test func noTokensAreNoWork() throws {
    let layer = try Layer {
      $0.balance_coef = 1
      $0.z_coef = 1
    }
    let output = try layer.forward([])
    #expect(output.report.balance_loss == 0 && output.report.z_loss == 0 && output.report.aux_loss == 0)
    #expect(output.report.entropy == 0)
    #expect(output.tokensPerExpert == [0, 0, 0, 0])
    #expect(output.meanProbability == [0, 0, 0, 0])
    var y: Float = 5
    try check(moe_layer_forward(layer.layer, nil, 0, nil, &y, layer.tape, nil))
    #expect(y == 5)
    #expect(try layer.backward([], dy: [], dAuxLoss: 1) == [])
    #expect(try layer.gradients().allSatisfy { $0 == 0 })
  }

  @Test func tapeOptionsAndReportAreOptional() throws {
    let layer = try Layer()
    let x = noise(6 * layer.hidden)
    var y = [Float](repeating: .nan, count: x.count)
    try check(moe_layer_forward(layer.layer, x, 6, nil, &y, nil, nil))
    #expect(bits(y) == bits(try layer.forward(x).y))

    // A report without arrays still gets its scalars.
    var report = moe_report()
    moe_report_init(&report, MemoryLayout<moe_report>.size)
    #expect(report.tokens_per_expert == nil && report.mean_probability == nil)
    #expect(report.expert_indices == nil && report.expert_weights == nil)
    try check(moe_layer_forward(layer.layer, x, 6, nil, &y, nil, &report))
    #expect(report.entropy > 0 && report.balance_loss > 0)
  }

  @Test func aTokensResultDoesNotDependOnItsNeighbours() throws {
    let layer = try Layer(in: contextConfig(matmul: MOE_MATMUL_REFERENCE))
    let x = noise(9 * layer.hidden)
    let all = try layer.forward(x).y
    let last = try layer.forward(Array(x.suffix(layer.hidden))).y
    #expect(bits(Array(all.suffix(layer.hidden))) == bits(last))
  }

  @Test func dropoutActsInTrainingOnlyAndFollowsSeedAndStep() throws {
    func layer(seed: UInt64 = 1) throws -> Layer {
      try Layer(hidden: 8, intermediate: 64) {
        $0.dropout = 0.25
        $0.seed = seed
      }
    }
    let dropping = try layer()
    let x = noise(20 * dropping.hidden)
    let evaluation = try dropping.forward(x).y
    let step0 = try dropping.forward(x, options: forwardOptions(training: true, step: 0)).y
    let step1 = try dropping.forward(x, options: forwardOptions(training: true, step: 1)).y
    #expect(bits(evaluation) != bits(step0) && bits(step0) != bits(step1))
    #expect(bits(evaluation) == bits(try dropping.forward(x, options: forwardOptions(step: 1)).y))
    #expect(bits(step1) == bits(try layer().forward(x, options: forwardOptions(training: true, step: 1)).y))
  }

  @Test func dropoutKeepsItsShareAndTheMean() throws {
    // One expert that is a sum of ones: y counts the inner activations kept, each scaled by 1 / (1 - dropout) = 2.
    let width = 4096.0
    let layer = try Layer(hidden: 1, intermediate: 4096, experts: 1, topK: 1) {
      $0.activation = MOE_ACTIVATION_RELU.int32
      $0.dropout = 0.5
    }
    for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
    try layer.parameter("experts.up.weight").values.update(repeating: 1)
    try layer.parameter("experts.down.weight").values.update(repeating: 1)
    let y = try layer.forward([1, 1, 1], options: forwardOptions(training: true)).y
    #expect(Set(y).count > 1, "tokens have masks of their own")
    for count in y {
      let deviation = (width * 0.5 / 0.5).squareRoot()
      #expect(abs(Double(count) - width) < 4 * deviation)
      #expect(count / 2 == (count / 2).rounded(), "a whole number of activations, times 2")
    }
  }
}
