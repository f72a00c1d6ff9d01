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

  /// On rank 0, while the others `send`.
  func write(to output: inout FileOutput) throws(Fault) {
    let memory = try agree()
    var failed: Fault?
    for row in 0..<rows {
      for other in 0..<ranks.pointee.size {
        if other == ranks.pointee.rank {
          attempt(&failed) { () throws(Fault) in try output.write(self.memory + row * own, count: own) }
        } else {
          let bytes = Int(ranks.pointee.words(of: other, SpreadTensor.words)[0])
          try ranks.pass(bytes, from: other, through: memory, to: &output, &failed)
        }
      }
    }
    if let failed { throw failed }
  }

  /// On the others.
  func send() throws(Fault) {
    // A transport that breaks may read what it sends for as long as the process lives, which the exchanges' memory does.
    let piece = try agree()
    for row in 0..<rows {
      for start in stride(from: 0, to: own, by: FileOutput.capacity) {
        let bytes = min(FileOutput.capacity, own - start)
        piece.copyMemory(from: memory + row * own + start, byteCount: bytes)
        try ranks.pointee.send(piece, bytes: bytes, to: 0)
      }
    }
  }

  /// Words of every agreement of such a call.
  static var words: Int { 1 }

  /// Every rank tells how much of a row it has; returns memory for a piece.
  private func agree() throws(Fault) -> UnsafeMutableRawPointer {
    try ranks.agreeOnTensor(own, context.pointee.allocator)
  }

  /// From a file of one process.
  func read(_ stored: StoredTensor, from checkpoint: Checkpoint) throws(Fault) {
    for row in 0..<rows {
      try checkpoint.read(stored, from: row * all + first, count: own, to: memory + row * own)
    }
  }
}

/// A tensor of experts, each of which one rank has, on its way into rank 0's file: their owners send the bytes that they would write.
struct OwnedMatrices {
  let ranks: RanksPointer
  let context: ContextPointer
  let kernels: UnsafePointer<moei_kernels>
  let matrices: FusedMatrices
  let group: Int
  /// Of the group's, on all ranks.
  let experts: Range<Int>

  private func owned(by rank: Int) -> Range<Int> {
    ranks.pointee.placement.owned(by: rank, inGroup: group).clamped(to: experts)
  }
  private var own: OutgoingMatrices {
    let (mine, first) = (owned(by: ranks.pointee.rank), matrices.stored.first)
    return OutgoingMatrices(
      matrices: matrices, experts: mine.lowerBound - first..<mine.upperBound - first, kernels: kernels)
  }

  /// On rank 0, while the others `send`.
  func write(_ type: StoredType, to output: inout FileOutput) throws(Fault) {
    let memory = try ranks.agreeOnTensor(0, context.pointee.allocator)
    var failed: Fault?
    for other in 0..<ranks.pointee.size {
      if other == ranks.pointee.rank {
        attempt(&failed) { () throws(Fault) in try own.write(type, to: &output) }
      } else {
        let bytes = owned(by: other).count * ElementType(type).bytes(matrices.elements)
        try ranks.pass(bytes, from: other, through: memory, to: &output, &failed)
      }
    }
    if let failed { throw failed }
  }

  /// On the others.
  func send(_ type: StoredType) throws(Fault) {
    _ = try ranks.agreeOnTensor(0, context.pointee.allocator)
    var output = try FileOutput(to: ranks, allocator: context.pointee.allocator)
    try own.write(type, to: &output)
    try output.sendRest()
  }
}

/// On the ranks that do not write: sends what the file of rank 0 has of theirs.
func sendTensors<T: OutgoingTensors>(_ tensors: T, in context: ContextPointer) throws(Fault) {
  try visitLargestFirst(tensors) { (tensor) throws(Fault) in
    // Of these alone: behind the last one rank 0 puts its file in the place of what was there, and hears of nobody before.
    switch tensor.contents {
    case .spread(let parts):
      try context.askWhetherToStop()
      try parts.send()
    case .owned(let matrices):
      try context.askWhetherToStop()
      try matrices.send(tensor.type)
    default: return
    }
  }
}

extension UnsafeMutablePointer where Pointee == Ranks {
  /// All have come to a tensor, of a row of which each has so many bytes; returns memory for a piece of it.
  fileprivate func agreeOnTensor(_ bytes: Int, _ allocator: Allocator) throws(Fault) -> UnsafeMutableRawPointer {
    let memory = try room(allocator) { $0.take(UInt8.self, FileOutput.capacity) }
    pointee.words[0] = Int64(bytes)
    try pointee.agree(SpreadTensor.words, nil, next: SpreadTensor.words)
    return UnsafeMutableRawPointer(memory)
  }

  /// So many bytes of another rank go on to a file; all of them are received where that has failed, too.
  fileprivate func pass(
    _ bytes: Int, from other: Int, through memory: UnsafeMutableRawPointer, to output: inout FileOutput,
    _ failed: inout Fault?
  ) throws(Fault) {
    for start in stride(from: 0, to: bytes, by: FileOutput.capacity) {
      let some = min(FileOutput.capacity, bytes - start)
      try pointee.receive(memory, bytes: some, from: other)
      attempt(&failed) { () throws(Fault) in try output.write(memory, count: some) }
    }
  }
}

extension Layer {
  /// Of a parameter of experts that are spread: how many experts all ranks have in it, and the number of the first that is here.
  func spreadExperts(of parameter: Parameter) -> (all: Int, first: Int)? {
    guard let ranks, ranks.pointee.placement.strategy == .exclusive else { return nil }
    let (role, number) = parameters.place(of: parameter)
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

  /// Tells which are spread, and which are not.
  func add(to hash: inout Hash, tensors: Int) { for number in 0..<tensors { hash.add(isSpread(number) ? 1 : 0) } }

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
