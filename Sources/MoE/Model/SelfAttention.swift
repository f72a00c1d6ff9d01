import CShims

// Attention of one layer between its projections:
//     q, k, v, g = x W_qkv^T + b;   o = attention(place(q), place(k), v);   y = (o . sigmoid(g)) W_o^T + b_o
// g where the model has gates of attention; `place` is in PlacedHeads.swift.

/// What forward makes and backward reads.
struct KeptAttention {
  let projected: UnsafeMutablePointer<Float>?  // [T, queries + keys + values + gates]
  let rounded: UnsafeMutablePointer<RoundedHeads>?  // [1] in its place, where backward reads nothing else of it
  let output: UnsafeMutablePointer<Float>  // [T, outputs], before the gates
  let logSums: UnsafeMutablePointer<Float>?  // [B, heads, S], for backward

  init(_ arena: inout Arena, _ work: BlockWork, forBackward: Bool) {
    let (c, tokens) = (work.c, work.tokens)
    rounded =
      forBackward && work.roundsHeads
      ? RoundedHeads.place(
        &arena, tokens: tokens, heads: c.heads, keyHeads: c.keyHeads, headSize: c.headSize, valueSize: c.valueSize)
      : nil
    projected = rounded == nil ? arena.take(Float.self, tokens, c.projected) : nil
    output = arena.take(Float.self, tokens, c.outputs)
    logSums = forBackward ? arena.take(Float.self, tokens, c.heads) : nil
  }
}

struct SelfAttentionForward {
  private let context: ContextPointer
  private let project: ProjectionForward
  private let heads: PlacedHeads
  private let attend: AttentionForward
  private let arrays: KeptAttention
  private let gate: AttentionGateForward?
  private let output: ProjectionForward
  private let cache: CachedLayer?
  private let work: BlockWork
  private var input: ModelInput { work.input }
  private var c: ModelConfiguration { work.c }

