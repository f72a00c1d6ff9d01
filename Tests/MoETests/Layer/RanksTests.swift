import CMoE
import Foundation
import Testing

// What of layers over ranks can be seen with a single rank; the Python tests have several.

/// A rank by itself: what it sends to all comes back to it.
private func alone() -> moe_communicator {
  var communicator = moe_communicator()
  moe_communicator_init(&communicator, MemoryLayout<moe_communicator>.size)
  communicator.size = 1
  communicator.all_to_all = { _, send, sent, from, receive, received, at, request in
    guard let sent, let from, let received, let at, sent[0] == received[0] else { return 1 }
    if sent[0] > 0 { memmove(receive! + Int(at[0]), send! + Int(from[0]), Int(sent[0])) }
    request?.pointee = nil
    return 0
  }
  communicator.send = { _, _, _, _, _, _ in 1 }
  communicator.receive = { _, _, _, _, _, _ in 1 }
  communicator.test = { _, _, done in
    done?.pointee = 1
    return 0
  }
  communicator.wait = { _, _ in 0 }
  communicator.error = { _, _ in nil }
  communicator.abandon = { _, _ in }
  return communicator
}

@Suite struct RanksTests {
  @Test func oneRankHasTheBitsOfALayerWithoutRanks() throws {
    let layer = try Layer()
    var (communicator, placement) = (alone(), moe_placement())
    moe_placement_init(&placement, MemoryLayout<moe_placement>.size)
    var (config, created) = (layer.config, OpaquePointer?.none)
    try check(moe_layer_create_distributed(layer.context, &config, &communicator, &placement, &created))
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
}
