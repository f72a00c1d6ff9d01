/// Memory that lives within a call. The context keeps one block for the next call, so that a training loop asks the
/// system once; calls that run at the same time bring their own.
struct Scratch {
  let memory: UnsafeMutableRawPointer
  let bytes: Int
}

struct ScratchCache {
  private var lock = Lock()
  private var kept: Scratch?

  /// At least `bytes` bytes. Give it back with `put`.
  mutating func take(_ bytes: Int, from allocator: Allocator) throws(Fault) -> Scratch {
    lock.acquire()
    let found = kept
    kept = nil
    lock.release()
    if let found {
      if found.bytes >= bytes { return found }
      // Freed first: the old and the new block need not exist at once.
      allocator.deallocate(found.memory)
    }
    return Scratch(memory: try allocator.allocate(bytes: bytes), bytes: bytes)
  }

  /// Keeps the larger of the block and what is kept already.
  mutating func put(_ scratch: Scratch, allocator: Allocator) {
    lock.acquire()
    var surplus: Scratch? = scratch
    if (kept?.bytes ?? -1) < scratch.bytes {
      surplus = kept
      kept = scratch
    }
    lock.release()
    allocator.deallocate(surplus?.memory)
  }

  func free(allocator: Allocator) { allocator.deallocate(kept?.memory) }
}
