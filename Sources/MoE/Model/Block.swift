import CShims

// One transformer layer, x [T,H] to y [T,H]; the residual stream is float32.
//     before  h = x + attention(norm1(x))    y = h + ffn(norm2(h))      [Pre-LN 2020]
//     after   h = norm1(x + attention(x))    y = norm2(h + ffn(h))      [Attention 2017]
//     none    y = attention(x)
// with dropout on what attention and ffn add, and times the model's residual scale.

/// What forward leaves for backward in a tape; what is nil is computed again. Normed rows and the norms' statistics always are:
/// that is one cheap pass.
struct BlockTape {
  let x: UnsafePointer<Float>  // [T,H]
  let attention: KeptLayerAttention?
  let sum: UnsafeMutablePointer<Float>?  // [T,H] x + attention
  let after: UnsafeMutablePointer<Float>?  // [T,H] h + ffn(h), of norms after
  let feedForward: UnsafeMutablePointer<UInt8>  // the ffn's tape
  let feedForwardBytes: Int

  init(
    _ arena: inout Arena, _ work: BlockWork, _ keep: Keep, feedForwardBytes: Int, x: UnsafePointer<Float>
  ) {
    let (c, input) = (work.c, work.input)
    self.x = x
    attention = keep == .input ? nil : KeptLayerAttention(&arena, work, forBackward: true)
    sum = keep == .input || !c.hasFeedForward ? nil : arena.take(Float.self, input.tokens, c.hidden)
    after = c.normPlace == .after ? arena.take(Float.self, input.tokens, c.hidden) : nil
    self.feedForwardBytes = feedForwardBytes
    feedForward = arena.take(UInt8.self, feedForwardBytes)
  }
}

/// The first half: up to x + attention, with norms after before norm1.
private struct AttentionHalf {
  let attention: LayerAttentionForward
  private let context: ContextPointer
  private let norm: NormForward?
  private let sum: ResidualSum?

  /// `normed` [T,H] is what attention reads where norms come before. `arrays`: see LayerAttentionForward.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLayerAttention?, cache: CachedLayer? = nil,
    x: UnsafePointer<Float>, normed: UnsafeMutablePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    context = work.context
    norm = work.c.normPlace == .before ? work.norm(.first, x, to: normed) : nil
    attention = LayerAttentionForward(
      &arena, work, arrays, cache: cache, x: norm == nil ? x : UnsafePointer(normed), y: y)
    sum = work.c.hasResidual ? work.sum(work.dropout(.attentionOutputDropout), x: x, y: y) : nil
  }

  /// `following`: the norm of the sum.
  @inline(never) func run(following: NormForward? = nil) throws(Fault) {
    try norm?.run(in: context)
    try attention.run()
    guard let sum else { return }
    if let following { try following.run(after: sum, in: context) } else { try sum.run(in: context) }
  }
}

struct BlockForward {
  private let work: BlockWork
  private let half: AttentionHalf
  private let feedForward: FeedForward?
  private let scratch: UnsafeMutablePointer<UInt8>  // of the ffn
  private let sum: UnsafeMutablePointer<Float>  // [T,H]
  private let normed: UnsafeMutablePointer<Float>  // [T,H]
  private let after: UnsafeMutablePointer<Float>  // [T,H] what the ffn's output is added up in
  private let y: UnsafeMutablePointer<Float>

  /// y may be x. With a cache, attention sees the tokens in it too. Its frame is gone before the layer runs, as within the caller's it
  /// would not be.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ feedForward: FeedForward?, tape: BlockTape?, cache: CachedLayer?,
    x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    let (c, input) = (work.c, work.input)
    self.work = work
    self.feedForward = feedForward
    self.y = y
    normed = arena.take(Float.self, c.hasFeedForward ? input.tokens : 0, c.hidden)
    sum = c.hasFeedForward ? tape?.sum ?? arena.take(Float.self, input.tokens, c.hidden) : y
    after = tape?.after ?? y
    // Attention is done before the ffn begins: both use the same memory.
    var (first, second) = (arena, arena)
    let arrays =
      c.absorbs(input, taped: tape != nil)
      ? nil : tape?.attention ?? KeptLayerAttention(&first, work, forBackward: false)
    half = AttentionHalf(&first, work, arrays, cache: cache, x: x, normed: normed, y: sum)
    scratch = second.take(UInt8.self, feedForward?.memory.forwardScratch ?? 0)
    arena.cover(first)
    arena.cover(second)
  }

  /// Returns the ffn's report.
  func run(tape: TapePointer?, _ details: Layer.Details) throws(Fault) -> Report {
    guard let feedForward else {
      try half.run()
      return Report()
    }
    let (context, isBefore) = (work.context, work.c.normPlace == .before)
    try half.run(following: work.norm(isBefore ? .second : .first, sum, to: normed))
    let report = try feedForward.forward(normed, y: after, tape: tape, scratch: scratch, details)
    let last = work.sum(work.dropout(.feedForwardDropout), x: isBefore ? sum : normed, y: after)
    if isBefore {
      try last.run(in: context)
    } else {
      try work.norm(.second, after, to: y).run(after: last, in: context)
    }
    return report
  }
}

