import CShims

// The gradients of LatentAttention.swift, from the output back:
//     do = dy W_o;  dq, dk, dv of attention;  dc = [dk | dv] W_kvb;  dr = sum over heads;  both turned back
//     dx = norm'(dc) | dr  through W_kva,  and dq through W_qb, the norm and W_qa

struct LatentAttentionBackward {
  private let context: ContextPointer
  private let output: ProjectionBackward
  private let attend: AttentionBackward
  private let gradients: AttentionGradients
  private let heads: LatentHeads
  private let turns: LatentTurns
  private let latent: LatentBackward
  private let query: QueryBackward
  private let dQuery: UnsafeMutablePointer<Float>  // [T, heads D]
  private let dDown: UnsafeMutablePointer<Float>  // [T, L + R]

  /// dx may be dy.
  init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLatent, x: UnsafePointer<Float>, dy: UnsafePointer<Float>,
    dx: UnsafeMutablePointer<Float>
  ) {
    let (sizes, tokens) = (LatentSizes(work.c), work.tokens)
    context = work.context
    dQuery = arena.take(Float.self, tokens, sizes.queries)
    let dKey = arena.take(Float.self, tokens, sizes.queries)
    let dValue = arena.take(Float.self, tokens, sizes.values)
    // Up to attention, then what is before it, in the same memory.
    var (behind, before) = (arena, arena)
    let dOutput = behind.take(Float.self, tokens, sizes.values)
    var (first, second) = (behind, behind)
    output = ProjectionBackward(
      &first, work[.outputWeight]!, work[.outputBias], context: work.context, rows: tokens, x: arrays.output, dy: dy,
      dx: dOutput)
    attend = AttentionBackward(&second, AttentionCall(latent: work), in: work.context)
    gradients = AttentionGradients(
      arrays.attention, logSums: arrays.logSums!, doutput: dOutput, dquery: dQuery, dkey: dKey, dvalue: dValue,
      dsinks: work[.sinks]?.grad)
    arena.cover(first)
    arena.cover(second)

    dDown = before.take(Float.self, tokens, sizes.row)
    let dExpanded = before.take(Float.self, tokens, sizes.expanded)
    let projected = arrays.projected(&before, work)
    heads = LatentHeads(work, expanded: dExpanded, key: dKey, value: dValue, down: dDown)
    turns = LatentTurns(&before, work, forBackward: true)
    var (third, fourth) = (before, before)
    latent = LatentBackward(&third, work, projected, x: x, dExpanded: dExpanded, dDown: dDown, dx: dx)
    query = QueryBackward(&fourth, work, projected, x: x, dQuery: dQuery, dx: dx)
    arena.cover(third)
    arena.cover(fourth)
  }

  @inline(never) func run() throws(Fault) {
    try output.run()
    try attend.run(gradients, in: context)
    try heads.gather()
    try turns.runBack(query: dQuery, down: dDown)
    try latent.run()
    try query.run()
  }
}

/// From keys and values to x: dx is overwritten.
private struct LatentBackward {
  private let work: BlockWork
  private let projected: LatentProjected
  private let statistics: UnsafeMutablePointer<Float>  // [T,2]
  private let expand: ProjectionBackward
  private let down: ProjectionBackward
  private let dDown: UnsafeMutablePointer<Float>  // [T, L + R]

  init(
    _ arena: inout Arena, _ work: BlockWork, _ projected: LatentProjected, x: UnsafePointer<Float>,
    dExpanded: UnsafePointer<Float>, dDown: UnsafeMutablePointer<Float>, dx: UnsafeMutablePointer<Float>
  ) {
    (self.work, self.projected, self.dDown) = (work, projected, dDown)
    statistics = arena.take(Float.self, work.tokens, 2)
    var (first, second) = (arena, arena)
    expand = ProjectionBackward(
      &first, work[.latentUpWeight]!, nil, context: work.context, rows: work.tokens,
      x: UnsafePointer(projected.latent), dy: dExpanded, dx: dDown, dxStride: LatentSizes(work.c).row)
    down = ProjectionBackward(
      &second, work[.latentDownWeight]!, work[.latentDownBias], context: work.context, rows: work.tokens, x: x,
      dy: UnsafePointer(dDown), dx: dx)
    arena.cover(first)
    arena.cover(second)
  }

  func run() throws(Fault) {
    try work.latentNorm(projected, statistics).run(in: work.context)
    try expand.run()
    let sizes = LatentSizes(work.c)
    try work.normBackward(
      .latentNorm, projected.down, RowPlaces(width: sizes.rank, stride: sizes.row), statistics, dDown
    ).run(in: work.context)
    try down.run()
  }
}

/// From queries to x: dx is added to.
private struct QueryBackward {
  private let work: BlockWork
  private let projected: LatentProjected
  private let statistics: UnsafeMutablePointer<Float>?  // [T,2]
  private let dQueryDown: UnsafeMutablePointer<Float>?  // [T,Q]
  private let up: ProjectionBackward
  private let down: ProjectionBackward?
  private let part: UnsafeMutablePointer<Float>  // [T,H]
  private let dx: UnsafeMutablePointer<Float>

  init(
    _ arena: inout Arena, _ work: BlockWork, _ projected: LatentProjected, x: UnsafePointer<Float>,
    dQuery: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>
  ) {
    (self.work, self.projected, self.dx) = (work, projected, dx)
    let rank = work.c.latent!.queryRank
    statistics = rank.map { _ in arena.take(Float.self, work.tokens, 2) }
    let dQueryDown = rank.map { arena.take(Float.self, work.tokens, $0) }
    self.dQueryDown = dQueryDown
    part = arena.take(Float.self, work.tokens, work.c.hidden)
    var (first, second) = (arena, arena)
    up = ProjectionBackward(
      &first, work[.queryUpWeight]!, nil, context: work.context, rows: work.tokens,
      x: projected.queryNormed.map { UnsafePointer($0) } ?? x, dy: dQuery, dx: dQueryDown ?? part)
    let part = self.part
    down = dQueryDown.map {
      ProjectionBackward(
        &second, work[.queryDownWeight]!, work[.queryDownBias], context: work.context, rows: work.tokens, x: x,
        dy: UnsafePointer($0), dx: part)
    }
    arena.cover(first)
    arena.cover(second)
  }

  func run() throws(Fault) {
    if let statistics { try work.queryDownNorm(projected, statistics).run(in: work.context) }
    try up.run()
    if let down, let statistics, let dQueryDown {
      try work.normBackward(
        .queryDownNorm, projected.queryDown!, RowPlaces(width: work.c.latent!.queryRank!), statistics, dQueryDown
      ).run(in: work.context)
      try down.run()
    }
    try work.add(part, to: dx).run(in: work.context)
  }
}

extension BlockWork {
  /// The gradient with respect to a normed row becomes that with respect to the row, in place and in the same places.
  fileprivate func normBackward(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, _ places: RowPlaces,
    _ statistics: UnsafePointer<Float>, _ gradient: UnsafeMutablePointer<Float>
  ) -> NormBackward {
    NormBackward(
      Norm(.rms, hidden: places.width, epsilon: c.latent!.epsilon), context: context, rows: tokens,
      x: PlacedRows(x, places),
      weight: self[role]!.floats, statistics: statistics, dy: PlacedRows(gradient, places), dx: gradient,
      dWeight: self[role]!.grad, dBias: nil)
  }
}
