/// Memory that lives within a call. The context keeps one block for the next call, so that a training loop asks the
/// system once; calls that run at the same time bring their own.
struct Scratch {
  let memory: UnsafeMutableRawPointer
  let bytes: Int
}

/// Memory that the caller lends for a call.
public struct CallerMemory {
  public let memory: UnsafeMutableRawPointer
  public let bytes: Int

  public init(_ memory: UnsafeMutableRawPointer, bytes: Int) {
    self.memory = memory
    self.bytes = bytes
  }
}

struct ScratchCache {
  private let lock: Lock
  private let kept: UnsafeMutablePointer<Scratch?>

  init(_ arena: inout Arena) {
    lock = Lock(&arena)
    kept = arena.take(Scratch?.self, 1)
  }

  /// Once, before the first use.
  func initialise() {
    lock.initialise()
    kept.initialize(to: nil)
  }

  // In a process that was forked while another thread held the lock, nothing is kept: calls bring their own.

  /// At least `bytes` bytes. Give it back with `put`.
  func take(_ bytes: Int, from allocator: Allocator) throws(Fault) -> Scratch {
    var found: Scratch?
    if lock.acquire() {
      found = kept.pointee
      kept.pointee = nil
      lock.release()
    }
    if let found {
      if found.bytes >= bytes { return found }
      // Freed first: the old and the new block need not exist at once.
      allocator.deallocate(found.memory)
    }
    return Scratch(memory: try allocator.allocate(bytes: bytes), bytes: bytes)
  }

  /// Keeps the larger of the block and what is kept already.
  func put(_ scratch: Scratch, allocator: Allocator) {
    var surplus: Scratch? = scratch
    if lock.acquire() {
      if (kept.pointee?.bytes ?? -1) < scratch.bytes {
        surplus = kept.pointee
        kept.pointee = scratch
      }
      lock.release()
    }
    allocator.deallocate(surplus?.memory)
  }

  func free(allocator: Allocator) {
    if lock.acquire() { allocator.deallocate(kept.pointee?.memory) }
  }
}
