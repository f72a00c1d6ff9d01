import CShims

/// Tokens that become something dear to make, integers or bfloat16: made once for all experts that read them, where that is less work than to
/// make them again for each piece of the experts' work.
struct TokensOnce<P: Precision> {
  /// [tokens of a chunk, padded H], each as P.gather makes it alone
  fileprivate let rows: UnsafeMutablePointer<P.Element>
  /// [1] those that are there; none: they are gathered where they are wanted
  fileprivate let made: UnsafeMutablePointer<Range<Int>>

  init(_ arena: inout Arena, _ work: GroupWork) {
    rows = arena.take(P.Element.self, work.dispatch.mostTokens, padded(work.c.hidden))
    made = arena.take(Range<Int>.self, 1)
  }

  /// For so many pieces. `forAllRuns`: of a group in runs the first one makes all tokens, and the others find them.
  func make(_ work: GroupWork, pieces: Int, forAllRuns: Bool, in context: ContextPointer) throws(Fault) {
    var rows = work.dispatch
    if rows.inRuns && forAllRuns {
      if !rows.isFirstRun { return }
      rows = rows.ofAll(work.c.experts)
    }
    let (count, tokens) = rows.extent()
    // Tokens between those of some experts may not be there yet: over ranks they are on their way.
    let areThere = rows.inRuns || rows.experts.count == work.c.experts || count >= tokens.count
    made.initialize(to: areThere && count + pieces > tokens.count ? tokens : 0..<0)
    let items = (made.pointee.count + MakeTokens<P>.tokensPerItem - 1) / MakeTokens<P>.tokensPerItem
    try context.run(items, MakeTokens(once: self, x: work.x, hidden: work.c.hidden, kernels: work.kernels))
  }
}

private struct MakeTokens<P: Precision>: Job {
  let once: TokensOnce<P>
  let x: UnsafePointer<Float>
  let hidden: Int
  let kernels: UnsafePointer<moei_kernels>

  /// A few of them are not worth waking other threads.
  static var tokensPerItem: Int { 8 }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let tokens = once.made.pointee
    let first = item * Self.tokensPerItem
    for i in first..<min(first + Self.tokensPerItem, tokens.count) {
      P.gather(
        1, hidden, nil, x + (tokens.lowerBound + i) * hidden, xRow: hidden, weights: nil,
        into: once.rows + i * padded(hidden), kernels)
    }
  }
}

extension ExpertPiece {
  /// What `gather` gathers of whole rows, from tokens that are there; false where they are not.
  func copy<P: Precision>(
    _ tiles: Range<Int>, _ columns: Int, of once: TokensOnce<P>, into out: UnsafeMutablePointer<P.Element>
  ) -> Bool {
    let made = once.made.pointee
    if made.isEmpty { return false }
    let width = padded(columns)
    forEachTile(tiles) { rows, before in
      let (tokens, out) = (tokens(rows), out + before * width)
      P.copyRows(
        rows.count, width, { UnsafePointer(once.rows) + (Int(tokens[$0]) - made.lowerBound) * width }, into: out)
    }
    return true
  }
}
