import CShims

// Rows on their way: a rank's own go to the owners of their experts in the order of its dispatch, expert by expert, so that those of an
// owner lie together, and of these those of a piece; what the owner makes of them comes back in the same order.

/// The rows that this rank owns the experts of, and the memory of their exchange, for one call.
struct OwnedRows {
  let own: Int  // rows of this rank's tokens, at all owners
  let count: Int  // that have come from all ranks
  let dispatch: Dispatch  // of the latter, over this rank's experts
  let x: UnsafeMutablePointer<Float>  // [count,H]
  let pieces: RankPieces
  private let weights: UnsafeMutablePointer<Float>?  // [count]
  let numbers: UnsafeMutablePointer<Int32>?  // [count] of pairs among those of all ranks
  // Rows of fewer bytes lie one after another where those of their rank in their piece begin: what comes back later has the same place.
  /// [own,H] What is sent, then what comes back; of slices that is behind it, [slices,own,H].
  private let out: UnsafeMutableRawPointer
  private let landing: UnsafeMutableRawPointer  // [count,H] what arrives, then what is sent back
  private let outWords: UnsafeMutablePointer<Int32>  // [own] weights or numbers
  private let gone: TravelRows
  private let back: TravelRows  // where what comes back lies
  private let come: TravelRows
  private let hidden: Int
  private let ranks: RanksPointer
  private let slices: Int  // in which every row comes back; 0: as a whole

  /// `x`: where the rows of x become floats; nil: where they arrive.
  init(
    _ arena: inout Arena, _ c: Configuration, _ ranks: RanksPointer, x: UnsafeMutablePointer<Float>?,
    pieces: RankPieces, sendsWeights: Bool, sendsNumbers: Bool
  ) {
    self.ranks = ranks
    self.pieces = pieces
    hidden = c.hidden
    (own, count) = (ranks.pointee.rowsSent, ranks.pointee.rowsOwned)
    slices = ranks.pointee.placement.strategy == .sliced ? ranks.pointee.size : 0
    dispatch = Dispatch(&arena, rows: count, experts: ranks.pointee.experts.count)
    out = UnsafeMutableRawPointer(arena.take(Float.self, (1 + slices) * own, c.hidden))
    let landing = arena.take(Float.self, count, c.hidden)
    self.landing = UnsafeMutableRawPointer(landing)
    self.x = x ?? landing
    weights = sendsWeights ? arena.take(Float.self, count) : nil
    numbers = sendsNumbers ? arena.take(Int32.self, count) : nil
    outWords = arena.take(Int32.self, sendsWeights || sendsNumbers ? (1 + slices) * own : 0)
    back = TravelRows(&arena, ranks: ranks.pointee.size, pieces)
    gone = TravelRows(&arena, ranks: ranks.pointee.size, pieces)
    come = TravelRows(&arena, ranks: ranks.pointee.size, pieces)
  }

  /// Which of this rank's experts a piece has, counted from its first.
  func experts(ofPiece piece: Int) -> Range<Int> {
    let all = ranks.pointee.experts.count
    return pieces.first(piece, of: all)..<pieces.first(piece + 1, of: all)
  }

  /// Finds the places of this rank's rows, by their dispatch, and of those that come, `counts` [ranks, experts of this rank].
  func place(_ own: Dispatch, _ counts: UnsafePointer<Int32>) {
    let (size, experts) = (ranks.pointee.size, ranks.pointee.experts.count)
    var place = 0
    for rank in 0..<size {
      let theirs = ranks.pointee.placement.experts(of: rank)
      for piece in 0...pieces.count {
        let first = pieces.first(piece, of: theirs.count)
        let row = Int(own.offsets[ranks.pointee.hot.cold(before: theirs.lowerBound + first)])
        gone.set(rank, piece, first: row)
        back.set(rank, piece, first: slices == 0 ? row : (1 + rank) * self.own + row)
        come.set(rank, piece, first: place)
        if piece == pieces.count { break }
        for e in self.experts(ofPiece: piece) { place += Int(counts[rank * experts + e]) }
      }
    }
  }

  // MARK: to the owners

  /// The routing weights of the rows, and their pairs' numbers, where the owners want them.
  func bringWords(_ dispatch: Dispatch) throws(Fault) {
    if let weights {
      UnsafeMutableRawPointer(outWords).copyMemory(from: dispatch.weightOfRow, byteCount: own * 4)
      try begin(outWords, to: weights)
      try ranks.pointee.finishNext()
    }
    if let numbers {
      outWords.update(from: dispatch.pairOfRow, count: own)
      try begin(outWords, to: numbers)
      try ranks.pointee.finishNext()
    }
  }

  private func begin(_ words: UnsafeRawPointer, to place: UnsafeMutableRawPointer) throws(Fault) {
    try ranks.pointee.begin(
      words, { gone.rows(of: $0) }, to: place, { come.rows(of: $0) }, bytesOfOne: 4, room: 4)
  }

