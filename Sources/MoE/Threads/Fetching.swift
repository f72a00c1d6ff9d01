import CShims

/// Work that a helper thread does, in the order in which it is asked for, while the calling thread computes. The thread lives
/// as long as that: nobody has to keep it, and a forked child is not left without it. Where the system has no thread to
/// give, the calling thread does the work itself when it wants the result.
struct Fetching {
  private let asked: SharedWord  // so many have been asked for; the helper waits for more
  private let arrived: SharedWord  // so many are done; the caller waits for more
  private let failed: SharedWord  // 1: the next one could not be done, and none after it will be
  private let abandoned: SharedWord  // 1: what has been asked for is not wanted any more
  private let thread: UnsafeMutablePointer<UInt64>

  typealias Body = @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?

  init(_ arena: inout Arena) {
    asked = SharedWord(&arena)
    arrived = SharedWord(&arena)
    failed = SharedWord(&arena)
    abandoned = SharedWord(&arena)
    thread = arena.take(UInt64.self, 1)
  }

  // MARK: the caller's

  /// `body` calls `serve`. Returns whether there is a thread.
  func start(_ body: Body, _ argument: UnsafeMutableRawPointer) -> Bool {
    asked.set(0)
    arrived.set(0)
    failed.set(0)
    abandoned.set(0)
    return moei_thread_start(thread, body, argument) == 0
  }

  func ask() {
    _ = asked.add(1)
    asked.wake(1)
  }

  var countArrived: Int { Int(arrived.value) }
  var hasFailed: Bool { failed.value != 0 }

  /// Sleeps while no more than `count` are done; may wake early.
  func wait(forMoreThan count: Int) {
    if hasFailed { return }
    arrived.sleepBriefly(while: Int32(truncatingIfNeeded: count), milliseconds: 5)
  }

  /// The helper ends after what it is doing; returns then.
  func finish(abandon: Bool) {
    if abandon {
      abandoned.set(1)
      ask()
    }
    moei_thread_join(thread.pointee)
  }

  // MARK: the helper's

  /// Does items 0 ..< count one after another as they are asked for, until `item` returns false.
  func serve(_ count: Int, _ item: (Int) -> Bool) {
    for i in 0..<count {
      while Int(asked.value) <= i { asked.sleep(while: Int32(truncatingIfNeeded: i)) }
      if abandoned.value != 0 || !perform(i, item) { return }
    }
  }

  /// Does item i, in whatever thread; false where it failed.
  @discardableResult
  func perform(_ i: Int, _ item: (Int) -> Bool) -> Bool {
    let done = item(i)
    if done { _ = arrived.add(1) } else { failed.set(1) }
    arrived.wake(1)
    return done
  }
}
