import CShims

// The gradients of LatentAttention.swift, from the output back:
//     do = dy W_o;  dq, dk, dv of attention;  dc = [dk | dv] W_kvb;  dr = sum over heads;  both turned back
//     dx = norm'(dc) | dr  through W_kva,  and dq through W_qb, the norm and W_qa

/// Each stage is made when it is run, in the memory that was found for it when the arrays were cut: all of them together would
/// be too large for a thread's stack. Its many fields are the arrays between them.
struct LatentAttentionBackward {
  private let work: BlockWork
  private let arrays: KeptLatent
  private let x: UnsafePointer<Float>  // [T,H]
  private let dy: UnsafePointer<Float>  // [T,H]
  private let dx: UnsafeMutablePointer<Float>  // [T,H]
  private let dQuery: UnsafeMutablePointer<Float>  // [T, heads D]
  private let dKey: UnsafeMutablePointer<Float>  // [T, heads D]
  private let dValue: UnsafeMutablePointer<Float>  // [T, heads Dv]
  // Up to attention, then what is before it, in the same memory.
  private let dOutput: UnsafeMutablePointer<Float>  // [T, heads Dv]
  private let dDown: UnsafeMutablePointer<Float>  // [T, L + R]
  private let dExpanded: UnsafeMutablePointer<Float>  // [T, heads (D - R + Dv)]
  private let dQueryDown: UnsafeMutablePointer<Float>?  // [T,Q]
  private let part: UnsafeMutablePointer<Float>  // [T,H] what queries add to dx
  private let statistics: UnsafeMutablePointer<Float>  // [T,2] of one norm after the other
  private let projected: LatentProjected
  private let behind: Arena  // where attention's stages and those behind it begin
  private let before: Arena

  private var context: ContextPointer { work.context }
  private var sizes: LatentSizes { LatentSizes(work.c) }

