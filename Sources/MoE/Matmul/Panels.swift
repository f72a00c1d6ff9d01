import CShims

// One matrix of tokens times some panels of weights. A panel is 32 columns of the second factor, packed [k][32] piece by
// piece of the contraction index. Pieces of several panels are packed at once, so that a tile of tokens, brought into
// the first-level cache, meets all of them; while they are multiplied, the next pieces come from memory.

/// Contraction indices of one piece.
let panelDepth = 256
/// Pieces that are packed at once: together they stay in the second-level cache.
let panelsAtOnce = 4

/// Floats that packed pieces take.
let panelsSize = panelsAtOnce * panelDepth * chunkWidth

/// Where a panel comes from.
struct WeightPanel {
  /// Element (0, 0) of the panel in the matrix of weights.
  private let weights: UnsafePointer<Float>
  private let rowStride: Int
  /// Whether the matrix's rows are the panel's columns (W^T) or its rows (W).
  private let transposed: Bool
  private let columns: Int  // up to 32
  private let prepared: Bool  // packed already

  init(_ weights: UnsafePointer<Float>, rowStride: Int, transposed: Bool, columns: Int) {
    self.weights = weights
    self.rowStride = rowStride
    self.transposed = transposed
    self.columns = columns
    prepared = false
  }

  init(prepared panel: UnsafePointer<Float>) {
    weights = panel
    rowStride = chunkWidth
    transposed = false
    columns = chunkWidth
    prepared = true
  }

  private func at(_ p: Int) -> UnsafePointer<Float> { weights + (transposed ? p : p * rowStride) }

  /// The piece from p on where it lies packed, or nil.
  fileprivate func piece(_ p: Int) -> UnsafePointer<Float>? { prepared ? at(p) : nil }

  fileprivate func pack(
    _ p: Int, _ depth: Int, into panel: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    if prepared { return }
    if transposed {
      kernels.pointee.pack_transposed(Int64(columns), Int64(depth), at(p), Int64(rowStride), panel)
    } else {
      kernels.pointee.pack(Int64(columns), Int64(depth), at(p), Int64(rowStride), panel)
    }
  }

  /// The piece at p is 512 cache lines: 32 rows of 256 floats, or 256 rows of 32. The first two tiles that are
  /// multiplied before it is needed fetch one half each.
  fileprivate func ahead(_ p: Int, half: Int) -> moei_ahead {
    transposed
      ? moei_ahead(first: at(p) + half * panelDepth / 2, row: Int64(rowStride), chunk: 16)
      : moei_ahead(first: at(p) + half * 16, row: Int64(rowStride), chunk: Int64(chunkWidth * rowStride))
  }
}

/// C = start + A B for some tiles of rows and up to `panelsAtOnce` panels of B.
struct PanelProducts {
  let kernels: UnsafePointer<moei_kernels>
  let tiles: Tiles
  let range: Range<Int>  // of tiles
  let depth: Int  // k
  let packed: UnsafeMutablePointer<Float>  // [panelsSize]

  typealias Source = UnsafePointer<Float>
  typealias Target = UnsafeMutablePointer<Float>

  /// `a`: a tile's rows of A, in chunks. `c`: a tile's rows of C for one panel. `start`: 32 floats that every row of C
  /// begins with, or nil to go on from what is there. `next`: the panels that will come after these.
  func run(
    _ panels: Int, _ panel: (Int) -> WeightPanel, next: (Int) -> WeightPanel?, a: (Range<Int>) -> Source,
    start: (Int) -> Source?, c: (Int, Range<Int>) -> Target, cStride: Int, columns: (Int) -> Int = { _ in chunkWidth }
  ) {
    for p in stride(from: 0, to: depth, by: panelDepth) {
      let depth = min(panelDepth, self.depth - p)
      let last = p + panelDepth >= self.depth
      for i in 0..<panels { panel(i).pack(p, depth, into: packed + i * panelDepth * chunkWidth, kernels) }
      for tile in range {
        let rows = tiles.rows(tile)
        let half = tile - range.lowerBound
        let a = a(rows) + p * rows.count
        for i in 0..<panels {
          let piece = panel(i).piece(p) ?? UnsafePointer(packed + i * panelDepth * chunkWidth)
          let out = c(i, rows)
          let begin = p == 0 ? start(i) : nil
          let coming = half < 2 ? (last ? next(i) : panel(i)) : nil
          kernels.pointee.product(
            Int64(rows.count), Int64(columns(i)), Int64(depth), a, piece, begin ?? Source(out),
            begin == nil ? Int64(cStride) : 0, out, Int64(cStride),
            coming?.ahead(last ? 0 : p + panelDepth, half: half) ?? moei_ahead(first: piece, row: 0, chunk: 0))
        }
      }
    }
  }
}

extension Range where Bound == Int {
  /// Cut into runs of at most `size`.
  func forEachRun(of size: Int, _ body: (Range<Int>) -> Void) {
    for start in stride(from: lowerBound, to: upperBound, by: size) {
      body(start..<Swift.min(start + size, upperBound))
    }
  }
}
