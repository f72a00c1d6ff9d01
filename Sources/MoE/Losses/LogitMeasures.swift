/// What losses want of the logits, measured while those of a block are at hand, for one wave of tokens, or for all.
struct LogitMeasures {
  let shares: TokenRows  // see ScoreShares
  let chances: TokenRows?  // see SmoothLoad
  private let scoreShares: ScoreShares?
  private let smoothLoad: SmoothLoad?

  /// `rows`: tokens that are measured before any of them is added up.
  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, routing: Routing, rows: Int) {
    scoreShares = ScoreShares(&arena, c, context: context)
    smoothLoad = SmoothLoad(&arena, c, context: context, backward: false)
    // The shares of a softmax are at hand already.
    shares = scoreShares == nil ? routing.probabilities : TokenRows(&arena, rows: rows, experts: c.experts)
    chances = smoothLoad == nil ? nil : TokenRows(&arena, rows: rows, experts: c.experts)
  }

  /// Where a block's logits without their noise are wanted.
  func clean(_ lane: Int) -> UnsafeMutablePointer<Float>? { smoothLoad?.clean(lane) }

  /// Token t, number `row` of its block, with logits z [E] and, of learned noise, deviations [E].
  func measure(
    _ t: Int, row: Int, _ z: UnsafePointer<Float>, deviations: UnsafePointer<Float>?, _ lane: Int
  ) {
    scoreShares?.fill(shares.of(t), logits: z)
    guard let smoothLoad, let chances else { return }
    smoothLoad.fill(
      chances.of(t), SmoothLoad.Token(number: t, row: row, z: z, deviations: deviations), lane)
  }
}