  /// dx may be dy.
  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: KeptLatent, x: UnsafePointer<Float>, dy: UnsafePointer<Float>,
    dx: UnsafeMutablePointer<Float>
  ) {
    let (sizes, tokens) = (LatentSizes(work.c), work.tokens)
    (self.work, self.arrays, self.x, self.dy, self.dx) = (work, arrays, x, dy, dx)
    dQuery = arena.take(Float.self, tokens, sizes.queries)
    dKey = arena.take(Float.self, tokens, sizes.queries)
    dValue = arena.take(Float.self, tokens, sizes.values)
    var (behind, before) = (arena, arena)
    dOutput = behind.take(Float.self, tokens, sizes.values)
    dDown = before.take(Float.self, tokens, sizes.row)
    dExpanded = before.take(Float.self, tokens, sizes.expanded)
    dQueryDown = sizes.latent.queryRank.map { before.take(Float.self, tokens, $0) }
    part = before.take(Float.self, tokens, work.c.hidden)
    statistics = before.take(Float.self, tokens, 2)
    projected = arrays.projected(&before, work)
    (self.behind, self.before) = (behind, before)
    cover(&arena)
  }

  /// The memory of every stage.
  @inline(never) private func cover(_ arena: inout Arena) {
    arena.cover(from: behind) { _ = output(&$0) }
    arena.cover(from: behind) { _ = attention(&$0) }
    arena.cover(from: before) { _ = turns(&$0) }
    arena.cover(from: before) { _ = expand(&$0) }
    arena.cover(from: before) { _ = down(&$0) }
    arena.cover(from: before) { _ = queryUp(&$0) }
    arena.cover(from: before) { _ = queryDown(&$0) }
  }

  @inline(never) func run() throws(Fault) {
    try runOutput()
    try runAttention()
    try LatentHeads(work, expanded: dExpanded, key: dKey, value: dValue, down: dDown).gather()
    try runTurns()
    try runExpand()
    try runDown()
    try runQueryUp()
    try runQueryDown()
    try work.add(part, to: dx).run(in: context)
  }

  // MARK: stages

  @inline(never) private func output(_ arena: inout Arena) -> ProjectionBackward {
    ProjectionBackward(
      &arena, work, work[.outputWeight]!, work[.outputBias], x: arrays.output, dy: dy,
      dx: dOutput)
  }

  @inline(never) private func runOutput() throws(Fault) {
    var own = behind
    try output(&own).run()
  }

  @inline(never) private func attention(_ arena: inout Arena) -> AttentionBackward {
    AttentionBackward(&arena, AttentionCall(latent: work), in: context)
  }

  @inline(never) private func runAttention() throws(Fault) {
    var own = behind
    let gradients = AttentionGradients(
      arrays.attention, logSums: arrays.logSums!, doutput: dOutput, dquery: dQuery, dkey: dKey, dvalue: dValue,
      dsinks: work[.sinks]?.grad)
    try attention(&own).run(gradients, of: work)
  }

  @inline(never) private func turns(_ arena: inout Arena) -> LatentTurns {
    LatentTurns(&arena, work, forBackward: true)
  }

  @inline(never) private func runTurns() throws(Fault) {
    var own = before
    try turns(&own).runBack(query: dQuery, down: dDown)
  }

  @inline(never) private func expand(_ arena: inout Arena) -> ProjectionBackward {
    ProjectionBackward(
      &arena, work, work[.latentUpWeight]!, nil, x: UnsafePointer(projected.latent),
      dy: dExpanded, dx: dDown, dxStride: sizes.row)
  }

  /// The latent's gradient, in dDown.
  @inline(never) private func runExpand() throws(Fault) {
    try work.latentNorm(projected, statistics).run(in: context)
    var own = before
    try expand(&own).run()
    try normBackward(.latentNorm, projected.down, RowPlaces(width: sizes.rank, stride: sizes.row), dDown)
  }

  @inline(never) private func down(_ arena: inout Arena) -> ProjectionBackward {
    ProjectionBackward(
      &arena, work, work[.latentDownWeight]!, work[.latentDownBias], x: x,
      dy: UnsafePointer(dDown), dx: dx)
  }

  /// dx is overwritten.
  @inline(never) private func runDown() throws(Fault) {
    var own = before
    try down(&own).run()
  }

  @inline(never) private func queryUp(_ arena: inout Arena) -> ProjectionBackward {
    ProjectionBackward(
      &arena, work, work[.queryUpWeight]!, nil,
      x: projected.queryNormed.map { UnsafePointer($0) } ?? x, dy: UnsafePointer(dQuery), dx: dQueryDown ?? part)
  }

  @inline(never) private func runQueryUp() throws(Fault) {
    if dQueryDown != nil { try work.queryDownNorm(projected, statistics).run(in: context) }
    var own = before
    try queryUp(&own).run()
  }

  /// nil where queries come from the hidden state.
  @inline(never) private func queryDown(_ arena: inout Arena) -> ProjectionBackward? {
    guard let dQueryDown else { return nil }
    return ProjectionBackward(
      &arena, work, work[.queryDownWeight]!, work[.queryDownBias], x: x,
      dy: UnsafePointer(dQueryDown), dx: part)
  }

  @inline(never) private func runQueryDown() throws(Fault) {
    guard let dQueryDown, let down = projected.queryDown else { return }
    try normBackward(.queryDownNorm, down, RowPlaces(width: sizes.latent.queryRank!), dQueryDown)
    var own = before
    try queryDown(&own)?.run()
  }

  /// The gradient with respect to a normed row becomes that with respect to the row, in place and in the same places.
  @inline(never) private func normBackward(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, _ places: RowPlaces,
    _ gradient: UnsafeMutablePointer<Float>
  ) throws(Fault) {
    try work.normBackward(
      Norm(.rms, hidden: places.width, epsilon: work.c.latent!.epsilon), PlacedRows(x, places), rows: work.tokens,
      work[role], work[role]!.floats, statistics, gradient)
  }
}
