import CShims

/// Writes a file piece by piece, beside the place it is for: `commit` puts it there whole, or it is never seen. Without a
/// file it only counts the bytes.
struct FileOutput {
  private(set) var count = 0
  private var filled = 0
  /// Whether the file has its name, though it may not last.
  private(set) var isInPlace = false
  private let path: UnsafePointer<CChar>
  private let allocator: Allocator
  /// The file, then bytes that wait.
  private let memory: UnsafeMutablePointer<moei_output>?

  private static var capacity: Int { 1 << 20 }
  private var buffer: UnsafeMutableRawPointer { UnsafeMutableRawPointer(memory! + 1) }

  /// Only counts.
  init(counting allocator: Allocator) {
    self.allocator = allocator
    path = cText("")
    memory = nil
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
    self.memory = memory
  }

  mutating func write(_ bytes: UnsafeRawPointer, count more: Int) throws(Fault) {
    let (sum, overflow) = count.addingReportingOverflow(more)
    if overflow { throw .invalid("the file would have more than 2^63 bytes: \(path)") }
    count = sum
    if memory == nil { return }
    if more > Self.capacity - filled { try flush() }
    if more > Self.capacity { return try put(bytes, more) }
    buffer.advanced(by: filled).copyMemory(from: bytes, byteCount: more)
    filled += more
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
    try put(buffer, bytes)
  }

  private func put(_ bytes: UnsafeRawPointer, _ count: Int) throws(Fault) {
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
