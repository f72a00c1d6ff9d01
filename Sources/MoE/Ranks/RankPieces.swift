/// How the rows of a call are divided on their way: piece by piece, so that one is computed while others travel. A piece is some of the
/// experts of every rank, with all of their rows: what is computed of an expert is computed at once, whatever the pieces are.
struct RankPieces {
  let count: Int

  /// More hide little more: what nothing hides is the first piece there and the last one back, which are half as long as the others.
  private static var most: Int { 5 }
  /// Bytes of a piece that a rank sends, and of each of its messages: shorter ones are on their way for less time than it takes to
  /// begin and end them.
  private static var leastBytes: Int { 256 << 10 }
  private static var leastBytesOfMessage: Int { 16 << 10 }

  /// For so many tokens of all ranks. The same on all of them, in backward as in forward.
  init(_ c: Configuration, _ ranks: RanksPointer, tokens: Int) {
    let (size, placement) = (ranks.pointee.size, ranks.pointee.placement)
    var experts = 1
    for rank in 0..<size { experts = max(experts, placement.experts(of: rank).count) }
    let bytes = tokens * c.choices / size * (size - 1) / size * c.hidden * MemoryLayout<Float>.stride
    let least = max(Self.leastBytes, (size - 1) * Self.leastBytesOfMessage)
    count = min(max(bytes / least, 1), Self.most, experts)
  }

  /// With which of a rank's `experts` a piece begins; number `count`: where the last one ends.
  func first(_ piece: Int, of experts: Int) -> Int {
    if piece == 0 { return 0 }
    if piece == count { return experts }
    let halves = 2 * (count - 1)  // half pieces that there are
    return (2 * experts * (2 * piece - 1) + halves) / (2 * halves)
  }
}

/// Where rows lie that go to ranks, or have come from them: rank by rank, those of a rank piece by piece.
struct TravelRows {
  private let firsts: UnsafeMutablePointer<Int>  // [ranks, pieces + 1]
  private let pieces: Int
  fileprivate let ranks: Int

  init(_ arena: inout Arena, ranks: Int, _ pieces: RankPieces) {
    (self.ranks, self.pieces) = (ranks, pieces.count)
    firsts = arena.take(Int.self, ranks, pieces.count + 1)
  }

  /// Piece number `pieces`: where the last one ends.
  func set(_ rank: Int, _ piece: Int, first: Int) { firsts[rank * (pieces + 1) + piece] = first }
  func rows(of rank: Int, _ piece: Int) -> Range<Int> {
    firsts[rank * (pieces + 1) + piece]..<firsts[rank * (pieces + 1) + piece + 1]
  }
  func rows(of rank: Int) -> Range<Int> { rows(of: rank, 0).lowerBound..<rows(of: rank, pieces - 1).upperBound }

  /// The rows of one piece in blocks. `isSame`: all ranks have the same rows, which are listed once.
  func blocks(ofPiece piece: Int, isSame: Bool = false) -> PieceBlocks {
    var most = 0
    for rank in 0..<ranks { most = max(most, rows(of: rank, piece).count) }
    return PieceBlocks(rows: self, piece: piece, ranks: isSame ? 1 : ranks, ofEach: MoE.blocks(of: most))
  }
}

/// As many blocks of rows for each rank, some of which may be empty.
struct PieceBlocks {
  fileprivate let rows: TravelRows
  fileprivate let piece: Int
  fileprivate let ranks: Int
  fileprivate let ofEach: Int

  var count: Int { ranks * ofEach }

  /// The rows of a block, and the first of its rank's in the piece.
  subscript(block: Int) -> (first: Int, rows: Range<Int>) {
    let all = rows.rows(of: block / ofEach, piece)
    let start = min(all.lowerBound + block % ofEach * rowsPerBlock, all.upperBound)
    return (all.lowerBound, start..<min(start + rowsPerBlock, all.upperBound))
  }
}
