/// Cuts one block of memory into arrays. The same code runs twice: first without memory, to learn how much is needed,
/// then over the block itself. So what was promised and what is used cannot differ.
struct Arena {
  private let start: UnsafeMutableRawPointer?
  private(set) var bytes = 0
  private var overflow = false

  /// Only measures. The arrays it hands out must not be touched.
  init() { start = nil }

  init(_ memory: UnsafeMutableRawPointer) { start = memory }

  /// Whether there is no memory yet.
  var isMeasuring: Bool { start == nil }

  mutating func take<T>(_ type: T.Type, _ rows: Int, _ columns: Int = 1) -> UnsafeMutablePointer<T> {
    let (count, tooMany) = rows.multipliedReportingOverflow(by: columns)
    let (size, tooLarge) = count.multipliedReportingOverflow(by: MemoryLayout<T>.stride)
    let (padded, overPadding) = size.addingReportingOverflow(Allocator.alignment - 1)
    let (end, overEnd) = bytes.addingReportingOverflow(padded & ~(Allocator.alignment - 1))
    let place = bytes
    if tooMany || tooLarge || overPadding || overEnd { overflow = true } else { bytes = end }
    // While measuring, any address that is not nil will do.
    let memory = start.map { $0 + place } ?? UnsafeMutableRawPointer(bitPattern: Allocator.alignment)!
    return memory.bindMemory(to: T.self, capacity: count)
  }

  /// What a layout takes. All stages of a call together are several kilobytes, so they are measured in a frame of their own
  /// (never inlined), which the stack holds no longer when they run.
  @inline(never) static func bytes<Parts>(of layout: (inout Arena) -> Parts) throws(Fault) -> Int {
    var measure = Arena()
    _ = layout(&measure)
    return try measure.total()
  }

  /// Takes what a copy of this arena took further on: several such copies share the same memory, one after the other.
  mutating func cover(_ copy: Arena) {
    bytes = max(bytes, copy.bytes)
    overflow = overflow || copy.overflow
  }

  /// Takes what a stage takes that begins at `start`, in the memory of others that do: so a stage may be made when it is run.
  mutating func cover(from start: Arena, _ stage: (inout Arena) -> Void) {
    var own = start
    stage(&own)
    cover(own)
  }

  /// Takes as much as `other` did.
  mutating func cover(after other: Arena) {
    let (end, tooMany) = bytes.addingReportingOverflow(other.bytes)
    if tooMany || other.overflow { overflow = true } else { bytes = end }
  }

  /// Leaves some bytes out, which another arena has counted.
  mutating func skip(_ bytes: Int, times: Int = 1) {
    let (all, tooLarge) = bytes.multipliedReportingOverflow(by: times)
    let (end, tooMany) = self.bytes.addingReportingOverflow(all)
    if tooLarge || tooMany { overflow = true } else { self.bytes = end }
  }

  /// Bytes taken, or an error when no address space could hold them.
  func total() throws(Fault) -> Int {
    if overflow { throw .outOfMemory(bytes: .max) }
    return bytes
  }
}
