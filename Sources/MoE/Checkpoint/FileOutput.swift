import CShims

/// Writes a file piece by piece, beside the place it is for: `commit` puts it there whole, or it is never seen. Without a
/// file it only counts the bytes.
struct FileOutput {
  private(set) var count = 0
  private var file: Int32 = -1
  private var filled = 0
  /// Whether the file has its name, though it may not be known to last.
  private(set) var isInPlace = false
  private let path: UnsafePointer<CChar>
  private let allocator: Allocator
  /// The temporary file's path, then bytes that wait.
  private let memory: UnsafeMutableRawPointer?

  private static var capacity: Int { 1 << 20 }
  private var temporary: UnsafeMutablePointer<CChar> { memory!.assumingMemoryBound(to: CChar.self) }
  private var buffer: UnsafeMutableRawPointer { memory! + Int(MOEI_PATH_SIZE) }

  /// Only counts.
  init(counting allocator: Allocator) {
    self.allocator = allocator
    path = cText("")
    memory = nil
  }

  init(_ path: UnsafePointer<CChar>, allocator: Allocator) throws(Fault) {
    self.path = path
    self.allocator = allocator
    let memory = try allocator.allocate(bytes: Int(MOEI_PATH_SIZE) + Self.capacity)
    let error = moei_file_create(path, memory.assumingMemoryBound(to: CChar.self), Int(MOEI_PATH_SIZE), &file)
    if error != 0 {
      allocator.deallocate(memory)
      throw .io("making a file", path, error)
    }
    self.memory = memory
  }

  mutating func write(_ bytes: UnsafeRawPointer, count more: Int) throws(Fault) {
    count += more
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
    let error = moei_file_write(file, bytes, Int64(count))
    if error != 0 { throw .io("writing a file", path, error) }
  }

  /// Makes the file last, looks at it once more, and gives it its name.
  mutating func commit(_ check: (UnsafePointer<CChar>) throws(Fault) -> Void) throws(Fault) {
    try flush()
    let finished = moei_file_finish(file)
    file = -1
    if finished != 0 { throw .io("writing a file", path, finished) }
    try check(temporary)
    let renamed = moei_file_rename(temporary, path)
    isInPlace = moei_file_exists(temporary) == 0
    if renamed != 0 { throw .io("renaming a file", path, renamed) }
    allocator.deallocate(memory)
  }

  /// In place of `commit`, or after it has failed.
  func abandon() {
    if file >= 0 { _ = moei_file_finish(file) }
    moei_file_remove(temporary)
    allocator.deallocate(memory)
  }
}