  /// The rows that come, by expert: `counts` [ranks, experts of this rank] of them.
  func group(_ counts: UnsafePointer<Int32>) {
    dispatch.group(counts, ranks: ranks.pointee.size, weights: weights.map { UnsafePointer($0) })
  }

  /// Rows of `tokens` [T,H] begin their way to the owners.
  func send(
    _ tokens: UnsafePointer<Float>, _ dispatch: Dispatch, as type: ElementType, _ failed: inout Fault?,
    in context: ContextPointer
  ) throws(Fault) {
    for piece in 0..<pieces.count {
      let blocks = gone.blocks(ofPiece: piece, isSame: slices > 0)
      attempt(&failed) { () throws(Fault) in
        try context.run(
          blocks.count,
          PackTokens(
            kernels: context.kernels, type: type, hidden: hidden, blocks: blocks, tokens: tokens,
            tokenOfRow: dispatch.tokenOfRow, out: out))
      }
      try ranks.pointee.begin(
        out, { gone.rows(of: $0, piece) }, to: landing, { come.rows(of: $0, piece) }, bytesOfOne: type.bytes(hidden),
        room: hidden * 4)
    }
  }

  /// Waits for the next piece, and makes `rows` [count,H] of what has come.
  func receive(
    _ piece: Int, as type: ElementType, to rows: UnsafeMutablePointer<Float>, _ failed: inout Fault?,
    in context: ContextPointer
  ) throws(Fault) {
    try ranks.pointee.finishNext()
    if UnsafeMutableRawPointer(rows) == landing { return }
    attempt(&failed) { () throws(Fault) in
      let blocks = come.blocks(ofPiece: piece)
      try context.run(
        blocks.count,
        WidenRows(
          kernels: context.kernels, type: type, hidden: hidden, blocks: blocks, landing: landing, rows: rows))
    }
  }

  // MARK: back

  /// What this rank has made of the rows of a piece, `made` [count, padded H] in the order of their dispatch, begins its way back.
  func sendBack(
    _ piece: Int, _ made: UnsafePointer<Float>, _ failed: inout Fault?, in context: ContextPointer
  ) throws(Fault) {
    attempt(&failed) { () throws(Fault) in
      let blocks = come.blocks(ofPiece: piece)
      try context.run(
        blocks.count,
        PackRows(hidden: hidden, blocks: blocks, rows: made, rowOfPair: dispatch.rowOfPair, out: landing))
    }
    try ranks.pointee.begin(
      landing, { come.rows(of: $0, piece) }, to: out, { back.rows(of: $0, piece) }, bytesOfOne: hidden * 4,
      room: hidden * 4)
  }

  /// One number for each row, `made` [count] in the order in which they came, begins its way back.
  func sendBack(_ made: UnsafePointer<Float>) throws(Fault) {
    try ranks.pointee.begin(
      made, { come.rows(of: $0) }, to: outWords, { back.rows(of: $0) }, bytesOfOne: 4, room: 4)
  }

  /// Waits for what the owners have made of all rows, which becomes `rows` [own, padded H].
  func takeBack(
    _ rows: UnsafeMutablePointer<Float>, _ failed: inout Fault?, in context: ContextPointer
  ) throws(Fault) {
    for piece in 0..<pieces.count {
      try ranks.pointee.finishNext()
      attempt(&failed) { () throws(Fault) in
        let blocks = gone.blocks(ofPiece: piece, isSame: slices > 0)
        try context.run(
          blocks.count,
          UnpackRows(
            kernels: context.kernels, hidden: hidden, own: own, slices: slices, blocks: blocks, out: out, rows: rows))
      }
    }
  }

  /// Waits for the numbers [own], which stay in this memory.
  func takeBack() throws(Fault) -> UnsafePointer<Float> {
    try ranks.pointee.finishNext()
    let numbers = UnsafeMutableRawPointer(outWords).assumingMemoryBound(to: Float.self)
    if slices > 0 {
      for row in 0..<own {
        numbers[row] = numbers[own + row]
        for slice in 1..<max(slices, 1) { numbers[row] += numbers[(1 + slice) * own + row] }
      }
    }
    return UnsafePointer(numbers)
  }
}

/// Runs what may fail, unless something has; what fails is told when the ranks next agree.
func attempt(_ failed: inout Fault?, _ body: () throws(Fault) -> Void) {
  if failed != nil { return }
  do throws(Fault) { try body() } catch { failed = error }
}

private struct PackTokens: Job {
  let kernels: UnsafePointer<moei_kernels>
  let type: ElementType
  let hidden: Int
  let blocks: PieceBlocks
  let tokens: UnsafePointer<Float>  // [T,H]
  let tokenOfRow: UnsafePointer<Int32>
  let out: UnsafeMutableRawPointer  // [rows,H] of the type

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (first, rows) = blocks[block]
    for row in rows {
      type.fromFloats(
        tokens + Int(tokenOfRow[row]) * hidden, hidden, out + first * hidden * 4, (row - first) * hidden, kernels)
    }
  }
}

