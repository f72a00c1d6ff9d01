import CShims

/// A piece of work as the tiled jobs see it: which rows of which expert, how they are cut into tiles, where they lie.
struct ExpertPiece {
  let expert: Int
  /// Of all the expert's rows; positions in it count from the expert's first row.
  let tiles: Tiles
  let range: Range<Int>  // of tiles, this piece's
  let chunks: Range<Int>  // of outputs, this piece's
  let first: Int  // row of the expert with which the piece begins
  private let firstOfExpert: Int  // among all rows
  private let firstPlace: Int  // in tiled arrays, where every expert begins at a multiple of the unit
  private let pairOfRow: UnsafePointer<Int32>

  init(_ piece: Piece, _ dispatch: Dispatch, maxHeight: Int, unit: Int) {
    let rows = dispatch.rows(ofExpert: Int(piece.expert))
    expert = Int(piece.expert)
    tiles = Tiles(rows: rows.count, maxHeight: maxHeight, unit: unit)
    range = piece.tiles
    chunks = piece.chunks
    first = tiles.start(piece.tiles.lowerBound)
    firstOfExpert = rows.lowerBound
    firstPlace = (rows.lowerBound + (unit - 1) * (expert + 1)) / unit * unit
    pairOfRow = UnsafePointer(dispatch.pairOfRow)
  }

  /// Number of the first of an expert's `rows` among the rows of all experts.
  func row(_ rows: Range<Int>) -> Int { firstOfExpert + rows.lowerBound }

  /// Rows of a tiled array over all experts' rows.
  static func places(_ pairs: Int, experts: Int, unit: Int) -> Int { pairs + (unit - 1) * (experts + 1) }

  /// Where a chunk of a tile lies in a tiled array, `width` elements wide.
  func place(_ chunk: Int, _ rows: Range<Int>, width: Int) -> Int {
    (firstPlace + rows.lowerBound) * width + chunk * chunkWidth * rows.count
  }

  /// The same in an array for sums over tokens.
  func placeOfTokens<P: Precision>(_: P.Type, _ chunk: Int, _ rows: Range<Int>, width: Int) -> Int {
    (firstPlace + rows.lowerBound) * width + chunk * chunkWidth * P.filledUp(rows.count)
  }

  /// The pairs of an expert's `rows`.
  func pairs(_ rows: Range<Int>) -> UnsafePointer<Int32> { pairOfRow + row(rows) }

  /// `columns` columns of x [T, xRow] for each row of some tiles; tiled, from `out` on.
  func gather<P: Precision>(
    _: P.Type, _ tiles: Range<Int>, _ columns: Int, of x: UnsafePointer<Float>, xRow: Int,
    into out: UnsafeMutablePointer<P.Element>, topK: Int, _ kernels: UnsafePointer<moei_kernels>
  ) {
    forEachTile(tiles) { rows, before in
      P.gather(
        rows.count, columns, pairs(rows), topK, x, xRow: xRow, weights: nil, into: out + before * padded(columns),
        kernels)
    }
  }

  /// The same for sums over tokens, times the routing weights where they are given.
  func gatherTokens<P: Precision>(
    _: P.Type, _ tiles: Range<Int>, _ columns: Int, of x: UnsafePointer<Float>, xRow: Int,
    weights: UnsafePointer<Float>?, into out: UnsafeMutablePointer<P.Element>, topK: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    forEachTile(tiles) { rows, before in
      P.gatherTokens(
        rows.count, columns, pairs(rows), topK, x, xRow: xRow, weights: weights,
        into: out + before * padded(columns), kernels)
    }
  }

  /// A tile's rows, and how many rows of `tiles` come before them.
  private func forEachTile(_ tiles: Range<Int>, _ body: (Range<Int>, Int) -> Void) {
    let first = self.tiles.start(tiles.lowerBound)
    for tile in tiles {
      let rows = self.tiles.rows(tile)
      body(rows, rows.lowerBound - first)
    }
  }
}
