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
    headsAtOnce = min(sizes.heads, max(1, Self.rows / tokens))
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

struct AbsorbedAttention {
  private let work: BlockWork
  private let sizes: LatentSizes
  private let arrays: AbsorbedArrays
  private let cache: CachedLayer?
  private let projections: LatentProjections
  private let widen: HeadProducts
  private let attend: AttentionForward
  private let narrow: HeadProducts
  private let output: ProjectionForward

  private var context: ContextPointer { work.context }

  /// With a cache, attention sees the tokens in it too.
  init(
    _ arena: inout Arena, _ work: BlockWork, cache: CachedLayer?, x: UnsafePointer<Float>,
    y: UnsafeMutablePointer<Float>
  ) {
    let sizes = LatentSizes(work.c)
    let arrays = AbsorbedArrays(&arena, work.c, work.input)
    (self.work, self.sizes, self.arrays, self.cache) = (work, sizes, arrays, cache)
    let (context, tokens) = (work.context, work.tokens)
    let weight = work[.latentUpWeight]!
    // One after the other, in the same memory.
    var (first, second, third, fourth, fifth) = (arena, arena, arena, arena, arena)
    projections = LatentProjections(&first, work, arrays.projected, x: x)
    widen = HeadProducts(
      &second, .columns, weight, first: 0, rows: sizes.plain, rowsPerHead: sizes.expandedHead, tokens: tokens,
      context: context)
    attend = AttentionForward(
      &third,
      AttentionCall(
        absorbed: work, heads: 0..<arrays.headsAtOnce, queries: work.input.length,
        cached: cache.map { $0.length + work.input.length }), in: context)
    narrow = HeadProducts(
      &fourth, .rows, weight, first: sizes.plain, rows: sizes.value, rowsPerHead: sizes.expandedHead, tokens: tokens,
      context: context)
    output = ProjectionForward(
      &fifth, work[.outputWeight]!, work[.outputBias], context: context, rows: tokens, x: arrays.output, y: y)
    arena.cover(first)
    arena.cover(second)
    arena.cover(third)
    arena.cover(fourth)
    arena.cover(fifth)
  }

  @inline(never) func run() throws(Fault) {
    try projections.run()
    let rows = arrays.projected.down
    cache?.append(work.input, keys: rows, values: rows, stride: sizes.row)
    for first in stride(from: 0, to: sizes.heads, by: arrays.headsAtOnce) {
      let heads = first..<min(sizes.heads, first + arrays.headsAtOnce)
      try widen(heads)
      if let cache { try attend(heads, to: cache) } else { try attend(heads) }
      try narrow.run(
        heads,
        x: HeadSources(arrays.mixed, token: heads.count * sizes.rank, head: sizes.rank),
        y: HeadTargets(arrays.output + first * sizes.value, token: sizes.values, head: sizes.value), in: context)
    }
    try output.run()
  }

  /// Queries as they meet latents, then the part that turns.
  private func widen(_ heads: Range<Int>) throws(Fault) {
    let query = arrays.projected.query + heads.lowerBound * sizes.head
    try widen.run(
      heads, x: HeadSources(query, token: sizes.queries, head: sizes.head),
      y: HeadTargets(arrays.wide, token: heads.count * sizes.row, head: sizes.row), in: context)
    for token in 0..<work.tokens {
      for i in 0..<heads.count {
        (arrays.wide + ((token * heads.count + i) * sizes.row + sizes.rank)).update(
          from: query + (token * sizes.queries + i * sizes.head + sizes.plain), count: sizes.rotary)
      }
    }
  }

  private func attend(_ heads: Range<Int>) throws(Fault) {
    let rows = arrays.projected.down
    let call = AttentionCall(absorbed: work, heads: heads, queries: work.input.length, cached: nil)
    try attend.over(call).run(
      AttentionArrays(query: arrays.wide, key: rows, value: rows, output: arrays.mixed), logSums: nil, in: context)
  }

  /// Sequence by sequence, as SelfAttentionForward has it.
  private func attend(_ heads: Range<Int>, to cache: CachedLayer) throws(Fault) {
    let input = work.input
    if input.validMask != nil { arrays.mixed.update(repeating: 0, count: input.tokens * heads.count * sizes.rank) }
    for sequence in 0..<input.sequences {
      var known = cache.known[sequence]
      try input.forEachRun(ofSequence: sequence) { (run) throws(Fault) in
        let first = (sequence * input.length + run.lowerBound) * heads.count
        known += run.count
        let rows = cache.keys(sequence)
        try attend.over(AttentionCall(absorbed: work, heads: heads, queries: run.count, cached: known)).run(
          AttentionArrays(
            query: arrays.wide + first * sizes.row, key: rows, value: rows, output: arrays.mixed + first * sizes.rank),
          logSums: nil, in: context)
      }
    }
  }
}
