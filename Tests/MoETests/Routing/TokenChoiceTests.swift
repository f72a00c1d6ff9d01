import CMoE
import Testing

@Suite("Token choice")
struct TokenChoiceTests {
  /// Every logit is 0 and so every score 1/2: the bias alone tells experts apart, and weighs nothing.
  @Test func aBiasDecidesTheChoiceAndNotTheWeight() throws {
    let layer = try Layer {
      ($0.score, $0.router_normalize) = (MOE_SCORE_SIGMOID.int32, MOE_NORMALIZE_NONE.int32)
      $0.selection_bias = 1
    }
    for name in ["router.weight", "router.bias"] { try layer.parameter(name).values.update(repeating: 0) }
    let bias = try layer.parameter("router.selection_bias")
    #expect(bias.grad == nil)
    bias.values[1] = -3
    bias.values[2] = 2
    let output = try layer.forward(noise(3 * layer.hidden))
    #expect(output.indices == [2, 0, 2, 0, 2, 0])
    #expect(output.weights == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
  }

  @Test func anExpertThatIsShutOutStaysOut() throws {
    let layer = try Layer { ($0.score, $0.selection_bias) = (MOE_SCORE_SIGMOID.int32, 1) }
    try layer.parameter("router.bias").values[3] = -.infinity
    try layer.parameter("router.selection_bias").values[3] = 100
    #expect(!(try layer.forward(noise(8 * layer.hidden)).indices.contains(3)))
  }

  @Test func theBiasFollowsTheLoad() throws {
    let layer = try Layer { $0.selection_bias = 1 }
    let bias = try layer.parameter("router.selection_bias").values
    let counts: [Int64] = [0, 2, 2, 4]
    try check(moe_layer_update_selection_bias(layer.layer, counts, 0.25, 0))
    #expect(Array(bias) == [0.25, 0, 0, -0.25])
    let skewed: [Int64] = [0, 0, 0, 4]
    try check(moe_layer_update_selection_bias(layer.layer, skewed, 0.5, 1))  // directions 1, 1, 1, -1; mean 1/2
    #expect(Array(bias) == [0.5, 0.25, 0.25, -1])
  }

  @Test func badUpdates() throws {
    let layer = try Layer { $0.selection_bias = 1 }
    let counts: [Int64] = [1, 1, 1, 1]
    refused("layer", moe_layer_update_selection_bias(nil, counts, 0.1, 0))
    refused("tokens_per_expert", moe_layer_update_selection_bias(layer.layer, nil, 0.1, 0))
    refused("tokens_per_expert", moe_layer_update_selection_bias(layer.layer, [1, -1, 1, 1], 0.1, 0))
    for rate: Float in [-1, .nan, .infinity] {
      refused("rate", moe_layer_update_selection_bias(layer.layer, counts, rate, 0))
    }
    refused("zero_sum", moe_layer_update_selection_bias(layer.layer, counts, 0.1, 2))
    let plain = try Layer()
    #expect(moe_layer_update_selection_bias(plain.layer, counts, 0.1, 0) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("selection_bias"))
  }

  @Test func whatCannotBeWeighedIsRefused() throws {
    let layer = try Layer { $0.score = MOE_SCORE_SIGMOID.int32 }
    let x = noise(2 * layer.hidden)
    var y = x
    try layer.parameter("router.bias").values.update(repeating: -1000)  // every sigmoid is 0
    #expect(moe_layer_forward(layer.layer, x, 2, nil, &y, layer.tape, nil) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().contains("token 0") && lastError().contains("normalize_epsilon"))
  }

  @Test func aBiasThatIsNoNumberIsRefused() throws {
    let layer = try Layer { $0.selection_bias = 1 }
    let x = noise(2 * layer.hidden)
    var y = x
    try layer.parameter("router.selection_bias").values[1] = .nan
    #expect(moe_layer_forward(layer.layer, x, 2, nil, &y, layer.tape, nil) == MOE_ERROR_NOT_FINITE)
    #expect(lastError().contains("selection_bias") && lastError().contains("expert 1"))
  }
}
