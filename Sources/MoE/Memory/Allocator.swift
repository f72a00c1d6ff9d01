import CShims

/// Where all memory comes from: the context's callbacks, or malloc. Handles are plain structs in such memory, not
/// Swift objects, because Swift's own allocation traps when memory is short.
public struct Allocator {
  public typealias Allocate = @convention(c) (UnsafeMutableRawPointer?, Int, Int) -> UnsafeMutableRawPointer?
  public typealias Deallocate = @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void

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
    // A caller's allocator is never asked for nothing: what it would return is anyone's guess.
    let size = max(bytes, Self.alignment)
    let memory = custom.map { $0.allocate(user, size, Self.alignment) } ?? moei_allocate(size, Self.alignment)
    guard let memory else { throw .outOfMemory(bytes: bytes) }
    if Int(bitPattern: memory) % Self.alignment != 0 {
      deallocate(memory)
      throw .invalid("alloc returned memory that is not aligned to \(Self.alignment) bytes")
    }
    return memory
  }

  /// Memory for one value, initialised.
  func make<T>(_ value: T) throws(Fault) -> UnsafeMutablePointer<T> {
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
    if let custom { custom.deallocate(user, memory) } else { moei_deallocate(memory) }
  }
}
