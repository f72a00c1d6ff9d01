import CShims

// Attention of one layer between its projections:
//     q, k, v = x W_qkv^T + b;   o = attention(turn(norm(q)), turn(norm(k)), v);   y = o W_o^T + b_o

/// What forward makes and backward reads.
struct KeptAttention {
  let projected: UnsafeMutablePointer<Float>  // [T, queries + 2 keys]
  let output: UnsafeMutablePointer<Float>  // [T, queries]
  let logSums: UnsafeMutablePointer<Float>?  // [B, heads, S], for backward

  init(_ arena: inout Arena, _ c: ModelConfiguration, _ input: ModelInput, forBackward: Bool) {
    projected = arena.take(Float.self, input.tokens, c.projected)
    output = arena.take(Float.self, input.tokens, c.queries)
    logSums = forBackward ? arena.take(Float.self, input.tokens, c.heads) : nil
  }
}

struct SelfAttentionForward {
  private let context: ContextPointer
  private let project: ProjectionForward
  private let heads: PlacedHeads
  private let attend: AttentionForward
  private let arrays: KeptAttention
  private let output: ProjectionForward
  private let cache: CachedLayer?
  private let input: ModelInput
  private let c: ModelConfiguration

  init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptAttention, cache: CachedLayer? = nil,
    x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    let (c, input) = (work.c, work.input)
    self.c = c
    self.cache = cache
    self.input = input
    context = work.context
    self.arrays = arrays
    heads = PlacedHeads(&arena, work, projected: arrays.projected, forBackward: false)
    // One after the other, in the same memory.
    var (first, second, third) = (arena, arena, arena)
    project = ProjectionForward(
      &first, work[.qkvWeight]!, work[.qkvBias], context: context, rows: input.tokens, x: x, y: arrays.projected)
    attend = AttentionForward(
      &second,
      cache.map { AttentionCall(c, queries: input.length, cached: $0.length + input.length) }
        ?? AttentionCall(work), in: context)
    output = ProjectionForward(
      &third, work[.outputWeight]!, work[.outputBias], context: context, rows: input.tokens, x: arrays.output, y: y)
    arena.cover(first)
    arena.cover(second)
    arena.cover(third)
  }

  @inline(never) func run() throws(Fault) {
    try project.run()
    try heads.run()
    if let cache {
      try attend(to: cache)
    } else {
      try attend.run(AttentionArrays(heads, arrays), logSums: arrays.logSums, in: context)
    }
    try output.run()
  }

  /// Sequence by sequence, since those in the cache do not stand close together; of each only its real tokens, between which
  /// the cache has no gaps.
  private func attend(to cache: CachedLayer) throws(Fault) {
    cache.append(heads, input, stride: c.projected)
    if input.validMask != nil { arrays.output.update(repeating: 0, count: input.tokens * c.queries) }
    for sequence in 0..<input.sequences {
      var known = cache.known[sequence]
      try input.forEachRun(ofSequence: sequence) { (run) throws(Fault) in
        let first = sequence * input.length + run.lowerBound
        known += run.count
        try attend.over(AttentionCall(c, queries: run.count, cached: known)).run(
          AttentionArrays(
            query: heads.query + first * c.projected, key: cache.keys + cache.place(sequence, 0),
            value: cache.values + cache.place(sequence, 0), output: arrays.output + first * c.queries),
          logSums: nil, in: context)
      }
    }
  }
}

// MARK: backward

struct SelfAttentionBackward {
  private let context: ContextPointer
  private let output: ProjectionBackward
  private let heads: PlacedHeads
  private let attend: AttentionBackward
  private let gradients: AttentionGradients
  private let project: ProjectionBackward
  private let dProjected: UnsafeMutablePointer<Float>  // [T, queries + 2 keys]
  private let replaces: Bool

  /// dx may be dy.
  init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptAttention, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>
  ) {
    let (c, tokens) = (work.c, work.tokens)
    context = work.context
    replaces = c.headNorm
    heads = PlacedHeads(&arena, work, projected: arrays.projected, forBackward: true)
    dProjected = arena.take(Float.self, tokens, c.projected)
    let dOutput = arena.take(Float.self, tokens, c.queries)
    var (first, second, third) = (arena, arena, arena)
    output = ProjectionBackward(
      &first, work[.outputWeight]!, work[.outputBias], context: context, rows: tokens, x: arrays.output, dy: dy,
      dx: dOutput)
    attend = AttentionBackward(&second, AttentionCall(work), in: context)
    gradients = AttentionGradients(
      AttentionArrays(heads, arrays), logSums: arrays.logSums!, doutput: dOutput, dquery: dProjected,
      dkey: dProjected + c.queries, dvalue: dProjected + c.queries + c.keys)
    project = ProjectionBackward(
      &third, work[.qkvWeight]!, work[.qkvBias], context: context, rows: tokens, x: x, dy: dProjected, dx: dx)
    arena.cover(first)
    arena.cover(second)
    arena.cover(third)
  }

  @inline(never) func run() throws(Fault) {
    try output.run()
    if replaces { try heads.run() }  // from the projections, which were kept as they were
    try attend.run(gradients, in: context)
    try heads.backward(dProjected)
    try project.run()
  }
}

extension AttentionCall {
  /// Attention of a layer over the tokens of one call.
  init(_ work: BlockWork) {
    let (c, input) = (work.c, work.input)
    self.init(
      sequences: input.sequences, queries: input.length, keys: input.length, heads: c.heads, keyHeads: c.keyHeads,
      headSize: c.headSize)
    (queryStride, keyStride, valueStride) = (c.projected, c.projected, c.projected)
    masks.causal = c.causal
    (masks.mask, masks.added, masks.valid) = (input.mask, input.addedMask, input.validMask)
    dropout = input.training ? c.attentionDropout : 0
    (seed, step) = (c.seed(ofLayer: work.n), input.step)
  }
}

extension AttentionCall {
  /// Attention of one sequence's last tokens over all that a cache has of it, these among them.
  fileprivate init(_ c: ModelConfiguration, queries: Int, cached: Int) {
    self.init(
      sequences: 1, queries: queries, keys: cached, heads: c.heads, keyHeads: c.keyHeads, headSize: c.headSize)
    queryStride = c.projected
    masks.causal = true
  }
}

extension AttentionArrays {
  fileprivate init(_ heads: PlacedHeads, _ arrays: KeptAttention) {
    self.init(query: heads.query, key: heads.key, value: heads.value, output: arrays.output)
  }
}
