import CShims

/// A tensor whose parts lie on several ranks, one behind the other in each of its rows, on its way between them and the file of one
/// process. Rank 0 writes it, in pieces: no rank ever has all of it.
struct SpreadTensor {
  let ranks: RanksPointer
  let context: ContextPointer
  let memory: UnsafeMutableRawPointer  // [rows, own]
  let rows: Int
  // Bytes of a row: those here, those of the ranks before, and all.
  let own: Int
  let first: Int
  let all: Int

  private static var piece: Int { 1 << 20 }

  /// On rank 0, while the others `send`.
  func write(to output: inout FileOutput) throws(Fault) {
    let memory = try agree()
    var failed: Fault?
    for row in 0..<rows {
      for other in 0..<ranks.pointee.size {
        if other == ranks.pointee.rank {
          attempt(&failed) { () throws(Fault) in try output.write(self.memory + row * own, count: own) }
          continue
        }
        var left = Int(ranks.pointee.words(of: other, SpreadTensor.words)[0])
        while left > 0 {
          let bytes = min(left, Self.piece)
          try ranks.pointee.receive(memory, bytes: bytes, from: other)
          attempt(&failed) { () throws(Fault) in try output.write(memory, count: bytes) }
          left -= bytes
        }
      }
    }
    if let failed { throw failed }
  }

  /// On the others.
  func send() throws(Fault) {
    _ = try agree()
    for row in 0..<rows {
      for start in stride(from: 0, to: own, by: Self.piece) {
        try ranks.pointee.send(memory + row * own + start, bytes: min(Self.piece, own - start), to: 0)
      }
    }
  }

  /// Words of every agreement of such a call.
  static var words: Int { 1 }

  /// Every rank tells how much of a row it has; returns memory for a piece.
  private func agree() throws(Fault) -> UnsafeMutableRawPointer {
    let memory = try ranks.room(context.pointee.allocator) { $0.take(UInt8.self, Self.piece) }
    ranks.pointee.words[0] = Int64(own)
    try ranks.pointee.agree(Self.words, nil, next: Self.words)
    return UnsafeMutableRawPointer(memory)
  }

  /// From a file of one process.
  func read(_ stored: StoredTensor, from checkpoint: Checkpoint) throws(Fault) {
    let input = checkpoint.input(stored.file)
    for row in 0..<rows {
      let error = input.read(stored.offset + row * all + first, own, to: memory + row * own)
      if error != 0 { throw .io("reading a tensor", input.descriptor, error) }
    }
  }
}

extension Layer {
  /// Of a parameter of experts that are spread: how many experts all ranks have in it, and the number of the first that is here.
  func spreadExperts(_ index: Int) -> (all: Int, first: Int)? {
    guard let ranks, ranks.pointee.placement.strategy == .exclusive else { return nil }
    let (role, number) = parameters.place(index)
    let group = configuration.groups[number]
    if !role.isOfGroup || group.isShared { return nil }
    return (ranks.pointee.placement.whole(group).experts, ranks.pointee.owned(inGroup: number).lowerBound)
  }
}

/// Which tensors of optimisers are spread over ranks.
struct SpreadState {
  let ranks: RanksPointer
  private let flags: UnsafePointer<UInt8>?  // [tensors of all optimisers, one optimiser behind the other]
  private let extents: UnsafeMutablePointer<(all: Int, first: Int)>  // [as many] elements of a row

  init(_ arena: inout Arena, _ ranks: RanksPointer, _ flags: UnsafePointer<UInt8>?, tensors: Int) {
    (self.ranks, self.flags) = (ranks, flags)
    extents = arena.take((all: Int, first: Int).self, tensors)
  }

  subscript(number: Int) -> (all: Int, first: Int)? { isSpread(number) ? extents[number] : nil }
  private func isSpread(_ number: Int) -> Bool { flags.map { $0[number] != 0 } ?? false }

  /// Hears how many elements of its tensors all ranks have.
  func share(_ count: (Int) -> Int, tensors: Int) throws(Fault) {
    for number in 0..<tensors where isSpread(number) {
      ranks.pointee.words[0] = Int64(count(number))
      try ranks.pointee.agree(SpreadTensor.words, nil, next: SpreadTensor.words)
      var (all, first) = (0, 0)
      for other in 0..<ranks.pointee.size {
        if other == ranks.pointee.rank { first = all }
        all += Int(ranks.pointee.words(of: other, SpreadTensor.words)[0])
      }
      extents[number] = (all, first)
    }
  }
}