private struct WidenRows: Job {
  let kernels: UnsafePointer<moei_kernels>
  let type: ElementType
  let hidden: Int
  let blocks: PieceBlocks
  let landing: UnsafeRawPointer  // [count,H] of the type
  let rows: UnsafeMutablePointer<Float>  // [count,H]

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (first, range) = blocks[block]
    let start = range.lowerBound * hidden
    type.toFloats(
      landing + first * hidden * 4, start - first * hidden, range.count * hidden, rows + start, kernels)
  }
}

private struct PackRows: Job {
  let hidden: Int
  let blocks: PieceBlocks
  let rows: UnsafePointer<Float>  // [count, padded H] by expert
  let rowOfPair: UnsafePointer<Int32>
  let out: UnsafeMutableRawPointer  // [count,H] as they came

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for place in blocks[block].rows {
      (out + place * hidden * 4).copyMemory(
        from: rows + Int(rowOfPair[place]) * padded(hidden), byteCount: hidden * 4)
    }
  }
}

/// Slices of a row are added up in their order.
private struct UnpackRows: Job {
  let kernels: UnsafePointer<moei_kernels>
  let hidden: Int
  let own: Int
  let slices: Int
  let blocks: PieceBlocks
  let out: UnsafeRawPointer  // [own,H], with slices [1 + slices,own,H]
  let rows: UnsafeMutablePointer<Float>  // [own, padded H]

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let out = out.assumingMemoryBound(to: Float.self)
    for row in blocks[block].rows {
      let to = rows + row * padded(hidden)
      to.update(from: out + ((slices == 0 ? 0 : own) + row) * hidden, count: hidden)
      for slice in 1..<max(slices, 1) {
        kernels.pointee.add(Int64(hidden), out + ((1 + slice) * own + row) * hidden, to)
      }
    }
  }
}

extension Ranks {
  /// How many rows go where, from what the ranks have told of their choices; keeps those of this rank's experts. Rows of hot ones go
  /// nowhere.
  mutating func takeCounts(_ dispatch: Dispatch, experts all: Int) {
    for other in 0..<size {
      let theirs = words(of: other, all)
      for e in experts {
        counts[other * experts.count + e - experts.lowerBound] =
          hot.contains(e) ? 0 : Int32(truncatingIfNeeded: theirs[e])
      }
    }
    setRows(dispatch, counts)
  }

  /// At most so many rows, while memory is measured.
  mutating func setRows(sent: Int, owned: Int) {
    rowsTo.update(repeating: 0, count: size)
    rowsFrom.update(repeating: 0, count: size)
    (rowsTo[rank], rowsFrom[rank]) = (sent, owned)
  }

  /// Rows of this rank's tokens, and those of its experts.
  var rowsSent: Int { placement.strategy == .sliced ? rowsTo[rank] : sum(rowsTo) }
  var rowsOwned: Int { sum(rowsFrom) }
  private func sum(_ rows: UnsafePointer<Int>) -> Int {
    var sum = 0
    for other in 0..<size { sum += rows[other] }
    return sum
  }

  /// The same from counts [ranks, experts of this rank] that a tape has kept.
  mutating func setRows(_ dispatch: Dispatch, _ counts: UnsafePointer<Int32>) {
    for other in 0..<size {
      let theirs = placement.experts(of: other)
      let (first, end) = (hot.cold(before: theirs.lowerBound), hot.cold(before: theirs.upperBound))
      rowsTo[other] = Int(dispatch.offsets[end] - dispatch.offsets[first])
      rowsFrom[other] = 0
      for i in 0..<experts.count { rowsFrom[other] += Int(counts[other * experts.count + i]) }
    }
  }
}

extension Configuration {
  /// How rows of x travel: as bfloat16 where that loses nothing, since it is what they are, or what every expert makes of them.
  func typeOfRows(over ranks: RanksPointer? = nil, _ prepared: PreparedGroups, training: Bool) -> ElementType {
    let isJittered = training && exploration.jitterExperts && exploration.jitter > 0
    if tokens == .bf16 && !isJittered { return .bf16 }
    if weightOnInput { return .f32 }
    for index in groupsSpread(over: ranks).range {
      let group = groups[index]
      let precision = prepared.of(group)?.forms.precision ?? group.weights.format.precision
      if !group.multiplies || precision != .bf16 { return .f32 }
    }
    return .bf16
  }

  /// Whether experts that are spread draw random numbers for pairs.
  func dropsInner(_ draws: Draws, over ranks: RanksPointer) -> Bool {
    if !draws.training { return false }
    return groupsSpread(over: ranks).range.contains { groups[$0].multiplies && groups[$0].dropout > 0 }
  }
}
