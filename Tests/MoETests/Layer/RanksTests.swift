import CMoE
import Testing

// What of layers and models over ranks can be seen with a single rank; the Python tests have several.

@Suite struct RanksTests {
  @Test(arguments: [
    (MOE_STRATEGY_EXCLUSIVE, [Int32]()), (MOE_STRATEGY_EXCLUSIVE, [2, 0]), (MOE_STRATEGY_REPLICATED, []),
    (MOE_STRATEGY_SLICED, []),
  ])
  func oneRankHasTheBitsOfALayerWithoutRanks(_ strategy: moe_strategy, _ hot: [Int32]) throws {
    let layer = try Layer()
    var (communicator, placement) = (alone(), moe_placement())
    moe_placement_init(&placement, MemoryLayout<moe_placement>.size)
    placement.strategy = Int32(strategy.rawValue)
    placement.hot_experts = Int32(hot.count)
    var (config, created) = (layer.config, OpaquePointer?.none)
    try hot.withUnsafeBufferPointer {
      placement.hot_indices = $0.baseAddress
      try check(moe_layer_create_distributed(layer.context, &config, &communicator, &placement, &created))
    }
    let spread = try #require(created)
    defer { moe_layer_free(spread) }
    try check(moe_tape_create(spread, &created))
    let tape = try #require(created)
    defer { moe_tape_free(tape) }

    let x = (0..<5 * layer.hidden).map { Float($0 % 7) - 3 }
    let expected = try layer.forward(x)
    var y = [Float](repeating: .nan, count: x.count)
    try check(moe_layer_forward(spread, x, 5, nil, &y, tape, nil))
    #expect(y == expected.y)

    try check(moe_layer_backward(layer.layer, layer.tape, x, y, 1, nil, nil))
    try check(moe_layer_backward(spread, tape, x, y, 1, nil, nil))
    var (norm, other) = (0.0, 0.0)
    try check(moe_layer_clip_grad_norm(layer.layer, 0.5, &norm))
    try check(moe_layer_clip_grad_norm(spread, 0.5, &other))
    #expect(norm > 0.5 && norm == other)
  }

  @Test func aTransportThatFailsEndsTheLayer() throws {
    let layer = try Layer()
    var (communicator, config, created) = (alone(), layer.config, OpaquePointer?.none)
    communicator.all_to_all = { _, _, _, _, _, _, _, _ in 9 }
    try check(moe_layer_create_distributed(layer.context, &config, &communicator, nil, &created))
    let spread = try #require(created)
    defer { moe_layer_free(spread) }
    #expect(moe_layer_forward(spread, nil, 0, nil, nil, nil, nil) == MOE_ERROR_COMMUNICATION)
    #expect(lastError().contains("all_to_all failed with code 9"))
    #expect(moe_layer_forward(spread, nil, 0, nil, nil, nil, nil) == MOE_ERROR_COMMUNICATION)
    #expect(lastError().contains("has failed before"))
  }

  @Test func aModelOfOneRankHasTheBitsOfAModelWithoutRanks() throws {
    let (plain, spread) = (ModelLife(), ModelLife())
    spread.communicator = alone()
    for life in [plain, spread] { for call in life.calls { try check(call(life)) } }
    #expect(spread.logits == plain.logits && spread.last == plain.last)
    #expect(spread.report.loss == plain.report.loss && spread.report.objective == plain.report.objective)

    var (norm, other) = (0.0, 0.0)
    try check(moe_model_clip_grad_norm(plain.model, 0.1, &norm))
    try check(moe_model_clip_grad_norm(spread.model, 0.1, &other))
    #expect(norm > 0.1 && norm == other)
    refused("max_norm", moe_model_clip_grad_norm(spread.model, 0, nil))
  }
}
