import CShims

/// Queries and keys as attention reads them: normed, turned by their positions, normed, sharpened, each where the model and
/// the layer have it. What is linear happens in place; norms leave what they read as it is, since their backward wants it.
struct PlacedHeads {
  let projected: UnsafeMutablePointer<Float>  // [T, queries + keys + values + gates]
  private let work: BlockWork
  private var c: ModelConfiguration { work.c }
  private let rotation: ModelRotation?
  private let norm: QueryKeyNorm?
  private let placed: UnsafeMutablePointer<Float>?  // [T, projected] with norms; neither values nor gates in it

  init(
    _ arena: inout Arena, _ work: BlockWork, projected: UnsafeMutablePointer<Float>, forBackward: Bool
  ) {
    self.work = work
    self.projected = projected
    norm = QueryKeyNorm(&arena, work, forBackward: forBackward)
    placed = norm == nil ? nil : arena.take(Float.self, work.tokens, work.c.projected)
    // Queries and keys stand side by side.
    rotation = ModelRotation(
      &arena, work,
      TurningHeads(count: work.c.heads + work.c.keyHeads, size: work.c.headSize, stride: work.c.projected),
      forBackward: forBackward)
  }

  var query: UnsafeMutablePointer<Float> { placed ?? projected }
  var key: UnsafeMutablePointer<Float> { query + c.queries }
  var value: UnsafeMutablePointer<Float> { projected + c.queries + c.keys }
  var gate: UnsafeMutablePointer<Float> { value + c.values }

  /// From the projections as they are.
  func run() throws(Fault) {
    if c.queryKeyNorm.isAfterRotation {
      try rotation?.run(projected)
      try norm?.run(projected, to: query)
    } else {
      try norm?.run(projected, to: query)
      try rotation?.run(query)
    }
    try sharpen(query)
  }

  /// From projections that `run` has been over: what it did in place is there, and norms have been lost.
  func runAgain() throws(Fault) {
    guard let norm else { return }
    try norm.run(projected, to: query)
    if !c.queryKeyNorm.isAfterRotation { try rotation?.run(query) }
    try sharpen(query)
  }

  private func sharpen(_ rows: UnsafeMutablePointer<Float>, backward: Bool = false) throws(Fault) {
    guard let temperature = c.temperature, work.layer.rotary == nil else { return }
    try TemperatureJob(
      temperature: temperature, kernels: work.context.kernels, positions: work.input.positions,
      sequenceLength: work.input.length, tokens: work.tokens, width: c.queries, stride: c.projected, rows: rows
    ).run(in: work.context, backward: backward)
  }

  // MARK: backward

  /// Gradients of what attention read become those of the projections, in place; after `runAgain`.
  func backward(_ gradients: UnsafeMutablePointer<Float>) throws(Fault) {
    try sharpen(gradients, backward: true)
    if c.queryKeyNorm.isAfterRotation {
      try norm?.backward(projected, gradients)
      try rotation?.runBack(gradients)
    } else {
      try rotation?.runBack(gradients)
      try norm?.backward(projected, gradients)
    }
  }
}
