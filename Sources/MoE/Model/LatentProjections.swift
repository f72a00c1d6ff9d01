import CShims

// What both forms of latent attention begin with:
//     q = norm(x W_qa^T + b) W_qb^T   or  x W_qb^T, the last R of each head turned
//     c | r = x W_kva^T + b;  c = norm(c);  r turned

/// Where it goes.
struct LatentProjected {
  let queryDown: UnsafeMutablePointer<Float>?  // [T,Q] where queries come from so many numbers
  let queryNormed: UnsafeMutablePointer<Float>?  // [T,Q]; may be queryDown
  let query: UnsafeMutablePointer<Float>  // [T, heads D]
  let down: UnsafeMutablePointer<Float>  // [T, L + R] as projected, r turned in its place
  let latent: UnsafeMutablePointer<Float>  // normed c, in rows of `latentPlaces`; may be down
  let latentPlaces: RowPlaces
}

/// Each stage is made when it is run (see LatentAttentionBackward).
struct LatentProjections {
  private let work: BlockWork
  private let arrays: LatentProjected
  private let x: UnsafePointer<Float>  // [T,H]
  private let start: Arena  // where the stages begin

  @inline(never) init(
    _ arena: inout Arena, _ work: BlockWork, _ arrays: LatentProjected, x: UnsafePointer<Float>
  ) {
    (self.work, self.arrays, self.x, start) = (work, arrays, x, arena)
    arena.cover(from: start) { _ = queryDown(&$0) }
    arena.cover(from: start) { _ = query(&$0) }
    arena.cover(from: start) { _ = down(&$0) }
    arena.cover(from: start) { _ = turns(&$0) }
  }

  @inline(never) func run() throws(Fault) {
    try runQueryDown()
    try runQuery()
    try runDown()
    try work.latentNorm(arrays).run(in: work.context)
    try runTurns()
  }

  // MARK: stages

  /// nil where queries come from the hidden state.
  @inline(never) private func queryDown(_ arena: inout Arena) -> ProjectionForward? {
    guard let y = arrays.queryDown else { return nil }
    return ProjectionForward(
      &arena, work, .queryDownWeight, .queryDownBias, x: x, y: y)
  }

  @inline(never) private func runQueryDown() throws(Fault) {
    if arrays.queryDown == nil { return }
    var own = start
    try queryDown(&own)?.run()
    try work.queryDownNorm(arrays).run(in: work.context)
  }

  @inline(never) private func query(_ arena: inout Arena) -> ProjectionForward {
    ProjectionForward(
      &arena, work, .queryUpWeight, nil, x: arrays.queryNormed.map { UnsafePointer($0) } ?? x, y: arrays.query)
  }

  @inline(never) private func runQuery() throws(Fault) {
    var own = start
    try query(&own).run()
  }

  @inline(never) private func down(_ arena: inout Arena) -> ProjectionForward {
    ProjectionForward(
      &arena, work, .latentDownWeight, .latentDownBias, x: x, y: arrays.down)
  }

  @inline(never) private func runDown() throws(Fault) {
    var own = start
    try down(&own).run()
  }

  @inline(never) private func turns(_ arena: inout Arena) -> LatentTurns {
    LatentTurns(&arena, work, forBackward: false)
  }

  @inline(never) private func runTurns() throws(Fault) {
    var own = start
    try turns(&own).run(query: arrays.query, down: arrays.down)
  }
}

extension BlockWork {
  func queryDownNorm(
    _ arrays: LatentProjected, _ statistics: UnsafeMutablePointer<Float>? = nil
  ) -> NormForward {
    let places = RowPlaces(width: c.latent!.queryRank!)
    return norm(.queryDownNorm, arrays.queryDown!, places, to: arrays.queryNormed!, places, statistics)
  }

  func latentNorm(_ arrays: LatentProjected, _ statistics: UnsafeMutablePointer<Float>? = nil) -> NormForward {
    norm(
      .latentNorm, arrays.down, RowPlaces(width: c.latent!.rank, stride: c.latent!.row), to: arrays.latent,
      arrays.latentPlaces, statistics)
  }

  private func norm(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, _ places: RowPlaces,
    to y: UnsafeMutablePointer<Float>, _ yPlaces: RowPlaces, _ statistics: UnsafeMutablePointer<Float>?
  ) -> NormForward {
    NormForward(
      Norm(.rms, hidden: places.width, epsilon: c.latent!.epsilon), context: context, rows: tokens,
      x: PlacedRows(x, places),
      weight: self[role]!.floats, bias: nil, y: y, yPlaces: yPlaces, statistics: statistics)
  }
}

/// The turns of the last R numbers of each head's query, and of the key part that all heads share.
struct LatentTurns {
  private let sizes: LatentSizes
  private let query: ModelRotation?
  private let key: ModelRotation?

  init(_ arena: inout Arena, _ work: BlockWork, forBackward: Bool) {
    sizes = LatentSizes(work.c)
    query = ModelRotation(
      &arena, work, TurningHeads(count: sizes.heads, size: sizes.head, stride: sizes.queries),
      forBackward: forBackward)
    key = ModelRotation(
      &arena, work, TurningHeads(count: 1, size: sizes.rotary, stride: sizes.row), forBackward: forBackward)
  }

  /// `query` [T, heads D] and `down` [T, L + R], in place.
  func run(query rows: UnsafeMutablePointer<Float>, down: UnsafeMutablePointer<Float>) throws(Fault) {
    try query?.run(rows + sizes.plain)
    try key?.run(down + sizes.rank)
  }

  /// Their gradients.
  func runBack(query rows: UnsafeMutablePointer<Float>, down: UnsafeMutablePointer<Float>) throws(Fault) {
    try query?.runBack(rows + sizes.plain)
    try key?.runBack(down + sizes.rank)
  }
}
