import CShims

/// What the tiles of tokens, the panels of weights and the tape consist of. Sums are float32 in both.
protocol Precision {
  associatedtype Element
  typealias Source = UnsafePointer<Element>
  typealias Target = UnsafeMutablePointer<Element>
  typealias Floats = UnsafePointer<Float>
  typealias Kernels = UnsafePointer<moei_kernels>

  /// So many contraction indices are multiplied at once: features, or tokens in the gradients of weights. Tiles and panels are
  /// filled up to a multiple of it.
  static var unit: Int { get }

  /// `columns` columns of some rows, in chunks [chunk][m][32]; see `gather` in moei.h.
  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels)
  /// The same for sums over tokens: [chunk][m / unit][32][unit].
  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels)
  /// panel [depth / unit][32][unit] of `columns` rows, if transposed, or columns of `weights`.
  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels)
  /// C[m, columns] = start + A B
  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels)
  /// C[m, 32] = start + A W^T for at most few_rows of A and 32 rows of weights where they lie; depth is a multiple of 32. The
  /// rows at `next` are wanted next.
  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    next: Source, _ kernels: Kernels)
  /// C[rows, columns] += sum over tokens of A^T B
  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, _ kernels: Kernels)
  /// Where the floats of one chunk are computed: in the array they belong to, or beside it.
  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float>
  /// From the array to the workplace, and back: nothing where they are the same.
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels)
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels)
  /// The same for a chunk [m][32] that sums over tokens will read.
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels)
  /// sum[j] += every row's j-th element of one chunk of a tile [m / unit][32][unit], in ascending order
  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels)
}

extension Precision {
  static func filledUp(_ count: Int) -> Int { (count + unit - 1) / unit * unit }

  /// What storing makes of the values. The array is one that may be written to.
  static func round(_ n: Int, _ values: UnsafeMutablePointer<Float>, by array: Target, _ kernels: Kernels) {
    store(n, values, into: array, kernels)
    load(n, Source(array), into: values, kernels)
  }
}

enum F32: Precision {
  typealias Element = Float
  static var unit: Int { 1 }

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    gather(m, columns, tokens, x, xRow: xRow, weights: weights, into: out, kernels)
  }

  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels
  ) {
    if transposed {
      kernels.pointee.pack_transposed(Int64(columns), Int64(depth), weights, Int64(rowStride), panel)
    } else {
      kernels.pointee.pack(Int64(columns), Int64(depth), weights, Int64(rowStride), panel)
    }
  }

  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels
  ) {
    kernels.pointee.product(
      Int64(m), Int64(columns), Int64(depth), a, b, start.start, Int64(start.stride), c.start,
      Int64(c.stride), ahead)
  }

  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    next: Source, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_few_rows(
      Int64(m), Int64(depth / chunkWidth), a, weights, Int64(rowStride), start.start, Int64(start.stride),
      c.start, Int64(c.stride), next)
  }

  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, _ kernels: Kernels
  ) {
    kernels.pointee.product_over_tokens(
      Int64(rows), Int64(columns), tiles, a.start, Int64(a.width), Int64(a.chunk), b.start, Int64(b.width),
      Int64(b.chunk), c.start, Int64(c.stride), next)
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    array
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {}
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}

  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels
  ) {
    for row in 0..<m { kernels.pointee.add(Int64(columns), chunk + row * chunkWidth, sum) }
  }
}

/// bfloat16, the upper half of a float32: two products at once, half the memory.
enum BF16: Precision {
  typealias Element = UInt16
  static var unit: Int { 2 }

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather_bf16(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather_token_pairs(
      Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, words(out))
  }

  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels
  ) {
    if transposed {
      kernels.pointee.pack_pairs_transposed(Int64(columns), Int64(depth), weights, Int64(rowStride), words(panel))
    } else {
      kernels.pointee.pack_pairs(Int64(columns), Int64(depth), weights, Int64(rowStride), words(panel))
    }
  }

  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_pairs(
      Int64(m), Int64(columns), Int64(filledUp(depth) / unit), words(a), words(b), start.start,
      Int64(start.stride), c.start, Int64(c.stride), ahead)
  }

  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    next: Source, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_few_rows_of_pairs(
      Int64(m), Int64(depth / chunkWidth), words(a), weights, Int64(rowStride), start.start,
      Int64(start.stride), c.start, Int64(c.stride), next)
  }

  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, _ kernels: Kernels
  ) {
    kernels.pointee.product_over_token_pairs(
      Int64(rows), Int64(columns), tiles, words(a.start), Int64(a.width), Int64(a.chunk), words(b.start),
      Int64(b.width), Int64(b.chunk), c.start, Int64(c.stride), next)
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    beside
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {
    kernels.pointee.from_bf16(Int64(n), array, values)
  }
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {
    kernels.pointee.to_bf16(Int64(n), values, array)
  }
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {
    gatherTokens(m, chunkWidth, nil, values, xRow: chunkWidth, weights: nil, into: array, kernels)
  }

  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels
  ) {
    for pair in 0..<filledUp(m) / unit {
      kernels.pointee.add_token_pairs(Int64(columns), words(chunk) + pair * chunkWidth, sum)
    }
  }

  private static func words(_ p: Source) -> UnsafePointer<UInt32> {
    UnsafeRawPointer(p).assumingMemoryBound(to: UInt32.self)
  }
  private static func words(_ p: Target) -> UnsafeMutablePointer<UInt32> {
    UnsafeMutableRawPointer(p).assumingMemoryBound(to: UInt32.self)
  }
}
