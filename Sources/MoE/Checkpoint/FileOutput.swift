import CShims

/// Writes a file piece by piece, beside the place it is for: `commit` puts it there whole, or it is never seen. Without a
/// file it only counts the bytes, or sends them to the rank that has the file.
struct FileOutput {
  private(set) var count = 0
  private var filled = 0
  /// Whether the file has its name, though it may not last.
  private(set) var isInPlace = false
  private let path: UnsafePointer<CChar>
  private let allocator: Allocator
  /// The file, then bytes that wait.
  private let memory: UnsafeMutablePointer<moei_output>?
  /// Bytes that wait; nil where they are only counted.
  private let buffer: UnsafeMutableRawPointer?
  /// Of whom rank 0 has the file; nil where it is here.
  private let ranks: RanksPointer?

  /// Also of a piece that is sent.
  static var capacity: Int { 1 << 20 }

  /// Only counts.
  init(counting allocator: Allocator) {
    self.allocator = allocator
    path = cText("")
    (memory, buffer, ranks) = (nil, nil, nil)
  }

  /// Sends to rank 0 by pieces, the last one with `sendRest`. What waits is in memory of the ranks, since a transport may read it after an
  /// error.
  init(to ranks: RanksPointer, allocator: Allocator) throws(Fault) {
    (self.allocator, self.ranks) = (allocator, ranks)
    path = cText("")
    memory = nil
    buffer = UnsafeMutableRawPointer(try ranks.room(allocator) { $0.take(UInt8.self, Self.capacity) })
  }

  /// `like`: a file whose mode and owner a new one gets.
  init(_ path: UnsafePointer<CChar>, like: UnsafePointer<CChar>?, allocator: Allocator) throws(Fault) {
    self.path = path
    self.allocator = allocator
    let block = try allocator.allocate(bytes: MemoryLayout<moei_output>.stride + Self.capacity)
    let memory = block.bindMemory(to: moei_output.self, capacity: 1)
    let error = moei_output_open(path, like, memory)
    if error != 0 {
      allocator.deallocate(block)
      throw .io("making a file", path, error)
    }
    (self.memory, buffer, ranks) = (memory, UnsafeMutableRawPointer(memory + 1), nil)
  }

  mutating func write(_ bytes: UnsafeRawPointer, count more: Int) throws(Fault) {
    let (sum, overflow) = count.addingReportingOverflow(more)
    if overflow { throw .invalid("the file would have more than 2^63 bytes: \(path)") }
    count = sum
    guard let buffer else { return }
    if ranks == nil {
      if more > Self.capacity - filled { try flush() }
      if more > Self.capacity { return try put(bytes, more) }
    }
    // Pieces that are sent are full, as rank 0 expects them.
    var (bytes, left) = (bytes, more)
    while left > 0 {
      if filled == Self.capacity { try flush() }
      let some = min(left, Self.capacity - filled)
      (buffer + filled).copyMemory(from: bytes, byteCount: some)
      (bytes, left, filled) = (bytes + some, left - some, filled + some)
    }
  }

  mutating func write(_ byte: UInt8) throws(Fault) {
    var byte = byte
    try write(&byte, count: 1)
  }

  mutating func write(_ text: StaticString) throws(Fault) {
    try write(text.utf8Start, count: text.utf8CodeUnitCount)
  }

  mutating func write(_ number: Int) throws(Fault) {
    var divisor = 1
    while number / divisor >= 10 { divisor *= 10 }
    while divisor > 0 {
      try write(UInt8(ascii: "0") + UInt8(number / divisor % 10))
      divisor /= 10
    }
  }

  private mutating func flush() throws(Fault) {
    let bytes = filled
    filled = 0
    try put(buffer!, bytes)
  }

  mutating func sendRest() throws(Fault) { if filled > 0 { try flush() } }

  private func put(_ bytes: UnsafeRawPointer, _ count: Int) throws(Fault) {
    if let ranks { return try ranks.pointee.send(bytes, bytes: count, to: 0) }
    let error = moei_output_write(memory!, bytes, Int64(count))
    if error != 0 { throw .io("writing a file", path, error) }
  }

  /// Makes the file last, looks at it once more, and gives it its name. `check` gets a descriptor.
  mutating func commit(_ check: (Int32) throws(Fault) -> Void) throws(Fault) {
    try flush()
    let synced = moei_output_sync(memory!)
    if synced != 0 { throw .io("writing a file", path, synced) }
    try check(memory!.pointee.file)
    let placed = moei_output_place(memory!)
    isInPlace = placed == 0 || placed == Int32(MOEI_FILE_NOT_LASTING)
    if placed != 0 { throw .io("replacing a file", path, placed) }
  }

  /// After `commit`; or in its place, and then nothing is left over.
  func close() {
    guard let memory else { return }
    moei_output_close(memory)
    allocator.deallocate(memory)
  }
}
