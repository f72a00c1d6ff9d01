import CShims

/// Products of attention's tiles: A in chunks [k / 32][m][32], B in panels [k][32]. Whoever multiplies reads the same
/// tiles, and so the chains are the same.
struct TileProducts {
  private let matmul: Matmul
  private let zeros: UnsafeMutablePointer<Float>  // [32]
  /// Of the tiles. bfloat16 is multiplied in pairs by processors that have an instruction for it; for others tiles are float32, of
  /// numbers that were rounded.
  let precision: PrecisionKind
  private let rounding: PrecisionKind

  /// The most rows of one tile. Part of no chain, but of what is skipped: it does not depend on the instruction set.
  static let height = 12

  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  init(_ arena: inout Arena, _ context: ContextPointer, _ wanted: PrecisionKind) {
    matmul = context.matmul
    zeros = arena.take(Float.self, chunkWidth)
    precision = context.attentionPrecision(wanted)
    rounding = precision == .bf16 ? .f32 : wanted
  }

  /// Once, before the first use.
  func initialise() { zeros.update(repeating: 0, count: chunkWidth) }

  var kernels: UnsafePointer<moei_kernels> { matmul.kernels }

  /// C[m,32] = A B, with rows of C 32 apart.
  func set<P: AttentionPrecision>(_: P.Type, _ m: Int, _ k: Int, _ a: P.Source, _ b: P.Source, _ c: Target) {
    if matmul.backend == .native {
      return multiply(
        P.self, m, chunkWidth, k, a, b, StridedRows(zeros, stride: 0), StridedTargets(c, stride: chunkWidth))
    }
    c.update(repeating: 0, count: m * chunkWidth)
    add(P.self, m, chunkWidth, k, a, b, c, cStride: chunkWidth)
  }

  /// Whether products of few rows read where it lies what is `columns` wide: as it is multiplied, `areRounded`, or float32.
  func readInPlace(_ columns: Int, areRounded: Bool) -> Bool {
    matmul.backend == .native && rounding == .f32 && (precision == .bf16) == areRounded && columns % chunkWidth == 0
  }

