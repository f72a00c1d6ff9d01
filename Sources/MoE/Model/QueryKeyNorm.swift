import CShims

/// RMS norms of queries and keys [QK norm 2023]: of each head by itself, or of all heads together.
struct QueryKeyNorm {
  private let work: BlockWork
  private var c: ModelConfiguration { work.c }
  private let ones: UnsafeMutablePointer<Float>?  // [D] in place of weights, where there are none
  private let queryStatistics: UnsafeMutablePointer<Float>?  // [T, heads or 1, 2], for backward
  private let keyStatistics: UnsafeMutablePointer<Float>?  // [T, key heads or 1, 2]

  /// nil where layer n has none.
  init?(_ arena: inout Arena, _ work: BlockWork, forBackward: Bool) {
    guard Self.isPart(of: work) else { return nil }
    let c = work.c
    self.work = work
    ones = c.queryKeyNorm.hasWeights ? nil : arena.take(Float.self, c.headSize)
    let (query, key) = (Self.places(c, heads: c.heads), Self.places(c, heads: c.keyHeads))
    queryStatistics = forBackward ? arena.take(Float.self, work.tokens, 2 * query.perToken) : nil
    keyStatistics = forBackward ? arena.take(Float.self, work.tokens, 2 * key.perToken) : nil
  }

  /// Whether layer n has them.
  static func isPart(of work: BlockWork) -> Bool {
    work.c.queryKeyNorm != .none && (work.c.queryKeyNorm != .plain || work.layer.rotary != nil)
  }

  private static func places(_ c: ModelConfiguration, heads: Int) -> RowPlaces {
    c.queryKeyNorm == .whole
      ? RowPlaces(width: heads * c.headSize, stride: c.projected)
      : RowPlaces(width: c.headSize, perToken: heads, stride: c.projected)
  }

  private func norm(_ places: RowPlaces) -> Norm { Norm(.rms, hidden: places.width, epsilon: c.epsilon) }

  private func weight(_ role: ModelParameters.LayerRole) -> UnsafePointer<Float> {
    ones.map { UnsafePointer($0) } ?? work[role]!.constants
  }

  /// From rows [T, projected] to rows laid out alike, which may be the same.
  func run(_ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>) throws(Fault) {
    ones?.update(repeating: 1, count: c.headSize)
    try run(.queryNorm, x, to: y, heads: c.heads, queryStatistics)
    try run(.keyNorm, x + c.queries, to: y + c.queries, heads: c.keyHeads, keyStatistics)
  }

  private func run(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>, heads: Int,
    _ statistics: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    let places = Self.places(c, heads: heads)
    try NormForward(
      norm(places), context: work.context, rows: work.tokens * places.perToken, x: PlacedRows(x, places),
      weight: weight(role), bias: nil, y: y, yPlaces: places, statistics: statistics
    ).run(in: work.context)
  }

  // MARK: backward

  /// Gradients with respect to what `run` wrote become those with respect to x, in place; after `run`.
  func backward(_ x: UnsafePointer<Float>, _ gradients: UnsafeMutablePointer<Float>) throws(Fault) {
    try backward(.queryNorm, x, gradients, heads: c.heads, queryStatistics!)
    try backward(.keyNorm, x + c.queries, gradients + c.queries, heads: c.keyHeads, keyStatistics!)
  }

  private func backward(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, _ gradients: UnsafeMutablePointer<Float>,
    heads: Int, _ statistics: UnsafePointer<Float>
  ) throws(Fault) {
    let places = Self.places(c, heads: heads)
    try work.normBackward(
      norm(places), PlacedRows(x, places), rows: work.tokens * places.perToken, work[role], weight(role), statistics,
      gradients)
  }
}
