import CShims

// Multi-head latent attention [MLA 2024] as it is trained: every head's keys and values are written out.
//     k_h = c W_h,key^T | r;   v_h = c W_h,value^T;   o = attention(q, k, v);   y = o W_o^T + b_o

/// What forward makes and backward reads.
struct KeptLatent {
  let queryDown: UnsafeMutablePointer<Float>?  // [T,Q]
  let query: UnsafeMutablePointer<Float>  // [T, heads D], turned
  let down: UnsafeMutablePointer<Float>  // [T, L + R], the latent before its norm, the key part turned
  let key: UnsafeMutablePointer<Float>  // [T, heads D]
  let value: UnsafeMutablePointer<Float>  // [T, heads Dv]
  let output: UnsafeMutablePointer<Float>  // [T, heads Dv]
  let logSums: UnsafeMutablePointer<Float>?  // [B, heads, S], for backward

  init(_ arena: inout Arena, _ c: ModelConfiguration, _ input: ModelInput, forBackward: Bool) {
    let (sizes, tokens) = (LatentSizes(c), input.tokens)
    queryDown = sizes.latent.queryRank.map { arena.take(Float.self, tokens, $0) }
    query = arena.take(Float.self, tokens, sizes.queries)
    down = arena.take(Float.self, tokens, sizes.row)
    key = arena.take(Float.self, tokens, sizes.queries)
    value = arena.take(Float.self, tokens, sizes.values)
    output = arena.take(Float.self, tokens, sizes.values)
    logSums = forBackward ? arena.take(Float.self, tokens, sizes.heads) : nil
  }

  /// With what is made again for backward: both normed arrays.
  func projected(_ arena: inout Arena, _ work: BlockWork) -> LatentProjected {
    let sizes = LatentSizes(work.c)
    return LatentProjected(
      queryDown: queryDown,
      queryNormed: sizes.latent.queryRank.map { arena.take(Float.self, work.tokens, $0) }, query: query, down: down,
      latent: arena.take(Float.self, work.tokens, sizes.rank), latentPlaces: RowPlaces(width: sizes.rank))
  }

  var attention: AttentionArrays { AttentionArrays(query: query, key: key, value: value, output: output) }
}

/// Each stage is made when it is run (see LatentAttentionBackward).
struct LatentAttentionForward {
  private let work: BlockWork
  private let arrays: KeptLatent
  private let projected: LatentProjected
  private let expanded: UnsafeMutablePointer<Float>  // [T, heads (D - R + Dv)]
  private let x: UnsafePointer<Float>  // [T,H]
  private let y: UnsafeMutablePointer<Float>  // [T,H]
  private let start: Arena  // where the stages begin
  private let behind: Arena  // where the one begins that writes `expanded`

