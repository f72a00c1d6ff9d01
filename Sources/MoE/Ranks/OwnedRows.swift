import CShims

// Rows on their way: a rank's own go to the owners of their experts in the order of its dispatch, expert by expert, so that those of an
// owner lie together; what the owner makes of them comes back in the same order.

/// The rows that this rank owns the experts of, and the memory of their exchange, for one call.
struct OwnedRows {
  let own: Int  // rows of this rank's tokens, at all owners
  let count: Int  // that have come from all ranks
  let dispatch: Dispatch  // of the latter, over this rank's experts
  let x: UnsafeMutablePointer<Float>  // [count,H]
  let weights: UnsafeMutablePointer<Float>?  // [count]
  let numbers: UnsafeMutablePointer<Int32>?  // [count] of pairs among those of all ranks
  fileprivate let out: UnsafeMutableRawPointer  // [own,H] what is sent, then what comes back
  fileprivate let landing: UnsafeMutableRawPointer  // [count,H] what arrives, then what is sent back
  fileprivate let outWords: UnsafeMutablePointer<Int32>  // [own] weights or numbers
  private let hidden: Int
  private let ranks: RanksPointer

  /// `x`: where the rows of x become floats; nil: where they arrive.
  init(
    _ arena: inout Arena, _ c: Configuration, _ ranks: RanksPointer, x: UnsafeMutablePointer<Float>?,
    sendsWeights: Bool, sendsNumbers: Bool
  ) {
    self.ranks = ranks
    hidden = c.hidden
    (own, count) = (ranks.pointee.rowsSent, ranks.pointee.rowsOwned)
    dispatch = Dispatch(&arena, rows: count, experts: ranks.pointee.experts.count)
    out = UnsafeMutableRawPointer(arena.take(Float.self, own, c.hidden))
    let landing = arena.take(Float.self, count, c.hidden)
    self.landing = UnsafeMutableRawPointer(landing)
    self.x = x ?? landing
    weights = sendsWeights ? arena.take(Float.self, count) : nil
    numbers = sendsNumbers ? arena.take(Int32.self, count) : nil
    outWords = arena.take(Int32.self, sendsWeights || sendsNumbers ? own : 0)
  }

  /// Rows of `tokens` [T,H] to the owners, where they become `rows` [count,H].
  func bring(
    _ tokens: UnsafePointer<Float>, _ dispatch: Dispatch, as type: ElementType, to rows: UnsafeMutablePointer<Float>,
    _ failed: inout Fault?, in context: ContextPointer
  ) throws(Fault) {
    attempt(&failed) { () throws(Fault) in
      try context.run(
        blocks(of: own),
        PackTokens(
          kernels: context.kernels, type: type, hidden: hidden, rows: own, tokens: tokens,
          tokenOfRow: dispatch.tokenOfRow, out: out))
    }
    try ranks.pointee.move(out, to: landing, bytesOfOne: type.bytes(hidden), back: false)
    if UnsafeMutableRawPointer(rows) == landing { return }
    attempt(&failed) { () throws(Fault) in
      try context.run(
        blocks(of: count),
        WidenRows(
          kernels: context.kernels, type: type, hidden: hidden, count: count, landing: landing, rows: rows))
    }
  }

  /// The routing weights of the rows, and their pairs' numbers, where the owners want them.
  func bringWords(_ dispatch: Dispatch) throws(Fault) {
    if let weights {
      UnsafeMutableRawPointer(outWords).copyMemory(from: dispatch.weightOfRow, byteCount: own * 4)
      try ranks.pointee.move(outWords, to: weights, bytesOfOne: 4, back: false)
    }
    if let numbers {
      outWords.update(from: dispatch.pairOfRow, count: own)
      try ranks.pointee.move(outWords, to: numbers, bytesOfOne: 4, back: false)
    }
  }

  /// The rows that have come, by expert: `counts` [ranks, experts of this rank] of them.
  func group(_ counts: UnsafePointer<Int32>, ranks: Int) {
    dispatch.group(counts, ranks: ranks, weights: weights.map { UnsafePointer($0) })
  }

