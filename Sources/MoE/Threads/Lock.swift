import CShims

/// A lock that lives in plain memory and sleeps in the kernel when it must wait.
/// The word is 0 free, 1 held, 2 held with someone waiting (Drepper, "Futexes are tricky", 2011).
struct Lock {
  private var word: Int32 = 0

  mutating func acquire() {
    if moei_swap_if(&word, 0, 1) != 0 { return }
    while moei_exchange(&word, 2) != 0 { moei_futex_wait(&word, 2) }
  }

  mutating func release() {
    if moei_exchange(&word, 0) == 2 { moei_futex_wake(&word, 1) }
  }

  /// True when the lock was free and is now held.
  mutating func tryAcquire() -> Bool { moei_swap_if(&word, 0, 1) != 0 }
}
