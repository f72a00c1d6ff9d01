import CShims

/// Products of attention's tiles: A in chunks [k / 32][m][32], B in panels [k][32]. Whoever multiplies reads the same
/// tiles, and so the chains are the same.
struct TileProducts {
  private let matmul: Matmul
  private let zeros: UnsafeMutablePointer<Float>  // [32]

  /// The most rows of one tile. Part of no chain, but of what is skipped: it does not depend on the instruction set.
  static let height = 12

  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  init(_ arena: inout Arena, _ context: ContextPointer) {
    matmul = context.matmul
    zeros = arena.take(Float.self, chunkWidth)
  }

  /// Once, before the first use.
  func initialise() { zeros.update(repeating: 0, count: chunkWidth) }

  var kernels: UnsafePointer<moei_kernels> { matmul.kernels }

  /// C[m,32] = A B, with rows of C 32 apart.
  func set(_ m: Int, _ k: Int, _ a: Target, _ b: Target, _ c: Target) {
    if matmul.backend == .native { return multiply(m, chunkWidth, k, a, b, zeros, 0, c, chunkWidth) }
    c.update(repeating: 0, count: m * chunkWidth)
    add(m, chunkWidth, k, a, b, c, cStride: chunkWidth)
  }

  /// C[m, columns] += A B.
  func add(_ m: Int, _ columns: Int, _ k: Int, _ a: Target, _ b: Target, _ c: Target, cStride: Int) {
    if matmul.backend == .native { return multiply(m, columns, k, a, b, c, cStride, c, cStride) }
    for first in stride(from: 0, to: k, by: chunkWidth) {
      matmul.addAB(
        m, columns, min(chunkWidth, k - first), a + first * m, lda: chunkWidth, b + first * chunkWidth, ldb: chunkWidth,
        c, ldc: cStride)
    }
  }

  private func multiply(
    _ m: Int, _ columns: Int, _ k: Int, _ a: Target, _ b: Target, _ start: Target, _ startStride: Int, _ c: Target,
    _ cStride: Int
  ) {
    // The tile that lies behind this one comes next.
    kernels.pointee.product(
      Int64(m), Int64(columns), Int64(k), a, b, start, Int64(startStride), c, Int64(cStride), a + m * padded(k), 64,
      64 * Int64(chunkWidth), 0)
  }

  /// C[rows, columns] += the sum over the tiles' rows t of A[t,:]^T B[t,:], for one chunk of A and one of B, both
  /// [tile][chunk][t][32].
  func addOverRows(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Float>, _ b: TileChunk<Float>, _ c: StridedTargets
  ) {
    if matmul.backend == .native {
      return F32.productOverTokens(rows, columns, tiles, a, b, c, next: c.start, wanted: nil, kernels)
    }
    var t = 0
    for tile in 0..<Int(tiles.count) {
      let height = Int(tiles.height) - (tile < Int(tiles.tall) ? 0 : 1)
      matmul.addAtB(
        rows, columns, height, a.start + (t * a.width + a.chunk * height * chunkWidth), lda: chunkWidth,
        b.start + (t * b.width + b.chunk * height * chunkWidth), ldb: chunkWidth, c.start, ldc: c.stride)
      t += height
    }
  }

  /// Rows of x, D wide, as tiles [tile][chunk][row][32].
  func gather(_ tiles: Tiles, _ headSize: Int, _ x: Source, stride: Int, into out: Target) {
    for tile in 0..<tiles.count {
      let rows = tiles.rows(tile)
      kernels.pointee.gather(
        Int64(rows.count), Int64(headSize), nil, x + rows.lowerBound * stride, Int64(stride), nil,
        out + rows.lowerBound * padded(headSize))
    }
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
