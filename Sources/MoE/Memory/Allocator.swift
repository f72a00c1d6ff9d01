import CShims

/// Where all memory comes from: the context's callbacks, or malloc. Handles are plain structs in such memory, not
/// Swift objects, because Swift's own allocation traps when memory is short.
public struct Allocator {
  public typealias Allocate = @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> UnsafeMutableRawPointer?
  public typealias Deallocate = @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void

  /// Bytes handed out and not given back, and the most there have been; nil before the context that counts them is there.
  private var counts: UnsafeMutablePointer<Int64>?
  private let custom: (allocate: Allocate, deallocate: Deallocate)?
  private let user: UnsafeMutableRawPointer?

  /// A cache line, and the widest vector.
  static let alignment = 64

  public init() {
    custom = nil
    user = nil
  }

  public init(allocate: Allocate, deallocate: Deallocate, user: UnsafeMutableRawPointer?) {
    custom = (allocate, deallocate)
    self.user = user
  }

  func allocate(bytes: Int) throws(Fault) -> UnsafeMutableRawPointer {
    // In front of the block stands its size, for the count.
    let (size, tooLarge) = bytes.addingReportingOverflow(Self.alignment)
    if tooLarge { throw .outOfMemory(bytes: bytes) }
    let memory = custom.map { $0.allocate(user, size, Self.alignment) } ?? moei_allocate(size, Self.alignment)
    guard let memory else { throw .outOfMemory(bytes: bytes) }
    if Int(bitPattern: memory) % Self.alignment != 0 {
      release(memory)
      throw .invalid("alloc returned memory that is not aligned to \(Self.alignment) bytes")
    }
    memory.storeBytes(of: bytes, as: Int.self)
    if let counts {
      let now = moei_fetch_add64(counts, Int64(bytes)) + Int64(bytes)
      moei_raise64(counts + 1, now)
    }
    return memory + Self.alignment
  }

  /// A copy that counts what it hands out. The block that holds the counts is not among it.
  func counting(in counts: UnsafeMutablePointer<Int64>) -> Allocator {
    counts.initialize(repeating: 0, count: 2)
    var own = self
    own.counts = counts
    return own
  }

  /// A copy that does not count, for what is the context's own.
  var uncounted: Allocator {
    var own = self
    own.counts = nil
    return own
  }

  var inUse: (current: Int, peak: Int) {
    guard let counts else { return (0, 0) }
    return (Int(moei_fetch_add64(counts, 0)), Int(moei_fetch_add64(counts + 1, 0)))
  }

  /// What `layout` cuts out of new memory, which begins with what it takes first.
  func make<Parts>(_ layout: (inout Arena) -> Parts) throws(Fault) -> Parts {
    var arena = Arena(try allocate(bytes: try Arena.bytes(of: layout)))
    return layout(&arena)
  }

  /// Puts a value into memory of its own.
  func place<T>(_ value: T) throws(Fault) -> UnsafeMutablePointer<T> {
    let memory = try allocate(bytes: MemoryLayout<T>.size).bindMemory(to: T.self, capacity: 1)
    memory.initialize(to: value)
    return memory
  }

  func allocate<T>(_ type: T.Type, count: Int) throws(Fault) -> UnsafeMutablePointer<T> {
    let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<T>.stride)
    if overflow { throw .outOfMemory(bytes: .max) }
    return try allocate(bytes: bytes).bindMemory(to: T.self, capacity: count)
  }

  func deallocate(_ memory: UnsafeMutableRawPointer?) {
    guard let memory else { return }
    let start = memory - Self.alignment
    if let counts { _ = moei_fetch_add64(counts, -Int64(start.load(as: Int.self))) }
    release(start)
  }

  private func release(_ start: UnsafeMutableRawPointer) {
    if let custom { custom.deallocate(user, start) } else { moei_deallocate(start) }
  }
}
