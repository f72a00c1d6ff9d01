/// What losses want of the logits, measured while those of a block are at hand.
struct LogitMeasures {
  let shares: UnsafeMutablePointer<Float>  // [T,E], see ScoreShares
  let chances: UnsafeMutablePointer<Float>?  // [T,E], see SmoothLoad
  private let scoreShares: ScoreShares?
  private let smoothLoad: SmoothLoad?
  private let routing: Routing
  private let experts: Int

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, routing: Routing) {
    self.routing = routing
    experts = c.experts
    scoreShares = ScoreShares(&arena, c, context: context)
    smoothLoad = SmoothLoad(&arena, c, context: context, backward: false)
    // The shares of a softmax are at hand already.
    shares =
      scoreShares == nil ? routing.probabilities : arena.take(Float.self, routing.tokens, c.experts)
    chances = smoothLoad == nil ? nil : arena.take(Float.self, routing.tokens, c.experts)
  }

  /// Where a block's logits without their noise are wanted.
  func clean(_ lane: Int) -> UnsafeMutablePointer<Float>? { smoothLoad?.clean(lane) }

  /// Token t, number `row` of its block, with logits z [E] and, of learned noise, deviations [E].
  func measure(
    _ t: Int, row: Int, _ z: UnsafePointer<Float>, deviations: UnsafePointer<Float>?, _ lane: Int
  ) {
    scoreShares?.fill(shares + t * experts, logits: z)
    guard let smoothLoad, let chances else { return }
    smoothLoad.fill(
      chances + t * experts, SmoothLoad.Token(number: t, row: row, z: z, deviations: deviations), lane)
  }
}
