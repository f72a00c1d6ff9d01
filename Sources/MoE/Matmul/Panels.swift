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
  private enum Form {
    /// The matrix's rows are the panel's columns (W^T), or its rows (W).
    case matrix(rowStride: Int, transposed: Bool, columns: Int)
    /// Packed already, [k][32].
    case packed
    /// The same in bfloat16.
    case packedBF16
  }

  private let start: UnsafeRawPointer
  private let form: Form

  /// `weights`: element (0, 0) of the panel in the matrix; `columns`: up to 32.
  init(_ weights: UnsafePointer<Float>, rowStride: Int, transposed: Bool, columns: Int) {
    start = UnsafeRawPointer(weights)
    form = .matrix(rowStride: rowStride, transposed: transposed, columns: columns)
  }

  init(packed panel: UnsafeRawPointer, bf16: Bool) {
    start = panel
    form = bf16 ? .packedBF16 : .packed
  }

  private var floats: UnsafePointer<Float> { start.assumingMemoryBound(to: Float.self) }
  private var bf16: UnsafePointer<UInt16> { start.assumingMemoryBound(to: UInt16.self) }

  /// The piece from p on in bfloat16, where it is kept so.
  fileprivate func bf16Piece(_ p: Int) -> UnsafePointer<UInt16>? {
    if case .packedBF16 = form { return bf16 + p * chunkWidth }
    return nil
  }

  /// The piece from p on, [depth][32], where it lies or in `buffer`.
  fileprivate func piece(
    _ p: Int, _ depth: Int, buffer: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) -> UnsafePointer<Float> {
    switch form {
    case .matrix(let rowStride, transposed: true, let columns):
      kernels.pointee.pack_transposed(Int64(columns), Int64(depth), floats + p, Int64(rowStride), buffer)
    case .matrix(let rowStride, transposed: false, let columns):
      kernels.pointee.pack(Int64(columns), Int64(depth), floats + p * rowStride, Int64(rowStride), buffer)
    case .packedBF16:
      kernels.pointee.from_bf16(Int64(depth * chunkWidth), bf16 + p * chunkWidth, buffer)
    case .packed:
      return floats + p * chunkWidth
    }
    return UnsafePointer(buffer)
  }

  /// The cache lines of the piece at p, for the first two tiles that are multiplied before it is needed: one half each of
  /// 32 rows of 256 floats, of 256 rows of 32, or of as many packed rows.
  fileprivate func ahead(_ p: Int, half: Int) -> moei_ahead {
    let row = Int64(chunkWidth)
    switch form {
    case .matrix(let rowStride, transposed: true, _):
      return moei_ahead(first: floats + p + half * panelDepth / 2, row: Int64(rowStride), chunk: 16)
    case .matrix(let rowStride, transposed: false, _):
      return moei_ahead(
        first: floats + p * rowStride + half * 16, row: Int64(rowStride), chunk: Int64(rowStride) * row)
    case .packed:
      return moei_ahead(first: floats + p * chunkWidth + half * 16, row: row, chunk: row * row)
    case .packedBF16:
      return moei_ahead(first: floats + p * chunkWidth / 2, row: row / 2, chunk: row * row / 2)
    }
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
    var pieces = InlineArray<4, Source>(repeating: Source(packed))  // panelsAtOnce
    for p in stride(from: 0, to: depth, by: panelDepth) {
      let depth = min(panelDepth, self.depth - p)
      let last = p + panelDepth >= self.depth
      // A single tile reads each piece once: bfloat16 is then turned into floats on the way into the registers.
      let alone = range.count == 1
      for i in 0..<panels where !alone || panel(i).bf16Piece(p) == nil {
        pieces[i] = panel(i).piece(p, depth, buffer: packed + i * panelDepth * chunkWidth, kernels)
      }
      for tile in range {
        let rows = tiles.rows(tile)
        let half = tile - range.lowerBound
        let a = a(rows) + p * rows.count
        for i in 0..<panels {
          let piece = pieces[i]
          let out = c(i, rows)
          let begin = p == 0 ? start(i) : nil
          let coming = half < 2 ? (last ? next(i) : panel(i)) : nil
          let (from, fromStride) = (begin ?? Source(out), begin == nil ? Int64(cStride) : 0)
          let ahead =
            coming?.ahead(last ? 0 : p + panelDepth, half: half) ?? moei_ahead(first: piece, row: 0, chunk: 0)
          let (m, k) = (Int64(rows.count), Int64(depth))
          if alone, let bf16 = panel(i).bf16Piece(p) {
            kernels.pointee.product_bf16(
              m, Int64(columns(i)), k, a, bf16, from, fromStride, out, Int64(cStride), ahead)
          } else {
            kernels.pointee.product(m, Int64(columns(i)), k, a, piece, from, fromStride, out, Int64(cStride), ahead)
          }
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
