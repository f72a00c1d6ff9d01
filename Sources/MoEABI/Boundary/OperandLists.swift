import MoE

// Lists of arrays: tensors, parameters, the reports of a model's layers. Sorted by address, neighbours tell all overlaps,
// so that a list of n takes n log n.

/// Hands over every operand, the same ones in the same order each time.
protocol OperandList {
  func visit(_ body: (Operand) -> Void)
}

extension Operands {
  /// Refuses a list in which two share memory and either is written, or one does with these. The scratch of `context` holds
  /// a list of more than a few while it is sorted.
  func requireApart<L: OperandList>(_ list: L, in context: ContextPointer) throws(Fault) {
    var count = 0
    list.visit { if $0.bytes > 0 { count += 1 } }
    if count <= SortedOperands.few {
      var room = InlineArray<32, Operand>(repeating: Operand())
      try withUnsafeMutablePointer(to: &room) { (room) throws(Fault) in
        try requireApart(list, UnsafeMutableRawPointer(room).assumingMemoryBound(to: Operand.self), count)
      }
    } else {
      try context.withScratch(count * MemoryLayout<Operand>.stride) { (memory) throws(Fault) in
        try requireApart(list, memory.bindMemory(to: Operand.self, capacity: count), count)
      }
    }
  }

  private func requireApart<L: OperandList>(
    _ list: L, _ room: UnsafeMutablePointer<Operand>, _ count: Int
  ) throws(Fault) {
    var place = 0
    list.visit { operand in
      if operand.bytes == 0 || place == count { return }
      (room + place).initialize(to: operand)
      place += 1
    }
    for i in 0..<place {
      try room[i].requireAligned()
      try requireApart(from: room[i])
    }
    try SortedOperands(room, place).check()
  }
}

private struct SortedOperands {
  static var few: Int { 32 }
  private let operands: UnsafeMutablePointer<Operand>
  private let count: Int

  init(_ operands: UnsafeMutablePointer<Operand>, _ count: Int) {
    (self.operands, self.count) = (operands, count)
    heapSort(
      count, isLess: { operands[$0].start < operands[$1].start },
      exchange: { (a, b) in (operands[a], operands[b]) = (operands[b], operands[a]) })
  }

  /// Whatever overlaps an operand and begins before it reaches beyond its begin; so does then what reaches furthest. Only rows that take
  /// turns with that may collide with another one.
  func check() throws(Fault) {
    var (furthest, furthestWritten) = (0, -1)
    for i in 0..<count {
      if i > 0 {
        let before = operands[i].writes ? furthest : furthestWritten
        if before >= 0 && operands[before].collides(with: operands[i]) {
          throw .collision(operands[i], operands[before])
        }
        if before >= 0 && operands[i].hasGaps {
          for j in 0..<i where operands[j].collides(with: operands[i]) { throw .collision(operands[i], operands[j]) }
        }
        if operands[i].end > operands[furthest].end { furthest = i }
      }
      if operands[i].writes && (furthestWritten < 0 || operands[i].end > operands[furthestWritten].end) {
        furthestWritten = i
      }
    }
  }
}