// MARK: backward

struct BlockBackward {
  private let work: BlockWork
  private let tape: BlockTape
  private let feedForward: FeedForward?
  private let again: AttentionHalf?  // where attention was not kept
  private let attention: LayerAttentionBackward
  private let scratch: UnsafeMutablePointer<UInt8>  // of the ffn
  private let sum: UnsafeMutablePointer<Float>  // [T,H]
  private let normed: UnsafeMutablePointer<Float>  // [T,H]
  private let statistics: UnsafeMutablePointer<Float>  // [T,2]
  private let dropped: UnsafeMutablePointer<Float>  // [T,H] d after dropout and scale; d itself where there is neither
  private let part: UnsafeMutablePointer<Float>  // [T,H] what a half adds to d
  private let d: UnsafeMutablePointer<Float>

  /// d [T,H], the gradient with respect to y, becomes that with respect to x.
  init(
    _ arena: inout Arena, _ work: BlockWork, _ feedForward: FeedForward?, tape: BlockTape,
    d: UnsafeMutablePointer<Float>
  ) {
    let (c, input, tokens) = (work.c, work.input, work.tokens)
    self.work = work
    self.feedForward = feedForward
    self.tape = tape
    self.d = d
    let rows = c.hasFeedForward ? tokens : 0
    normed = arena.take(Float.self, rows, c.hidden)
    statistics = arena.take(Float.self, rows, 2)
    part = c.hasFeedForward ? arena.take(Float.self, tokens, c.hidden) : d
    let changes = input.training && c.dropout > 0 || c.residualScale != 1
    dropped = changes ? arena.take(Float.self, tokens, c.hidden) : d
    let arrays = tape.attention ?? KeptLayerAttention(&arena, work, forBackward: true)
    sum = tape.sum ?? arena.take(Float.self, tape.attention == nil ? tokens : 0, c.hidden)
    var (first, second, third) = (arena, arena, arena)
    again =
      tape.attention == nil
      ? AttentionHalf(&first, work, arrays, x: tape.x, normed: normed, y: sum) : nil
    scratch = second.take(UInt8.self, feedForward?.memory.backwardScratch ?? 0)
    attention = LayerAttentionBackward(
      &third, work, arrays, x: c.normPlace == .before ? UnsafePointer(normed) : tape.x, dy: dropped,
      dx: part)
    arena.cover(first)
    arena.cover(second)
    arena.cover(third)
  }

  func run(tape feedForwardTape: TapePointer?, dAuxLoss: Float, dMeanProbability: UnsafePointer<Float>?) throws(Fault) {
    try attentionAgain()
    switch work.c.normPlace {
    case .before:
      try normAgain(.second, sum)
      try feedForwardBackward(feedForwardTape, dAuxLoss, dMeanProbability)
      try normBackward(.second, sum, part, addedTo: d)
      try normAgain(.first, tape.x)
      try drop(.attentionOutputDropout)
      try attentionBackward()
      try normBackward(.first, tape.x, part, addedTo: d)
    case .after:
      try normAgain(.second, tape.after!)
      try normBackward(.second, tape.after!, d)
      try normAgain(.first, sum)
      try feedForwardBackward(feedForwardTape, dAuxLoss, dMeanProbability)
      try add()
      try normBackward(.first, sum, d)
      try drop(.attentionOutputDropout)
      try attentionBackward()
      try add()
    case .none:
      try attentionBackward()
    }
  }

  // Each half runs in a frame of its own, so that neither's copies of its stages lie on the stack while the other runs.

  @inline(never) private func attentionAgain() throws(Fault) { try again?.run() }

  @inline(never) private func attentionBackward() throws(Fault) { try attention.run() }

  @inline(never) private func normAgain(_ which: BlockNorm, _ x: UnsafePointer<Float>) throws(Fault) {
    try work.norm(which, x, to: normed, statistics).run(in: work.context)
  }

  @inline(never) private func normBackward(
    _ which: BlockNorm, _ x: UnsafePointer<Float>, _ gradient: UnsafeMutablePointer<Float>,
    addedTo sum: UnsafeMutablePointer<Float>? = nil
  ) throws(Fault) {
    try work.normBackward(which, x, statistics, gradient, addedTo: sum)
  }

  /// part = gradient with respect to the ffn's input, which is in `normed`.
  @inline(never) private func feedForwardBackward(
    _ tape: TapePointer?, _ dAuxLoss: Float, _ dMeanProbability: UnsafePointer<Float>?
  ) throws(Fault) {
    try drop(.feedForwardDropout)
    try feedForward!.backward(
      normed, dy: dropped, dx: part, tape: tape!, scratch: scratch, dAuxLoss: dAuxLoss,
      dMeanProbability: dMeanProbability)
  }

  @inline(never) private func drop(_ stream: ModelStream) throws(Fault) {
    guard dropped != d else { return }
    try work.sum(from: UnsafePointer(d), work.dropout(stream), x: nil, y: dropped).run(in: work.context)
  }

  /// d += part
  @inline(never) private func add() throws(Fault) {
    try work.add(part, to: d).run(in: work.context)
  }
}
