import CShims

// Where tokens stand. Padding counts for nothing: a sequence has the positions that it has alone, wherever its padding is.

extension ModelConfiguration {
  /// Whether anything depends on positions.
  public var placesTokens: Bool { positions > 0 || rotaryCount > 0 || temperature != nil }
}

extension ModelInput {
  func isValid(_ t: Int) -> Bool { validMask.map { $0[t] != 0 } ?? true }

  /// Whether positions are counted over real tokens, instead of being t % S.
  func countsPositions(_ c: ModelConfiguration) -> Bool {
    positions == nil && (validMask != nil || known != nil) && c.placesTokens
  }

  /// This call with the positions it has, written into `memory` [B,S] where they are counted: a real token has that many
  /// real ones before it; padding, whose position is nobody's business, follows the real one before it.
  func placed(in memory: UnsafeMutablePointer<Int64>?, _ c: ModelConfiguration) -> ModelInput {
    guard let memory else { return self }
    let last = c.positions > 0 ? c.positions - 1 : Int(Int32.max)
    for sequence in 0..<sequences {
      var real = known?[sequence] ?? 0
      var next = real
      for t in sequence * length..<(sequence + 1) * length {
        if isValid(t) {
          next = real
          real += 1
        }
        memory[t] = Int64(min(next, last))
        next += 1
      }
    }
    var own = self
    own.positions = UnsafePointer(memory)
    return own
  }

  /// Of a sequence's real tokens, or of all that its cache has room for.
  func greatestPosition(_ sequence: Int) -> Int {
    if let capacity { return capacity - 1 }
    guard let positions else { return length - 1 }
    var greatest = 0
    for t in sequence * length..<(sequence + 1) * length where isValid(t) {
      greatest = max(greatest, Int(positions[t]))
    }
    return greatest
  }

  /// Real tokens of a sequence.
  public func count(ofSequence sequence: Int) -> Int {
    var count = 0
    for t in sequence * length..<(sequence + 1) * length where isValid(t) { count += 1 }
    return count
  }

  /// Rows of padding that are not finite become 0: times a weight or a gradient of 0 they would be no number.
  func clearOddPadding(_ rows: UnsafeMutablePointer<Float>, width: Int, _ kernels: UnsafePointer<moei_kernels>) {
    guard validMask != nil else { return }
    for t in 0..<tokens where !isValid(t) && !kernels.pointee.sum(Int64(width), rows + t * width).isFinite {
      (rows + t * width).update(repeating: 0, count: width)
    }
  }

  /// Stretches of real tokens of a sequence, ascending; numbers are those within the sequence.
  func forEachRun(ofSequence sequence: Int, _ body: (Range<Int>) throws(Fault) -> Void) throws(Fault) {
    var first = 0
    while first < length {
      let start = sequence * length
      if !isValid(start + first) {
        first += 1
        continue
      }
      var end = first + 1
      while end < length && isValid(start + end) { end += 1 }
      try body(first..<end)
      first = end
    }
  }
}
