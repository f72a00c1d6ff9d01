import CShims

// Latent attention as it is used: no key and no value is ever written out. The product that would make them is absorbed into
// the queries and into the output [MLA 2024, 2.1.2], and all heads read the latents themselves:
//     score = q_h W_h,key . c + q_h' . r;   u_h = sum of weights * c;   o_h = u_h W_h,value^T;   y = o W_o^T + b_o
// So a cache needs the latent and the turned part alone. Some heads at a time, so that their wide queries do not all exist
// at once.

/// What a call needs.
private struct AbsorbedArrays {
  let projected: LatentProjected
  let wide: UnsafeMutablePointer<Float>  // [T, heads at once, L + R] queries as they meet latents
  let mixed: UnsafeMutablePointer<Float>  // [T, heads at once, L] weighted latents
  let output: UnsafeMutablePointer<Float>  // [T, heads Dv]
  let headsAtOnce: Int

  /// Wide rows that exist at once where a call has fewer tokens: one token's heads are then done together.
  private static var rows: Int { 1024 }

  init(_ arena: inout Arena, _ c: ModelConfiguration, _ input: ModelInput) {
    let (sizes, tokens) = (LatentSizes(c), input.tokens)
    headsAtOnce = min(sizes.heads, max(1, Self.rows / max(1, tokens)))
    let queryDown = sizes.latent.queryRank.map { arena.take(Float.self, tokens, $0) }
    let query = arena.take(Float.self, tokens, sizes.queries)
    let down = arena.take(Float.self, tokens, sizes.row)
    projected = LatentProjected(
      queryDown: queryDown, queryNormed: queryDown, query: query, down: down, latent: down,
      latentPlaces: RowPlaces(width: sizes.rank, stride: sizes.row))
    wide = arena.take(Float.self, tokens * headsAtOnce, sizes.row)
    mixed = arena.take(Float.self, tokens * headsAtOnce, sizes.rank)
    output = arena.take(Float.self, tokens, sizes.values)
  }
}

/// Each stage is made when it is run (see LatentAttentionBackward).
struct AbsorbedAttention {
  private let work: BlockWork
  private let arrays: AbsorbedArrays
  private let cache: CachedLayer?
  private let x: UnsafePointer<Float>  // [T,H]
  private let y: UnsafeMutablePointer<Float>  // [T,H]
  private let start: Arena  // where the stages begin

  private var context: ContextPointer { work.context }
  private var sizes: LatentSizes { LatentSizes(work.c) }

