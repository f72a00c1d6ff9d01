/// What a search for the best scales of a panel works with.
struct WeightedScratch {
  let importance: UnsafeMutablePointer<Float>  // [depth] of an error of each input's weights
  // Of one block:
  let rows: UnsafeMutablePointer<Float>  // [32, inputs] the weights
  let turned: UnsafeMutablePointer<Float>  // [inputs, 32] the same
  let clipped: UnsafeMutablePointer<Float>  // [32, inputs] a candidate
  let decoded: UnsafeMutablePointer<Float>  // [inputs, 32] what becomes of it
  let block: UnsafeMutableRawPointer
  // Of each scale, then of each row:
  let limits: UnsafeMutablePointer<Float>  // [scales, 32] the largest magnitude
  let errors: UnsafeMutablePointer<Float>  // [scales, 32] of the candidate
  let least: UnsafeMutablePointer<Float>  // [scales, 32]
  let best: UnsafeMutablePointer<Float>  // [scales, 32] the factor that gave it
  let rowErrors: UnsafeMutablePointer<Float>  // [32]
  let rowLeast: UnsafeMutablePointer<Float>  // [32]
  let rowBest: UnsafeMutablePointer<Float>  // [32] the factor for all scales of a row

  static var mostScales: Int { 16 }  // of a row in a block

  init(_ arena: inout Arena, _ code: PanelCode, depth: Int) {
    let block = code.inputs * chunkWidth
    importance = arena.take(Float.self, depth)
    rows = arena.take(Float.self, block)
    turned = arena.take(Float.self, block)
    clipped = arena.take(Float.self, block)
    decoded = arena.take(Float.self, block)
    self.block = UnsafeMutableRawPointer(arena.take(UInt8.self, code.blockBytes))
    limits = arena.take(Float.self, Self.mostScales, chunkWidth)
    errors = arena.take(Float.self, Self.mostScales, chunkWidth)
    least = arena.take(Float.self, Self.mostScales, chunkWidth)
    best = arena.take(Float.self, Self.mostScales, chunkWidth)
    rowErrors = arena.take(Float.self, chunkWidth)
    rowLeast = arena.take(Float.self, chunkWidth)
    rowBest = arena.take(Float.self, chunkWidth)
  }
}

/// Of all threads.
struct EncodingScratch {
  private let start: UnsafeMutablePointer<UInt8>
  private let bytes: Int
  private let code: PanelCode
  private let depth: Int

  init(_ arena: inout Arena, _ code: PanelCode, depth: Int, lanes: Int) {
    var one = Arena()
    _ = WeightedScratch(&one, code, depth: depth)
    (self.code, self.depth, bytes) = (code, depth, one.bytes)
    start = arena.take(UInt8.self, lanes, one.bytes)
  }

  func of(_ lane: Int) -> WeightedScratch {
    var own = Arena(UnsafeMutableRawPointer(start + lane * bytes))
    return WeightedScratch(&own, code, depth: depth)
  }
}
