import CShims

/// Queries and keys as attention reads them: each head normed by itself (Qwen3), then turned by its position. Without head
/// norms this happens in place; with them the projections stay as they are, since the norms' backward wants them.
struct PlacedHeads {
  let projected: UnsafeMutablePointer<Float>  // [T, queries + 2 keys]
  private let c: ModelConfiguration
  private let context: ContextPointer
  private let parameters: ModelParameters
  private let n: Int
  private let tokens: Int
  private let rotation: Rotation?
  private let rotationBack: Rotation?
  private let placed: UnsafeMutablePointer<Float>?  // [T, queries + 2 keys], laid out alike; no values in it
  private let queryStatistics: UnsafeMutablePointer<Float>?  // [T, heads, 2]
  private let keyStatistics: UnsafeMutablePointer<Float>?  // [T, key heads, 2]

  init(
    _ arena: inout Arena, _ work: BlockWork, projected: UnsafeMutablePointer<Float>, forBackward: Bool
  ) {
    let (model, input) = (work.model, work.input)
    c = work.c
    context = work.context
    parameters = model.parameters
    n = work.n
    tokens = work.tokens
    self.projected = projected
    placed = c.headNorm ? arena.take(Float.self, tokens, c.projected) : nil
    let statistics = c.headNorm && forBackward
    queryStatistics = statistics ? arena.take(Float.self, tokens, 2 * c.heads) : nil
    keyStatistics = statistics ? arena.take(Float.self, tokens, 2 * c.keyHeads) : nil
    // Queries and keys stand side by side.
    guard let table = model.rotaryTable else {
      (rotation, rotationBack) = (nil, nil)
      return
    }
    var rotary = Rotary(
      heads: c.heads + c.keyHeads, headSize: c.headSize, stride: c.projected, positions: input.positions,
      sequenceLength: input.length, firstPosition: 0, inverse: false)
    rotation = Rotation(&arena, rotary, table, in: model.context)
    rotary.inverse = true
    rotationBack = forBackward ? Rotation(&arena, rotary, table, in: model.context) : nil
  }

  var query: UnsafeMutablePointer<Float> { placed ?? projected }
  var key: UnsafeMutablePointer<Float> { query + c.queries }
  var value: UnsafeMutablePointer<Float> { projected + c.queries + c.keys }

  func run() throws(Fault) {
    if placed != nil {
      try norm(.queryNorm, projected, to: query, heads: c.heads, queryStatistics)
      try norm(.keyNorm, projected + c.queries, to: key, heads: c.keyHeads, keyStatistics)
    }
    try rotation?.run(query, tokens: tokens, in: context)
  }

  private func norm(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>, heads: Int,
    _ statistics: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    let places = RowPlaces(width: c.headSize, perToken: heads, stride: c.projected)
    try NormForward(
      Norm(.rms, hidden: c.headSize, epsilon: c.epsilon), context: context, rows: tokens * heads,
      x: PlacedRows(x, places), weight: parameters[n, role]!.floats, bias: nil, y: y, yPlaces: places,
      statistics: statistics
    ).run(in: context)
  }

  // MARK: backward

  /// Gradients of what attention read become those of the projections, in place; after `run`.
  func backward(_ gradients: UnsafeMutablePointer<Float>) throws(Fault) {
    let (dQuery, dKey) = (gradients, gradients + c.queries)
    try rotationBack?.run(dQuery, tokens: tokens, in: context)
    if placed == nil { return }
    try normBackward(.queryNorm, projected, dQuery, heads: c.heads, queryStatistics!)
    try normBackward(.keyNorm, projected + c.queries, dKey, heads: c.keyHeads, keyStatistics!)
  }

  private func normBackward(
    _ role: ModelParameters.LayerRole, _ x: UnsafePointer<Float>, _ gradients: UnsafeMutablePointer<Float>,
    heads: Int, _ statistics: UnsafePointer<Float>
  ) throws(Fault) {
    let places = RowPlaces(width: c.headSize, perToken: heads, stride: c.projected)
    let weight = parameters[n, role]!
    try NormBackward(
      Norm(.rms, hidden: c.headSize, epsilon: c.epsilon), context: context, rows: tokens * heads,
      x: PlacedRows(x, places), weight: weight.floats, statistics: statistics, dy: PlacedRows(gradients, places),
      dx: gradients, dWeight: weight.grad, dBias: nil
    ).run(in: context)
  }
}