  private var context: ContextPointer { work.context }

  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLatent, x: UnsafePointer<Float>,
    y: UnsafeMutablePointer<Float>
  ) {
    (self.work, self.arrays, self.x, self.y) = (work, arrays, x, y)
    projected = arrays.projected(&arena, work)
    start = arena
    var behind = arena
    expanded = behind.take(Float.self, work.tokens, LatentSizes(work.c).expanded)
    self.behind = behind
    arena.cover(from: start) { _ = projections(&$0) }
    arena.cover(from: behind) { _ = expand(&$0) }
    arena.cover(from: start) { _ = attention(&$0) }
    arena.cover(from: start) { _ = output(&$0) }
  }

  @inline(never) func run() throws(Fault) {
    try runProjections()
    try runExpand()
    try runAttention()
    try runOutput()
  }

  // MARK: stages

  @inline(never) private func projections(_ arena: inout Arena) -> LatentProjections {
    LatentProjections(&arena, work, projected, x: x)
  }

  @inline(never) private func runProjections() throws(Fault) {
    var own = start
    try projections(&own).run()
  }

  @inline(never) private func expand(_ arena: inout Arena) -> ProjectionForward {
    ProjectionForward(
      &arena, work, .latentUpWeight, nil, x: UnsafePointer(projected.latent), y: expanded)
  }

  @inline(never) private func runExpand() throws(Fault) {
    var own = behind
    try expand(&own).run()
    try LatentHeads(work, expanded: expanded, key: arrays.key, value: arrays.value, down: arrays.down).spread()
  }

  @inline(never) private func attention(_ arena: inout Arena) -> AttentionForward {
    AttentionForward(&arena, AttentionCall(latent: work), in: context)
  }

  @inline(never) private func runAttention() throws(Fault) {
    var own = start
    try attention(&own).run(arrays.attention, logSums: arrays.logSums, in: context)
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

extension AttentionCall {
  /// Attention of a layer whose keys and values are written out, over the tokens of one call.
  init(latent work: BlockWork) {
    let (c, input, sizes) = (work.c, work.input, LatentSizes(work.c))
    self.init(
      sequences: input.sequences, queries: input.length, keys: input.length, heads: sizes.heads, keyHeads: sizes.heads,
      headSize: sizes.head, valueSize: sizes.value)
    takeLatent(work)
    dropout = input.training ? c.attentionDropout : 0
    firstSequence = work.model.firstSequence(input)
  }

  /// Attention of some heads from `first` on, whose only key is the latent with the part that turns, and whose value is the
  /// latent; over the tokens of one call, or, of one sequence, over all that a cache has of it.
  init(absorbed work: BlockWork, heads: Range<Int>, queries: Int, cached: (keys: Int, in: CachedLayer)?) {
    let sizes = LatentSizes(work.c)
    self.init(
      sequences: cached == nil ? work.input.sequences : 1, queries: queries, keys: cached?.keys ?? queries,
      heads: heads.count, keyHeads: 1, headSize: sizes.row, valueSize: sizes.rank)
    valueStride = sizes.row
    takeLatent(work)
    if let cached {
      areRounded = cached.in.precision == .bf16
      // A cache has no padding, and no mask of the caller's.
      (masks.mask, masks.added, masks.valid) = (nil, nil, nil)
    }
    sinks = sinks.map { $0 + heads.lowerBound }
    firstHead = heads.lowerBound
  }

  /// What does not depend on the form.
  private mutating func takeLatent(_ work: BlockWork) {
    let (c, input) = (work.c, work.input)
    scale = Float(1 / Double(c.headSize).squareRoot())
    take(work)
    masks.causal = c.causal
    (masks.mask, masks.added, masks.valid) = (input.mask, input.addedMask, input.validMask)
    (seed, step) = (c.seed(ofLayer: work.n), input.step)
  }
}

/// Keys and values of all heads, between the product that makes them and attention: the product has them head by head, and
/// every head's key ends with the part that all of them share.
struct LatentHeads {
  private let context: ContextPointer
  private let sizes: LatentSizes
  private let tokens: Int
  private let expanded: UnsafeMutablePointer<Float>  // [T, heads (D - R + Dv)]
  private let key: UnsafeMutablePointer<Float>  // [T, heads D]
  private let value: UnsafeMutablePointer<Float>  // [T, heads Dv]
  private let down: UnsafeMutablePointer<Float>  // [T, L + R]

  /// Either the arrays or their gradients.
  init(
    _ work: BlockWork, expanded: UnsafeMutablePointer<Float>, key: UnsafeMutablePointer<Float>,
    value: UnsafeMutablePointer<Float>, down: UnsafeMutablePointer<Float>
  ) {
    (context, sizes, tokens) = (work.context, LatentSizes(work.c), work.tokens)
    (self.expanded, self.key, self.value, self.down) = (expanded, key, value, down)
  }

  /// Keys and values out of what the product made and the shared part.
  func spread() throws(Fault) { try run(backward: false) }

  /// Gradients of the product's outputs and of the shared part, which is the sum over heads in ascending order, out of those of
  /// keys and values.
  func gather() throws(Fault) { try run(backward: true) }

  private func run(backward: Bool) throws(Fault) {
    let job = LatentHeadsJob(heads: self, kernels: context.kernels, backward: backward)
    try context.measure(.attention, backward: backward) { () throws(Fault) in
      try context.run((tokens + LatentHeadsJob.run - 1) / LatentHeadsJob.run, job)
    }
  }

  private struct LatentHeadsJob: Job {
    let heads: LatentHeads
    let kernels: UnsafePointer<moei_kernels>
    let backward: Bool

    /// Tokens of one item.
    static let run = 16

    func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
      for token in item * Self.run..<min(heads.tokens, (item + 1) * Self.run) {
        if backward { heads.gather(token, kernels) } else { heads.spread(token) }
      }
    }
  }

  private func spread(_ token: Int) {
    let shared = down + (token * sizes.row + sizes.rank)
    for head in 0..<sizes.heads {
      let from = expanded + (token * sizes.expanded + head * sizes.expandedHead)
      let to = key + (token * sizes.queries + head * sizes.head)
      to.update(from: from, count: sizes.plain)
      (to + sizes.plain).update(from: shared, count: sizes.rotary)
      (value + (token * sizes.values + head * sizes.value)).update(from: from + sizes.plain, count: sizes.value)
    }
  }

  private func gather(_ token: Int, _ kernels: UnsafePointer<moei_kernels>) {
    let shared = down + (token * sizes.row + sizes.rank)
    shared.update(repeating: 0, count: sizes.rotary)
    for head in 0..<sizes.heads {
      let to = expanded + (token * sizes.expanded + head * sizes.expandedHead)
      let from = key + (token * sizes.queries + head * sizes.head)
      to.update(from: from, count: sizes.plain)
      (to + sizes.plain).update(from: value + (token * sizes.values + head * sizes.value), count: sizes.value)
      if sizes.rotary > 0 { kernels.pointee.add(Int64(sizes.rotary), from + sizes.plain, shared) }
    }
  }
}