  init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptAttention, cache: CachedLayer? = nil,
    x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>
  ) {
    let input = work.input
    self.work = work
    self.cache = cache
    context = work.context
    self.arrays = arrays
    let projected = arrays.projected ?? arena.take(Float.self, work.tokens, work.c.projected)
    heads = PlacedHeads(&arena, work, projected: projected, forBackward: false)
    let gate = AttentionGateForward(&arena, work, heads, arrays)
    self.gate = gate
    // One after the other, in the same memory.
    var (first, second, third) = (arena, arena, arena)
    project = ProjectionForward(
      &first, work, .qkvWeight, .qkvBias, x: x, y: projected)
    attend = AttentionForward(
      &second,
      cache.map { AttentionCall(work, queries: input.length, cached: $0.length + input.length, in: $0) }
        ?? AttentionCall(work, areRounded: arrays.rounded != nil), in: context)
    output = ProjectionForward(
      &third, work, .outputWeight, .outputBias, x: UnsafePointer(gate?.y ?? arrays.output), y: y)
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
      try attend.run(try attentionArrays(), logSums: arrays.logSums, in: context)
    }
    try gate?.run(in: context)
    try output.run()
  }

  /// What attention reads and writes; heads are rounded before, where they are kept so.
  private func attentionArrays() throws(Fault) -> AttentionArrays {
    guard let rounded = arrays.rounded else { return AttentionArrays(heads, arrays) }
    try rounded.pointee.fill(
      query: heads.query, key: heads.key, value: heads.value, stride: work.c.projected, in: context)
    func numbers(_ rows: RoundedRows) -> UnsafePointer<Float> {
      UnsafeRawPointer(rows.row(0, 0)).assumingMemoryBound(to: Float.self)
    }
    var found = AttentionArrays(
      query: heads.query, key: numbers(rounded.pointee.key), value: numbers(rounded.pointee.value),
      output: arrays.output)
    found.rounded = UnsafePointer(rounded)
    return found
  }

  /// Sequence by sequence, since those in the cache do not stand close together; of each only its real tokens, between which
  /// the cache has no gaps.
  private func attend(to cache: CachedLayer) throws(Fault) {
    cache.append(input, keys: heads.key, values: heads.value, stride: c.projected, context.kernels)
    if input.validMask != nil { arrays.output.update(repeating: 0, count: input.tokens * c.outputs) }
    for sequence in 0..<input.sequences {
      var known = cache.known[sequence]
      try input.forEachRun(ofSequence: sequence) { (run) throws(Fault) in
        let first = sequence * input.length + run.lowerBound
        known += run.count
        var call = AttentionCall(work, queries: run.count, cached: known, in: cache)
        call.calledFrom = (sequence, run.lowerBound)
        try attend.over(call).run(
          AttentionArrays(
            query: heads.query + first * c.projected, key: cache.keys(sequence), value: cache.values(sequence),
            output: arrays.output + first * c.outputs),
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
  private let work: BlockWork
  private let dProjected: UnsafeMutablePointer<Float>  // [T, queries + keys + values + gates]
  private let gate: (again: AttentionGateForward, back: AttentionGateBackward)?

  /// dx may be dy.
  init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptAttention, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>
  ) {
    let (c, tokens) = (work.c, work.tokens)
    (context, self.work) = (work.context, work)
    dProjected = arena.take(Float.self, tokens, c.projected)
    // Where heads were rounded nothing is made again of the projections.
    heads = PlacedHeads(&arena, work, projected: arrays.projected ?? dProjected, forBackward: true)
    let dOutput = arena.take(Float.self, tokens, c.outputs)
    let again = AttentionGateForward(&arena, work, heads, arrays)
    if let again {
      gate = (again, AttentionGateBackward(work, heads, arrays, dy: dOutput, dProjected: dProjected))
    } else {
      gate = nil
    }
    var (first, second, third) = (arena, arena, arena)
    output = ProjectionBackward(
      &first, work, work[.outputWeight]!, work[.outputBias],
      x: UnsafePointer(again?.y ?? arrays.output), dy: dy, dx: dOutput)
    attend = AttentionBackward(&second, AttentionCall(work), in: context)
    gradients = AttentionGradients(
      AttentionArrays(heads, arrays), logSums: arrays.logSums!, doutput: dOutput, dquery: dProjected,
      dkey: dProjected + c.queries, dvalue: dProjected + c.queries + c.keys, dsinks: work[.sinks]?.grad)
    project = ProjectionBackward(
      &third, work, work[.qkvWeight]!, work[.qkvBias], x: x, dy: dProjected, dx: dx)
    arena.cover(first)
    arena.cover(second)
    arena.cover(third)
  }

  @inline(never) func run() throws(Fault) {
    try gate?.again.run(in: context)
    try output.run()
    try gate?.back.run(in: context)
    try heads.runAgain()
    try attend.run(gradients, of: work)
    try heads.backward(dProjected)
    try project.run()
  }
}

extension BlockWork {
  /// Whether backward reads queries, keys and values as attention multiplies them, in bfloat16, and nothing else of the projections.
  fileprivate var roundsHeads: Bool {
    !c.attentionGate && !QueryKeyNorm.isPart(of: self)
      && context.attentionPrecision(self[.outputWeight]!.precision) == .bf16
  }
}

extension AttentionCall {
  /// Attention of a layer over the tokens of one call; `areRounded`: whether its keys and values are, head by head.
  init(_ work: BlockWork, areRounded: Bool = false) {
    let (c, input) = (work.c, work.input)
    self.init(
      sequences: input.sequences, queries: input.length, keys: input.length, heads: c.heads, keyHeads: c.keyHeads,
      headSize: c.headSize,
      valueSize: c.valueSize)
    take(work)
    (queryStride, keyStride, valueStride) = (c.projected, c.projected, c.projected)
    if areRounded {
      self.areRounded = true
      (keyStride, keyHeadStride) = (c.headSize, work.tokens * c.headSize)
      (valueStride, valueHeadStride) = (c.valueSize, work.tokens * c.valueSize)
    }
    masks.causal = c.causal
    (masks.mask, masks.added, masks.valid) = (input.mask, input.addedMask, input.validMask)
    dropout = input.training ? c.attentionDropout : 0
    (seed, step) = (c.seed(ofLayer: work.n), input.step)
    firstSequence = work.model.firstSequence(input)
  }
}

extension AttentionCall {
  /// Attention of one sequence's last tokens over all that a cache has of it, these among them.
  fileprivate init(_ work: BlockWork, queries: Int, cached: Int, in cache: CachedLayer) {
    let c = work.c
    self.init(
      sequences: 1, queries: queries, keys: cached, heads: c.heads, keyHeads: c.keyHeads, headSize: c.headSize,
      valueSize: c.valueSize)
    take(work)
    queryStride = c.projected
    (keyStride, valueStride) = (c.headSize, c.valueSize)
    (keyHeadStride, valueHeadStride) = (cache.capacity * c.headSize, cache.capacity * c.valueSize)
    areRounded = cache.precision == .bf16
    masks.causal = true
  }

  /// What attention of a layer is like, whatever tokens it is over.
  mutating func take(_ work: BlockWork) {
    if let own = work.c.attentionScale { scale = own }
    (masks.window, masks.chunk) = (work.layer.window, work.layer.chunk)
    sinks = work[.sinks]?.constants
    precision = work[.outputWeight]!.precision
  }
}

extension AttentionGateForward {
  /// nil where the model has no gates.
  fileprivate init?(_ arena: inout Arena, _ work: BlockWork, _ heads: PlacedHeads, _ arrays: KeptAttention) {
    let c = work.c
    guard c.attentionGate else { return nil }
    self.init(
      kernels: work.context.kernels, tokens: work.tokens, width: c.outputs, output: arrays.output, gates: heads.gate,
      stride: c.projected, y: arena.take(Float.self, work.tokens, c.outputs))
  }
}

extension AttentionGateBackward {
  fileprivate init(
    _ work: BlockWork, _ heads: PlacedHeads, _ arrays: KeptAttention, dy: UnsafeMutablePointer<Float>,
    dProjected: UnsafeMutablePointer<Float>
  ) {
    self.init(
      kernels: work.context.kernels, tokens: work.tokens, width: work.c.outputs, output: arrays.output,
      gates: heads.gate, stride: work.c.projected, dy: dy, dGates: dProjected + (heads.gate - heads.projected))
  }
}

extension AttentionArrays {
  fileprivate init(_ heads: PlacedHeads, _ arrays: KeptAttention) {
    self.init(query: heads.query, key: heads.key, value: heads.value, output: arrays.output)
    rounded = arrays.rounded.map { UnsafePointer($0) }
  }
}
