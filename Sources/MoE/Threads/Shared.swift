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
  /// The same for a few milliseconds at most.
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
/// The word is 0 free, 1 held, 2 held with someone waiting (Drepper, "Futexes are tricky", 2011).
struct Lock {
  private let word: SharedWord

  init(_ arena: inout Arena) { word = SharedWord(&arena) }
  init(at address: UnsafeMutablePointer<Int32>) { word = SharedWord(at: address) }

  /// Once, before the first use.
  func initialise() { word.set(0) }

  func acquire() {
    if word.change(0, to: 1) { return }
    while word.exchange(2) != 0 { word.sleep(while: 2) }
  }

  func release() {
    if word.exchange(0) == 2 { word.wake(1) }
  }

  /// True when the lock was free and is now held.
  func tryAcquire() -> Bool { word.change(0, to: 1) }
}
