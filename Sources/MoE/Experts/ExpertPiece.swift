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
  private let pairOfRow: UnsafePointer<Int32>

  init(_ piece: Piece, _ dispatch: Dispatch, maxHeight: Int) {
    let rows = dispatch.rows(ofExpert: Int(piece.expert))
    expert = Int(piece.expert)
    tiles = Tiles(rows: rows.count, maxHeight: maxHeight)
    range = piece.tiles
    chunks = piece.chunks
    first = tiles.start(piece.tiles.lowerBound)
    firstOfExpert = rows.lowerBound
    pairOfRow = UnsafePointer(dispatch.pairOfRow)
  }

  /// Number of the first of an expert's `rows` among the rows of all experts.
  func row(_ rows: Range<Int>) -> Int { firstOfExpert + rows.lowerBound }

  /// Where a chunk of a tile lies in a tiled array over all rows, `width` floats wide.
  func place(_ chunk: Int, _ rows: Range<Int>, width: Int) -> Int {
    row(rows) * width + chunk * chunkWidth * rows.count
  }

  /// The pairs of an expert's `rows`.
  func pairs(_ rows: Range<Int>) -> UnsafePointer<Int32> { pairOfRow + row(rows) }

  /// `columns` columns of x [T, xRow] for each row of some tiles, times the routing weights where they are given; tiled,
  /// from `out` on.
  func gather(
    _ tiles: Range<Int>, _ columns: Int, of x: UnsafePointer<Float>, xRow: Int, weights: UnsafePointer<Float>? = nil,
    into out: UnsafeMutablePointer<Float>, topK: Int, _ kernels: UnsafePointer<moei_kernels>
  ) {
    let first = self.tiles.start(tiles.lowerBound)
    for tile in tiles {
      let rows = self.tiles.rows(tile)
      kernels.pointee.gather(
        Int64(rows.count), Int64(columns), pairs(rows), Int64(topK), x, Int64(xRow), weights,
        out + (rows.lowerBound - first) * padded(columns))
    }
  }
}
