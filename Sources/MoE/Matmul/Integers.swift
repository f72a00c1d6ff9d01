import CShims

/// Tokens as integers of 8 bits, 32 features of a row under one scale of their own, beside weights in blocks: for forward
/// alone. Each chunk of a row is MOEI_TOKEN_BLOCK bytes, of which an element has its share.
enum Integers: IntegerPrecision {
  typealias Element = UInt16

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather_integers(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    beside
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {}
  /// Whole rows of a chunk.
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {
    gather(n / chunkWidth, chunkWidth, nil, values, xRow: chunkWidth, weights: nil, into: array, kernels)
  }
}

/// The same under one scale for a whole row, so that sums go over all of it. Rows are floats until they are whole; then numbers, steps and
/// sums take the first quarter of their memory (`row_integers` in moei.h).
enum RowIntegers: IntegerPrecision {
  typealias Element = Float

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    gatherPart(m, columns, tokens, x, xRow: xRow, weights: weights, into: out, kernels)
    finish(m, columns, out, kernels)
  }
  static func gatherPart(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static var finishesRows: Bool { true }
  static func finish(_ m: Int, _ columns: Int, _ rows: Target, _ kernels: Kernels) {
    kernels.pointee.row_integers(Int64(m), Int64(chunks(of: columns)), rows)
  }
  static func copyRows(_ m: Int, _ width: Int, _ row: (Int) -> Source, into tile: Target) {
    let to = UnsafeMutableRawPointer(tile)
    for chunk in stride(from: 0, to: width, by: chunkWidth) {
      for r in 0..<m {
        (to + chunk * m + r * chunkWidth).copyMemory(from: UnsafeRawPointer(row(r)) + chunk, byteCount: chunkWidth)
      }
    }
    // Steps, and sums.
    let word = MemoryLayout<Float>.size
    for r in 0..<m {
      for i in 0..<2 {
        (to + width * m + (i * m + r) * word).copyMemory(
          from: UnsafeRawPointer(row(r)) + width + i * word, byteCount: word)
      }
    }
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    array
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {}
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}
}

/// What both have in common.
protocol IntegerPrecision: Precision {}

extension IntegerPrecision {
  static var weights: ElementType? { nil }
  static var unit: Int { 1 }
  static var gathersOnce: Bool { true }
  /// Whole chunks: what lies beyond the last column counts for the scale.
  static func filledUp(_ count: Int) -> Int { padded(count) }

  static func product(
    _ m: Int, _ depth: Int, _ a: Source, _ code: PanelCode, _ panels: UnsafePointer<moei_code_panel>, count: Int,
    _ kernels: Kernels
  ) {
    // Forms whose tokens become integers are of codes that have it.
    code.kernels(kernels).pointee.product_of_integers?(
      Int64(code.inputs), Int64(m), Int64(chunks(of: depth)), a, Int64(count), panels)
  }

  /// Pre-activations stay floats.
  static func round(_ n: Int, _ values: UnsafeMutablePointer<Float>, by array: Target, _ kernels: Kernels) {}

  // Weights come in blocks, and there is no backward.
  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {}
  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels
  ) {}
  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels
  ) {}
  static func fewRows(_ kernels: Kernels) -> Int { 0 }
  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    _ coming: ComingRows<Element>, _ kernels: Kernels
  ) {}
  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, wanted: WantedPlaces?, _ kernels: Kernels
  ) {}
  static func innerGradient(_ call: moei_inner_gradient, _ kernels: Kernels) {}
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}
  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels
  ) {}
}