  /// What the owners have made of the rows, `made` [count, padded H] in the order of their dispatch, comes back to `rows`
  /// [own, padded H].
  func takeBack(
    _ made: UnsafePointer<Float>, to rows: UnsafeMutablePointer<Float>, _ failed: inout Fault?,
    in context: ContextPointer
  ) throws(Fault) {
    attempt(&failed) { () throws(Fault) in
      try context.run(
        blocks(of: count),
        PackRows(hidden: hidden, count: count, rows: made, rowOfPair: dispatch.rowOfPair, out: landing))
    }
    try ranks.pointee.move(landing, to: out, bytesOfOne: hidden * 4, back: true)
    attempt(&failed) { () throws(Fault) in
      try context.run(blocks(of: own), UnpackRows(hidden: hidden, count: own, out: out, rows: rows))
    }
  }

  /// One number for each row, `made` [count] in the order in which they came, comes back to this memory [own].
  func takeBack(_ made: UnsafePointer<Float>) throws(Fault) -> UnsafePointer<Float> {
    try ranks.pointee.move(made, to: outWords, bytesOfOne: 4, back: true)
    return UnsafeRawPointer(outWords).assumingMemoryBound(to: Float.self)
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
  let rows: Int
  let tokens: UnsafePointer<Float>  // [T,H]
  let tokenOfRow: UnsafePointer<Int32>
  let out: UnsafeMutableRawPointer  // [rows,H] of the type

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for row in MoE.rows(ofBlock: block, in: rows) {
      type.fromFloats(tokens + Int(tokenOfRow[row]) * hidden, hidden, out, row * hidden, kernels)
    }
  }
}

private struct WidenRows: Job {
  let kernels: UnsafePointer<moei_kernels>
  let type: ElementType
  let hidden: Int
  let count: Int
  let landing: UnsafeRawPointer  // [count,H] of the type
  let rows: UnsafeMutablePointer<Float>  // [count,H]

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = MoE.rows(ofBlock: block, in: count)
    let first = range.lowerBound * hidden
    type.toFloats(landing, first, range.count * hidden, rows + first, kernels)
  }
}

private struct PackRows: Job {
  let hidden: Int
  let count: Int
  let rows: UnsafePointer<Float>  // [count, padded H] by expert
  let rowOfPair: UnsafePointer<Int32>
  let out: UnsafeMutableRawPointer  // [count,H] as they came

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for place in MoE.rows(ofBlock: block, in: count) {
      (out + place * hidden * 4).copyMemory(
        from: rows + Int(rowOfPair[place]) * padded(hidden), byteCount: hidden * 4)
    }
  }
}

private struct UnpackRows: Job {
  let hidden: Int
  let count: Int
  let out: UnsafeRawPointer  // [count,H]
  let rows: UnsafeMutablePointer<Float>  // [count, padded H]

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for row in MoE.rows(ofBlock: block, in: count) {
      UnsafeMutableRawPointer(rows + row * padded(hidden)).copyMemory(
        from: out + row * hidden * 4, byteCount: hidden * 4)
    }
  }
}

extension Ranks {
  /// How many rows go where, from what the ranks have told of their choices; keeps those of this rank's experts.
  mutating func takeCounts(_ dispatch: Dispatch, experts all: Int) {
    for other in 0..<size {
      let theirs = words(of: other, all)
      for e in experts { counts[other * experts.count + e - experts.lowerBound] = Int32(truncatingIfNeeded: theirs[e]) }
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
  var rowsSent: Int { sum(rowsTo) }
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
      rowsTo[other] = Int(dispatch.offsets[theirs.upperBound] - dispatch.offsets[theirs.lowerBound])
      rowsFrom[other] = 0
      for i in 0..<experts.count { rowsFrom[other] += Int(counts[other * experts.count + i]) }
    }
  }
}

extension Configuration {
  /// How rows of x travel: as bfloat16 where that loses nothing, since it is what they are, or what every expert makes of them.
  func typeOfRows(_ prepared: PreparedGroups, training: Bool) -> ElementType {
    let isJittered = training && exploration.jitterExperts && exploration.jitter > 0
    if tokens == .bf16 && !isJittered { return .bf16 }
    if weightOnInput { return .f32 }
    for index in groupsSpread.range {
      let group = groups[index]
      let precision = prepared.of(group)?.forms.precision ?? group.weights.format.precision
      if !group.multiplies || precision != .bf16 { return .f32 }
    }
    return .bf16
  }

  /// Whether experts that are spread draw random numbers for pairs.
  func dropsInner(_ draws: Draws) -> Bool {
    if !draws.training { return false }
    for index in groupsSpread.range where groups[index].multiplies && groups[index].dropout > 0 { return true }
    return false
  }
}
