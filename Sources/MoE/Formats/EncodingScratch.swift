/// What a search for the best scales of a panel works with: an array for each of its sums, which stay apart since the search goes
/// over all of them at every share that is tried.
struct WeightedScratch {
  let importance: UnsafeMutablePointer<Float>  // [depth] of an error of each input's weights
  /// [depth, depth] by which later weights make up for errors of earlier ones, see ErrorFactor; nil where that is not known.
  var factor: UnsafePointer<Float>?
  let deviations: UnsafeMutablePointer<Float>  // [depth, 32] of the weights before, w - q
  let column: UnsafeMutablePointer<Float>  // [depth, 32] of the factor
  // Of one block:
  let own: UnsafeMutablePointer<Float>  // [inputs, 32] the weights
  let rows: UnsafeMutablePointer<Float>  // [32, inputs] what is encoded: these, or what makes up for errors
  let turned: UnsafeMutablePointer<Float>  // [inputs, 32] the same
  let clipped: UnsafeMutablePointer<Float>  // [32, inputs] a candidate
  let decoded: UnsafeMutablePointer<Float>  // [inputs, 32] what becomes of it
  let block: UnsafeMutableRawPointer
  // Of each scale, then of each row:
  let limits: UnsafeMutablePointer<Float>  // [scales, 32] the largest magnitude
  let errors: UnsafeMutablePointer<Float>  // [scales, 32] of the candidate
  let least: UnsafeMutablePointer<Float>  // [scales, 32]
  let best: UnsafeMutablePointer<Float>  // [scales, 32] the share that gave it
  let rowErrors: UnsafeMutablePointer<Float>  // [32]
  let rowLeast: UnsafeMutablePointer<Float>  // [32]
  let rowBest: UnsafeMutablePointer<Float>  // [32] the share for all scales of a row

  // Of any code:
  static var mostInputs: Int { 256 }
  static var mostScales: Int { 16 }
  static var mostBytes: Int { 16384 }

  init(_ arena: inout Arena, depth: Int) {
    let elements = Self.mostInputs * chunkWidth
    importance = arena.take(Float.self, depth)
    deviations = arena.take(Float.self, padded(depth), chunkWidth)
    column = arena.take(Float.self, padded(depth), chunkWidth)
    own = arena.take(Float.self, elements)
    rows = arena.take(Float.self, elements)
    turned = arena.take(Float.self, elements)
    clipped = arena.take(Float.self, elements)
    decoded = arena.take(Float.self, elements)
    block = UnsafeMutableRawPointer(arena.take(UInt8.self, Self.mostBytes))
    limits = arena.take(Float.self, Self.mostScales, chunkWidth)
    errors = arena.take(Float.self, Self.mostScales, chunkWidth)
    least = arena.take(Float.self, Self.mostScales, chunkWidth)
    best = arena.take(Float.self, Self.mostScales, chunkWidth)
    rowErrors = arena.take(Float.self, chunkWidth)
    rowLeast = arena.take(Float.self, chunkWidth)
    rowBest = arena.take(Float.self, chunkWidth)
  }
}
