import CMoE
import Foundation
import Testing

/// With a router weight of 0 the logits are the router's bias: every result is known on paper.
@Suite("Routing")
struct RoutingTests {
  /// A layer whose logits are `logits` for every token.
  private func layer(
    logits: [Float], topK: Int64, configure: (inout moe_layer_config) -> Void = { _ in }
  ) throws -> Layer {
    let layer = try Layer(experts: Int64(logits.count), topK: topK, configure: configure)
    try layer.parameter("router.weight").values.update(repeating: 0)
    _ = try layer.parameter("router.bias").values.update(from: logits)
    return layer
  }

  @Test func amongEqualsTheLowestIndexWins() throws {
    let layer = try layer(logits: [0, 0, 0, 0, 0], topK: 3)
    let output = try layer.forward(noise(2 * layer.hidden))
    #expect(output.indices == [0, 1, 2, 0, 1, 2])
    #expect(output.tokensPerExpert == [2, 2, 2, 0, 0])
    expectClose(output.weights, [Double](repeating: 1.0 / 3, count: 6), within: 1e-6)
    expectClose(output.meanProbability, [Double](repeating: 0.2, count: 5), within: 1e-6)

    let tieForSecond = try self.layer(logits: [1, 2, 1, 1], topK: 2)
    #expect(try tieForSecond.forward(noise(tieForSecond.hidden)).indices == [1, 0])
  }

  @Test func theBestComeFirst() throws {
    let layer = try layer(logits: [1, 3, 2, 0], topK: 3)
    #expect(try layer.forward(noise(layer.hidden)).indices == [1, 2, 0])
  }

  @Test func weightsFollowTheConfiguration() throws {
    let logits: [Float] = [1, 3, 2, 0]
    let sum = exp(1.0) + exp(3.0) + exp(2.0) + exp(0.0)
    let ofAll = [exp(3.0) / sum, exp(2.0) / sum]
    let ofTheTwo = [1 / (1 + exp(-1.0)), 1 / (1 + exp(1.0))]
    for (weights, normalize, expected) in [
      (MOE_ROUTER_WEIGHTS_SCORES, MOE_NORMALIZE_SUM, ofTheTwo),
      (MOE_ROUTER_WEIGHTS_SCORES, MOE_NORMALIZE_NONE, ofAll),
      (MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, MOE_NORMALIZE_SUM, ofTheTwo),
      (MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, MOE_NORMALIZE_NONE, ofTheTwo),
    ] {
      let layer = try layer(logits: logits, topK: 2) {
        $0.router_weights = weights.int32
        $0.router_normalize = normalize.int32
      }
      expectClose(try layer.forward(noise(layer.hidden)).weights, expected, within: 1e-6)
    }
  }

  @Test func aSingleNormalisedChoiceWeighsOne() throws {
    for weights in [MOE_ROUTER_WEIGHTS_SCORES, MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX] {
      let layer = try Layer(topK: 1) { $0.router_weights = weights.int32 }
      #expect(try layer.forward(noise(9 * layer.hidden)).weights == [Float](repeating: 1, count: 9))
    }
  }

  @Test func lossesOfAnUndecidedRouter() throws {
    // Zero logits: p = 1/E, so balance = E * sum f_e / E = K, z = (ln E)^2 and entropy = ln E.
    let layer = try layer(logits: [0, 0, 0, 0, 0, 0], topK: 2) {
      $0.balance_coef = 0.5
      $0.z_coef = 0.25
    }
    let report = try layer.forward(noise(7 * layer.hidden)).report
    let ln6 = log(6.0)
    expectClose([report.balance_loss], [2], within: 1e-6, "balance_loss")
    expectClose([report.z_loss], [ln6 * ln6], within: 1e-6, "z_loss")
    expectClose([report.entropy], [ln6], within: 1e-6, "entropy")
    expectClose([report.aux_loss], [0.5 * 2 + 0.25 * ln6 * ln6], within: 1e-6, "aux_loss")
  }

  @Test func lossesOfARouterWithOneFavourite() throws {
    // All tokens on expert 0: f = (1, 0, 0, 0), so balance = E * P_0.
    let layer = try layer(logits: [2, 0, 0, 0], topK: 1)
    let output = try layer.forward(noise(5 * layer.hidden))
    let sum = exp(2.0) + 3
    let p = [exp(2.0) / sum, 1 / sum, 1 / sum, 1 / sum]
    #expect(output.tokensPerExpert == [5, 0, 0, 0])
    expectClose(output.meanProbability, p, within: 1e-6, "mean_probability")
    expectClose([output.report.balance_loss], [4 * p[0]], within: 1e-6, "balance_loss")
    expectClose([output.report.z_loss], [log(sum) * log(sum)], within: 1e-6, "z_loss")
    expectClose([output.report.entropy], [-p.reduce(0) { $0 + $1 * log($1) }], within: 1e-6, "entropy")
    #expect(output.report.aux_loss == 0, "both coefficients are 0 by default")
  }

