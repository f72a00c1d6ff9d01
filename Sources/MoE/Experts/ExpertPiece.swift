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
  private let firstInGroup: Int
  private let firstPlace: Int  // in tiled arrays, where every expert begins at a multiple of the unit
  private let dispatch: GroupRows

  init(_ piece: Piece, _ dispatch: GroupRows, maxHeight: Int, unit: Int) {
    let rows = dispatch.rows(ofExpert: Int(piece.expert))
    expert = Int(piece.expert)
    tiles = Tiles(rows: rows.count, maxHeight: maxHeight, unit: unit)
    range = piece.tiles
    chunks = piece.chunks
    first = tiles.start(piece.tiles.lowerBound)
    firstOfExpert = rows.lowerBound
    firstInGroup = rows.lowerBound - dispatch.first
    firstPlace = Self.firstPlace(firstInGroup, expert: expert, unit: unit)
    self.dispatch = dispatch
  }

  /// All rows and outputs of an expert.
  init(ofAll expert: Int, _ dispatch: GroupRows, _ kernels: UnsafePointer<moei_kernels>, unit: Int) {
    let height = Int(kernels.pointee.tile_height)
    let tiles = Tiles(rows: dispatch.count(ofExpert: expert), maxHeight: height, unit: unit)
    self.init(
      Piece(expert: Int32(expert), firstTile: 0, endTile: Int32(tiles.count), firstChunk: 0, endChunk: 0), dispatch,
      maxHeight: height, unit: unit)
  }

  /// Number of the first of an expert's `rows` among the rows of all experts.
  func row(_ rows: Range<Int>) -> Int { firstOfExpert + rows.lowerBound }

  /// Number of the first of an expert's `rows` among the rows of the group's experts.
  func rowInGroup(_ rows: Range<Int>) -> Int { firstInGroup + rows.lowerBound }

  /// The place in a tiled array at which an expert begins whose first row is number `row` of the group's.
  static func firstPlace(_ row: Int, expert: Int, unit: Int) -> Int {
    (row + (unit - 1) * (expert + 1)) / unit * unit
  }

  /// Rows of a tiled array over all rows of a group.
  static func places(_ rows: Int, experts: Int, unit: Int) -> Int { rows + (unit - 1) * (experts + 1) }

  /// Where a chunk of a tile lies in a tiled array, `width` elements wide.
  func place(_ chunk: Int, _ rows: Range<Int>, width: Int) -> Int {
    (firstPlace + rows.lowerBound) * width + chunk * chunkWidth * rows.count
  }

  /// Where a chunk of a tile lies in a tiled array for sums over tokens, `width` elements wide.
  func placeOfTokens<P: Precision>(_: P.Type, _ chunk: Int, _ rows: Range<Int>, width: Int) -> Int {
    (firstPlace + rows.lowerBound) * width + chunk * chunkWidth * P.filledUp(rows.count)
  }

  /// The pairs of an expert's `rows`.
  func pairs(_ rows: Range<Int>) -> UnsafePointer<Int32> { dispatch.pairs(from: row(rows)) }
  func tokens(_ rows: Range<Int>) -> UnsafePointer<Int32> { dispatch.tokens(from: row(rows)) }
  func weights(_ rows: Range<Int>) -> UnsafePointer<Float> { dispatch.weights(from: row(rows)) }

  /// `columns` columns of x [T, xRow] for each row of some tiles, times the routing weights if `weighted`; tiled, from
  /// `out` on.
  func gather<P: Precision>(
    _: P.Type, _ tiles: Range<Int>, _ columns: Int, of x: UnsafePointer<Float>, xRow: Int, weighted: Bool,
    into out: UnsafeMutablePointer<P.Element>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    forEachTile(tiles) { rows, before in
      P.gather(
        rows.count, columns, tokens(rows), x, xRow: xRow, weights: weighted ? weights(rows) : nil,
        into: out + before * padded(columns), kernels)
    }
  }

  /// What `gather` gathers, tiled for sums over tokens.
  func gatherTokens<P: Precision>(
    _: P.Type, _ tiles: Range<Int>, _ columns: Int, of x: UnsafePointer<Float>, xRow: Int, weighted: Bool,
    into out: UnsafeMutablePointer<P.Element>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    forEachTile(tiles) { rows, before in
      P.gatherTokens(
        rows.count, columns, tokens(rows), x, xRow: xRow, weights: weighted ? weights(rows) : nil,
        into: out + before * padded(columns), kernels)
    }
  }

  /// A tile's rows, and how many rows of `tiles` come before them.
  func forEachTile(_ tiles: Range<Int>, _ body: (Range<Int>, Int) -> Void) {
    let first = self.tiles.start(tiles.lowerBound)
    for tile in tiles {
      let rows = self.tiles.rows(tile)
      body(rows, rows.lowerBound - first)
    }
  }
}