  /// With a cache, attention sees the tokens in it too.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, cache: CachedLayer?, x: UnsafePointer<Float>,
    y: UnsafeMutablePointer<Float>
  ) {
    arrays = AbsorbedArrays(&arena, work.c, work.input)
    (self.work, self.cache, self.x, self.y, start) = (work, cache, x, y, arena)
    arena.cover(from: start) { _ = projections(&$0) }
    arena.cover(from: start) { _ = widening(&$0) }
    arena.cover(from: start) { _ = attention(&$0) }
    arena.cover(from: start) { _ = narrowing(&$0) }
    arena.cover(from: start) { _ = output(&$0) }
  }

  @inline(never) func run() throws(Fault) {
    try runProjections()
    let rows = arrays.projected.down
    cache?.append(work.input, keys: rows, values: rows, stride: sizes.row, context.kernels)
    for first in stride(from: 0, to: sizes.heads, by: arrays.headsAtOnce) {
      let heads = first..<min(sizes.heads, first + arrays.headsAtOnce)
      try widen(heads)
      try attend(heads)
      try narrow(heads)
    }
    try runOutput()
  }

  // MARK: stages

  @inline(never) private func projections(_ arena: inout Arena) -> LatentProjections {
    LatentProjections(&arena, work, arrays.projected, x: x)
  }

  @inline(never) private func runProjections() throws(Fault) {
    var own = start
    try projections(&own).run()
  }

  @inline(never) private func widening(_ arena: inout Arena) -> HeadProducts {
    HeadProducts(
      &arena, .columns, work[.latentUpWeight]!, first: 0, rows: sizes.plain, rowsPerHead: sizes.expandedHead,
      tokens: work.tokens, context: context)
  }

  /// Queries as they meet latents, then the part that turns.
  @inline(never) private func widen(_ heads: Range<Int>) throws(Fault) {
    let query = arrays.projected.query + heads.lowerBound * sizes.head
    var own = start
    try widening(&own).run(
      heads, x: HeadSources(query, token: sizes.queries, head: sizes.head),
      y: HeadTargets(arrays.wide, token: heads.count * sizes.row, head: sizes.row), in: context)
    for token in 0..<work.tokens {
      for i in 0..<heads.count {
        (arrays.wide + ((token * heads.count + i) * sizes.row + sizes.rank)).update(
          from: query + (token * sizes.queries + i * sizes.head + sizes.plain), count: sizes.rotary)
      }
    }
  }

  /// Of as many heads as are done at once.
  @inline(never) private func attention(_ arena: inout Arena) -> AttentionForward {
    AttentionForward(
      &arena,
      AttentionCall(
        absorbed: work, heads: 0..<arrays.headsAtOnce, queries: work.input.length,
        cached: cache.map { ($0.length + work.input.length, $0) }), in: context)
  }

  @inline(never) private func attend(_ heads: Range<Int>) throws(Fault) {
    var own = start
    let attend = attention(&own)
    if let cache { return try self.attend(heads, to: cache, attend) }
    let rows = arrays.projected.down
    let call = AttentionCall(absorbed: work, heads: heads, queries: work.input.length, cached: nil)
    try attend.over(call).run(
      AttentionArrays(query: arrays.wide, key: rows, value: rows, output: arrays.mixed), logSums: nil, in: context)
  }

  /// Sequence by sequence, as SelfAttentionForward has it.
  private func attend(_ heads: Range<Int>, to cache: CachedLayer, _ attend: AttentionForward) throws(Fault) {
    let input = work.input
    if input.validMask != nil { arrays.mixed.update(repeating: 0, count: input.tokens * heads.count * sizes.rank) }
    for sequence in 0..<input.sequences {
      var known = cache.known[sequence]
      try input.forEachRun(ofSequence: sequence) { (run) throws(Fault) in
        let first = (sequence * input.length + run.lowerBound) * heads.count
        known += run.count
        let rows = cache.keys(sequence)
        var call = AttentionCall(absorbed: work, heads: heads, queries: run.count, cached: (known, cache))
        call.calledFrom = (sequence, run.lowerBound)
        try attend.over(call).run(
          AttentionArrays(
            query: arrays.wide + first * sizes.row, key: rows, value: rows, output: arrays.mixed + first * sizes.rank),
          logSums: nil, in: context)
      }
    }
  }

  @inline(never) private func narrowing(_ arena: inout Arena) -> HeadProducts {
    HeadProducts(
      &arena, .rows, work[.latentUpWeight]!, first: sizes.plain, rows: sizes.value, rowsPerHead: sizes.expandedHead,
      tokens: work.tokens, context: context)
  }

  @inline(never) private func narrow(_ heads: Range<Int>) throws(Fault) {
    var own = start
    try narrowing(&own).run(
      heads, x: HeadSources(arrays.mixed, token: heads.count * sizes.rank, head: sizes.rank),
      y: HeadTargets(arrays.output + heads.lowerBound * sizes.value, token: sizes.values, head: sizes.value),
      in: context)
  }

  @inline(never) private func output(_ arena: inout Arena) -> ProjectionForward {
    ProjectionForward(
      &arena, work, .outputWeight, .outputBias, x: arrays.output, y: y)
  }

  @inline(never) private func runOutput() throws(Fault) {
    var own = start
    try output(&own).run()
  }
}