  @Test func lossesOfAPerfectlyBalancedRouter() throws {
    // Token t is the unit vector of expert t: each is chosen once, and every P_e is 1/E.
    let layer = try Layer(hidden: 4, experts: 4, topK: 1)
    let identity: [Float] = (0..<16).map { $0 % 5 == 0 ? 3 : 0 }  // [E,H] and [T,H]
    _ = try layer.parameter("router.weight").values.update(from: identity)
    try layer.parameter("router.bias").values.update(repeating: 0)
    let output = try layer.forward(identity)
    #expect(output.indices == [0, 1, 2, 3])
    #expect(output.tokensPerExpert == [1, 1, 1, 1])
    expectClose([output.report.balance_loss], [1], within: 1e-6, "balance_loss")
  }

  @Test func minusInfinityMeansNever() throws {
    let layer = try Layer(experts: 4, topK: 3)
    try layer.parameter("router.bias").values[1] = -.infinity
    let x = noise(50 * layer.hidden)
    let output = try layer.forward(x)
    #expect(!output.indices.contains(1))
    #expect(output.tokensPerExpert[1] == 0 && output.meanProbability[1] == 0)
    #expect((output.y + output.weights + [output.report.entropy, output.report.z_loss]).allSatisfy { $0.isFinite })

    let dx = try layer.backward(x, dy: noise(x.count, seed: 2), dAuxLoss: 1)
    let gradients = try layer.gradients()
    #expect((dx + gradients).allSatisfy { $0.isFinite })
    #expect(try layer.parameter("router.bias").gradient[1] == 0)
  }

  @Test func largeLogitsDoNotOverflow() throws {
    let layer = try layer(logits: [30_000, 29_999, -30_000], topK: 2)
    let output = try layer.forward(noise(layer.hidden))
    #expect(output.indices == [0, 1])
    expectClose(output.weights, [1 / (1 + exp(-1.0)), 1 / (1 + exp(1.0))], within: 1e-6)
    expectClose([output.report.z_loss], [9e8], within: 1e-3, "z_loss")
  }

  @Test(arguments: [Float.nan, .infinity])
  func aTokenWithoutANumberIsNamed(poison: Float) throws {
    let layer = try Layer()
    var x = noise(40 * layer.hidden)
    x[23 * layer.hidden + 2] = poison
    try layer.parameter("router.weight").values.update(repeating: 1)
    var y = x
    #expect(moe_layer_forward(layer.layer, x, 40, nil, &y, layer.tape, nil) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().split { !$0.isNumber }.contains("23"), "\(lastError())")
    #expect(moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil) == MOE_ERROR_BAD_STATE, "the tape is empty")
  }

  @Test(arguments: [Float.nan, .infinity])
  func aRouterBiasMustBeANumber(poison: Float) throws {
    let layer = try layer(logits: [0, poison, 0], topK: 1)
    let x = noise(3 * layer.hidden)
    var y = x
    #expect(moe_layer_forward(layer.layer, x, 3, nil, &y, nil, nil) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().hasPrefix("router.bias[1] is NaN or plus infinity"), "\(lastError())")
  }

  /// What is wrong is the layer's, so no token is blamed, whatever x is.
  @Test(arguments: [Float.nan, .infinity])
  func aRouterWeightMustBeANumber(poison: Float) throws {
    let layer = try Layer()
    try layer.parameter("router.weight").values[2 * layer.hidden + 3] = poison
    var (x, y) = (noise(3 * layer.hidden), noise(3 * layer.hidden))
    for i in x.indices { x[i] = abs(x[i]) }  // infinity times a negative number is legal: never
    for token in [nil, 1] {
      if let token { x[token * layer.hidden] = .nan }
      #expect(moe_layer_forward(layer.layer, x, 3, nil, &y, nil, nil) == MOE_ERROR_NOT_FINITE)
      #expect(lastError().hasPrefix("router.weight[2][3] is NaN or plus infinity"), "\(lastError())")
    }
  }
}