  /// Rows of x, for `setFewRows`: in groups [group][k / 32][rows of the group][32].
  func gatherFewRows<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ k: Int, _ x: Source, stride: Int, into out: P.Target
  ) {
    forEachGroup(P.self, m) { first, rows in
      P.gather(rows, k, nil, x + first * stride, xRow: stride, weights: nil, into: out + first * k, kernels)
    }
  }

  /// C[m,32] = A B^T, with rows of C 32 apart, for 32 rows of B where they lie; k is a multiple of 32. On the way as many rows of `next`,
  /// as far apart, are fetched.
  func setFewRows<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ k: Int, _ a: P.Source, _ b: P.Source, stride: Int, _ c: Target, next: P.Source
  ) {
    forEachGroup(P.self, m) { first, rows in
      P.productOfFewRows(
        rows, k, a + first * k, b, rowStride: stride, start: StridedRows(zeros, stride: 0),
        StridedTargets(c + first * chunkWidth, stride: chunkWidth),
        ComingRows(beside: k, stride: stride, next: first == 0 ? next : b), kernels)
    }
  }

  private func forEachGroup<P: AttentionPrecision>(_: P.Type, _ m: Int, _ body: (_ first: Int, _ rows: Int) -> Void) {
    let most = P.fewRows(kernels)
    for first in Swift.stride(from: 0, to: m, by: most) { body(first, min(most, m - first)) }
  }

  /// C[m, columns] += A B.
  func add<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ columns: Int, _ k: Int, _ a: P.Source, _ b: P.Source, _ c: Target, cStride: Int
  ) {
    if matmul.backend == .native {
      return multiply(
        P.self, m, columns, k, a, b, StridedRows(c, stride: cStride), StridedTargets(c, stride: cStride))
    }
    let (a, b) = (floats(a), floats(b))
    for first in stride(from: 0, to: k, by: chunkWidth) {
      matmul.addAB(
        m, columns, min(chunkWidth, k - first), a + first * m, lda: chunkWidth, b + first * chunkWidth, ldb: chunkWidth,
        c, ldc: cStride)
    }
  }

  private func multiply<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ columns: Int, _ k: Int, _ a: P.Source, _ b: P.Source, _ start: StridedRows,
    _ c: StridedTargets
  ) {
    // The tile that lies behind this one comes next.
    let ahead = moei_ahead(first: a + m * padded(k), row: 64, chunk: 64 * Int64(chunkWidth), beside: 0)
    P.product(m, columns, k, a, b, start: start, c, ahead, kernels)
  }

  /// C[rows, columns] += the sum over the tiles' rows t of A[t,:]^T B[t,:], for one chunk of A and one of B, both
  /// [tile][chunk][t][32].
  func addOverRows<P: AttentionPrecision>(
    _: P.Type, _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<P.Element>, _ b: TileChunk<P.Element>,
    _ c: StridedTargets
  ) {
    if matmul.backend == .native {
      return P.productOverTokens(rows, columns, tiles, a, b, c, next: c.start, wanted: nil, kernels)
    }
    var t = 0
    for tile in 0..<Int(tiles.count) {
      let height = Int(tiles.height) - (tile < Int(tiles.tall) ? 0 : 1)
      matmul.addAtB(
        rows, columns, height, floats(a.start) + (t * a.width + a.chunk * height * chunkWidth), lda: chunkWidth,
        floats(b.start) + (t * b.width + b.chunk * height * chunkWidth), ldb: chunkWidth, c.start, ldc: c.stride)
      t += height
    }
  }

  /// Those who do not multiply natively read tiles of floats.
  private func floats<Element>(_ tile: UnsafePointer<Element>) -> Source {
    UnsafeRawPointer(tile).assumingMemoryBound(to: Float.self)
  }

  // MARK: what tiles are made of

  /// Rows of x that will be gathered.
  func fetch<Element>(_ rows: Int, _ columns: Int, _ x: UnsafePointer<Element>, stride: Int) {
    let line = 64 / MemoryLayout<Element>.size
    for row in 0..<rows {
      for column in Swift.stride(from: 0, to: columns, by: line) { moei_prefetch(x + (row * stride + column)) }
    }
  }

  /// Rows that will be written.
  func fetchToWrite(_ rows: Int, _ columns: Int, _ x: Target, stride: Int) {
    for row in 0..<rows {
      for column in Swift.stride(from: 0, to: columns, by: 16) { moei_prefetch_to_write(x + (row * stride + column)) }
    }
  }

  /// Rows of x, `columns` wide, in chunks [chunk][m][32].
  func gather<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ columns: Int, _ x: Source, stride: Int, into out: P.Target
  ) {
    P.gather(m, columns, nil, x, xRow: stride, weights: nil, into: out, kernels)
    round(P.self, out, m * padded(columns))
  }

  /// Such rows as sums over them read them: [chunk][m / unit][32][unit].
  func gatherTokens<P: AttentionPrecision>(
    _: P.Type, _ m: Int, _ columns: Int, _ x: Source, stride: Int, into out: P.Target
  ) {
    P.gatherTokens(m, columns, nil, x, xRow: stride, weights: nil, into: out, kernels)
    round(P.self, out, m * padded(columns))
  }

  /// Up to 32 rows of x, `depth` wide, as the columns of a panel [depth / unit][32][unit]. `scratch`: of as many elements, where
  /// the unit is not 1.
  func pack<P: AttentionPrecision>(
    _: P.Type, _ columns: Int, _ depth: Int, _ x: Source, stride: Int, into panel: P.Target, _ scratch: P.Target
  ) {
    P.packRows(columns, depth, x, stride: stride, into: panel, scratch, kernels)
    round(P.self, panel, depth * chunkWidth)
  }

  /// What bfloat16 makes of numbers that tiles of floats have in its place.
  func round<P: AttentionPrecision>(_: P.Type, _ values: P.Target, _ count: Int) {
    if rounding == .f32 { return }
    rounding.round(UnsafeMutableRawPointer(values).assumingMemoryBound(to: Float.self), count, kernels)
  }
}

/// One piece of memory for each thread that runs a job.
struct LaneMemory {
  private let memory: UnsafeMutablePointer<UInt8>
  private let bytes: Int

  /// `bytes` is a multiple of the allocator's alignment, as an arena's are.
  init(_ arena: inout Arena, bytes: Int, context: ContextPointer) {
    self.bytes = bytes
    memory = arena.take(UInt8.self, context.lanes, bytes)
  }

  func arena(_ lane: Int) -> Arena { Arena(UnsafeMutableRawPointer(memory + lane * bytes)) }
}
