import CShims

/// A piece of one expert's work: some of its tiles of rows, some chunks of the outputs.
struct Piece {
  let expert: Int32
  let firstTile: Int32
  let endTile: Int32
  let firstChunk: Int32
  let endChunk: Int32

  var tiles: Range<Int> { Int(firstTile)..<Int(endTile) }
  var chunks: Range<Int> { Int(firstChunk)..<Int(endChunk) }
}

private struct SizedPiece {
  let piece: Piece
  let size: Int
}

/// All experts' work in pieces that threads take one by one, large ones first: so one expert with most of the tokens
/// keeps all threads busy, and what is left at the end is small. How work is cut cannot change a bit of the result.
struct WorkList {
  private let pieces: UnsafeMutablePointer<Piece>
  private let unsorted: UnsafeMutablePointer<SizedPiece>
  private let chunks: Int
  private let tilesPerPiece: Int
  private let chunksPerPiece: Int
  private let lanes: Int
  private let maxHeight: Int
  private let unit: Int  // of tiles

  static var unbounded: Int { 1 << 30 }

  /// So many pieces for each thread: enough that the last ones to finish do so nearly together.
  private static var piecesPerLane: Int { 12 }
  /// A single tile's rows are soon gathered: it is cut into so many times as many, which end more nearly together.
  private static var moreOfFewRows: Int { 2 }
  /// While much is left to do pieces are longer, so many for each thread's share of the rest: each of an expert's pieces gathers its rows again,
  /// memory likes to be read from end to end, and short pieces at the end are enough.
  private static var longPieces: Int { 4 }
  /// Packing a panel of weights costs about as much as computing with this many rows.
  private static var packingRows: Int { 8 }
  private static var sizeClasses: Int { 16 }

  /// `tilesPerPiece` and `chunksPerPiece` bound what a thread holds at once.
  init(
    _ arena: inout Arena, _ work: GroupWork, unit: Int, chunks: Int, tilesPerPiece: Int = unbounded,
    chunksPerPiece: Int = unbounded
  ) {
    self.unit = unit
    self.chunks = chunks
    self.tilesPerPiece = tilesPerPiece
    self.chunksPerPiece = chunksPerPiece
    lanes = work.lanes
    maxHeight = Int(work.kernels.pointee.tile_height)
    let rows = work.dispatch.most
    // Pieces that the bounds make necessary, then those cut for the threads' sake.
    let needed = (min(work.c.experts, rows) + rows / tilesPerPiece) * (2 + (chunks - 1) / chunksPerPiece)
    let most = needed + 2 * lanes * Self.piecesPerLane * Self.moreOfFewRows
    pieces = arena.take(Piece.self, most)
    unsorted = arena.take(SizedPiece.self, most)
  }

  /// Cuts all rows' chunks of outputs and returns how many pieces there are.
  func fill(_ dispatch: GroupRows) -> Int {
    func size(_ rows: Int, _ chunks: Int) -> Int { (rows + Self.packingRows) * chunks }
    func blocks(_ tiles: Tiles) -> Int { (tiles.count + tilesPerPiece - 1) / tilesPerPiece }

    // Most experts may have no rows: a single token is in a hurry.
    var total = 0
    for e in dispatch.experts where dispatch.count(ofExpert: e) > 0 {
      let tiles = Tiles(rows: dispatch.count(ofExpert: e), maxHeight: maxHeight, unit: unit)
      total += (tiles.rows + blocks(tiles) * Self.packingRows) * chunks
    }
    let target = lanes == 1 ? Int.max : max(1, total / (lanes * Self.piecesPerLane))

    var (count, rest) = (0, total)
    var largest = 1
    for e in dispatch.experts where dispatch.count(ofExpert: e) > 0 {
      let tiles = Tiles(rows: dispatch.count(ofExpert: e), maxHeight: maxHeight, unit: unit)
      let blocks = blocks(tiles)
      for block in 0..<blocks {
        let range = tiles.count * block / blocks..<tiles.count * (block + 1) / blocks
        let whole = size(tiles.rows(range).count, chunks)
        let long = lanes == 1 ? Int.max : rest / (lanes * Self.longPieces)
        let target = max(tiles.count == 1 ? max(1, target / Self.moreOfFewRows) : target, long)
        rest -= whole
        let parts = min(chunks, max(whole / target, (chunks - 1) / chunksPerPiece) + 1)
        for part in 0..<parts {
          let columns = chunks * part / parts..<chunks * (part + 1) / parts
          let own = size(tiles.rows(range).count, columns.count)
          unsorted[count] = SizedPiece(
            piece: Piece(
              expert: Int32(e), firstTile: Int32(range.lowerBound), endTile: Int32(range.upperBound),
              firstChunk: Int32(columns.lowerBound), endChunk: Int32(columns.upperBound)), size: own)
          largest = max(largest, own)
          count += 1
        }
      }
    }

    // Larger classes first; within a class as they came.
    var place = 0
    for wanted in 0..<Self.sizeClasses {
      for i in 0..<count where Self.sizeClasses - 1 - unsorted[i].size * Self.sizeClasses / (largest + 1) == wanted {
        pieces[place] = unsorted[i].piece
        place += 1
      }
    }
    return count
  }

  func piece(_ i: Int, _ dispatch: GroupRows) -> ExpertPiece {
    ExpertPiece(pieces[i], dispatch, maxHeight: maxHeight, unit: unit)
  }
}
