import CShims

// Words that several threads read and change at the same time. They lie in plain memory behind a pointer, each on a cache
// line of its own, because a Swift variable has one writer at a time.

struct SharedWord {
  private let address: UnsafeMutablePointer<Int32>

  /// Takes the place; `set` gives it its first value.
  init(_ arena: inout Arena) { address = arena.take(Int32.self, 1) }
  init(at address: UnsafeMutablePointer<Int32>) { self.address = address }

  var value: Int32 { moei_load(address) }
  func set(_ value: Int32) { moei_store(address, value) }
  /// The new value.
  func add(_ difference: Int32) -> Int32 { moei_add(address, difference) }
  /// The old value.
  func exchange(_ value: Int32) -> Int32 { moei_exchange(address, value) }
  /// Whether it was `expected` and is now `value`.
  func change(_ expected: Int32, to value: Int32) -> Bool { moei_swap_if(address, expected, value) != 0 }

  /// Sleeps while it is `value`; may wake early.
  func sleep(while value: Int32) { moei_futex_wait(address, value) }
  /// Sleeps as `sleep` does, but for a few milliseconds at most.
  func sleepBriefly(while value: Int32, milliseconds: Int32) { moei_futex_wait_briefly(address, value, milliseconds) }
  func wake(_ count: Int32) { moei_futex_wake(address, count) }
}

struct SharedCounter {
  private let address: UnsafeMutablePointer<Int64>

  init(_ arena: inout Arena) { address = arena.take(Int64.self, 1) }
  init(at address: UnsafeMutablePointer<Int64>) { self.address = address }

  func set(_ value: Int64) { address.pointee = value }
  /// The old value.
  func next() -> Int64 { moei_fetch_add64(address, 1) }
  func add(_ difference: Int) { _ = moei_fetch_add64(address, Int64(difference)) }
  var value: Int { Int(moei_fetch_add64(address, 0)) }
}

/// A lock that sleeps in the kernel when it must wait.
/// The word is 0 where it is free, else twice the holder's process, plus 1 with someone waiting; compare Drepper, "Futexes
/// are tricky", 2011. A forked child has the parent's words, not its threads: what another thread held stays held, and the
/// child knows it by the process.
struct Lock {
  private let word: SharedWord

  init(_ arena: inout Arena) { word = SharedWord(&arena) }
  init(at address: UnsafeMutablePointer<Int32>) { word = SharedWord(at: address) }

  /// Once, before the first use.
  func initialise() { word.set(0) }

  /// False when a process holds it that this one was forked from: nobody will release it.
  func acquire() -> Bool {
    let held = Int32(truncatingIfNeeded: moei_process_id()) << 1  // at most 2^22 processes
    let waitedFor = held | 1
    if word.change(0, to: held) { return true }
    // Whoever has waited does not know whether others do.
    while !word.change(0, to: waitedFor) {
      let found = word.value
      if found == 0 { continue }
      if found | 1 != waitedFor { return false }
      if found == waitedFor || word.change(held, to: waitedFor) { word.sleep(while: waitedFor) }
    }
    return true
  }

  /// Acquires the lock or says why it cannot be had; `what` is the kind of handle whose calls take turns.
  func acquire(for what: StaticString) throws(Fault) {
    if acquire() { return }
    throw .badState(
      "another thread was in a call on this \(what) when this process was forked, so that the \(what) stays taken here: make a new context and \(what) in the child, or fork while no call runs"
    )
  }

  func release() {
    if word.exchange(0) & 1 == 1 { word.wake(1) }
  }

  /// True when the lock was free and is now held.
  func tryAcquire() -> Bool { word.change(0, to: Int32(truncatingIfNeeded: moei_process_id()) << 1) }
}
