import CMoE
import Testing

@Suite("Tape")
struct TapeTests {
  /// dx and all gradients of one forward and backward with a fresh layer and tape.
  private func fresh(_ x: [Float], _ dy: [Float]) throws -> [UInt32] {
    let layer = try Layer()
    _ = try layer.forward(x)
    let dx = try layer.backward(x, dy: dy)
    return bits(try dx + layer.gradients())
  }

  @Test func oneTapeServesCallsOfAnySize() throws {
    let layer = try Layer()
    for tokens in [3, 200, 1, 0, 70] {
      let x = noise(tokens * layer.hidden, seed: UInt64(tokens))
      let dy = noise(x.count, seed: 2)
      try check(moe_layer_zero_grad(layer.layer))
      _ = try layer.forward(x)
      let dx = try layer.backward(x, dy: dy)
      #expect(bits(try dx + layer.gradients()) == (try fresh(x, dy)), "\(tokens) tokens")
    }
  }

  @Test func theLatestForwardCounts() throws {
    let layer = try Layer()
    let x = noise(9 * layer.hidden)
    let dy = noise(x.count, seed: 2)
    _ = try layer.forward(noise(9 * layer.hidden, seed: 3))
    _ = try layer.forward(x)
    let dx = try layer.backward(x, dy: dy)
    #expect(bits(try dx + layer.gradients()) == (try fresh(x, dy)))
  }

  @Test func twoTapesKeepTwoCallsApart() throws {
    let layer = try Layer()
    var second: OpaquePointer?
    try check(moe_tape_create(layer.layer, &second))
    defer { moe_tape_free(second) }
    let (a, b) = (noise(9 * layer.hidden), noise(4 * layer.hidden, seed: 3))
    _ = try layer.forward(a)
    _ = try layer.forward(b, tape: second)

    let ofA = try layer.backward(a, dy: a)
    #expect(bits(try ofA + layer.gradients()) == (try fresh(a, a)))
    try check(moe_layer_zero_grad(layer.layer))
    let ofB = try layer.backward(b, dy: b, tape: second)
    #expect(bits(try ofB + layer.gradients()) == (try fresh(b, b)))
  }

  @Test func anEmptyTapeIsRefused() throws {
    let layer = try Layer()
    let x = noise(layer.hidden)
    #expect(moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("tape"))
  }

  @Test func anotherLayersTapeIsRefused() throws {
    let (layer, other) = (try Layer(), try Layer())
    let x = noise(3 * layer.hidden)
    var y = x
    _ = try other.forward(x)
    #expect(moe_layer_backward(layer.layer, other.tape, x, x, 0, nil, nil) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("tape"))
    #expect(moe_layer_forward(layer.layer, x, 3, nil, &y, other.tape, nil) == MOE_ERROR_BAD_STATE)
    #expect(lastError().contains("tape"))
    // The foreign tape still serves its own layer.
    #expect(try other.backward(x, dy: x).allSatisfy { $0.isFinite })
  }

  @Test func aFailedForwardEmptiesTheTape() throws {
    let layer = try Layer()
    let x = noise(3 * layer.hidden)
    var y = x
    _ = try layer.forward(x)
    let poisoned = [Float](repeating: .nan, count: x.count)
    #expect(moe_layer_forward(layer.layer, poisoned, 3, nil, &y, layer.tape, nil) == MOE_ERROR_NOT_FINITE)
    #expect(moe_layer_backward(layer.layer, layer.tape, x, x, 0, nil, nil) == MOE_ERROR_BAD_STATE)
  }

  @Test func freeingNothingIsFine() {
    moe_tape_free(nil)
    moe_layer_free(nil)
    moe_optimizer_free(nil)
    moe_context_free(nil)
  }
}
