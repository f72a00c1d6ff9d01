import CShims

/// Work that a helper thread does ahead while the calling thread computes, and both do when the calling thread has nothing to
/// compute. The thread lives as long as that: nobody has to keep it, and a forked child is not left without it. Where the
/// system has no thread to give, the calling thread does all of the work.
struct Fetching {
  private let asked: SharedWord  // items 0 ..< asked may be done; the helper waits for more
  private let claimed: SharedWord  // items 0 ..< claimed have somebody who does them
  private let arrived: SharedWord  // so many are done; the caller waits for more
  private let failed: SharedWord  // 1: the helper could not do one, and has ended
  private let abandoned: SharedWord  // 1: what has been asked for is not wanted any more
  private let done: UnsafeMutablePointer<Int32>  // [most] 1: the item is done
  private let thread: UnsafeMutablePointer<UInt64>
  private let process: UnsafeMutablePointer<Int64>  // the thread's

  typealias Body = @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?

  init(_ arena: inout Arena, most: Int) {
    asked = SharedWord(&arena)
    claimed = SharedWord(&arena)
    arrived = SharedWord(&arena)
    failed = SharedWord(&arena)
    abandoned = SharedWord(&arena)
    done = arena.take(Int32.self, most)
    thread = arena.take(UInt64.self, 1)
    process = arena.take(Int64.self, 1)
  }

  // MARK: the caller's

  /// For `count` items. `body` calls `serve`. Returns whether there is a thread.
  func start(_ count: Int, _ body: Body, _ argument: UnsafeMutableRawPointer) -> Bool {
    asked.set(0)
    claimed.set(0)
    arrived.set(0)
    failed.set(0)
    abandoned.set(0)
    done.update(repeating: 0, count: count)
    process.pointee = moei_process_id()
    return moei_thread_start(thread, body, argument) == 0
  }

  func ask() {
    _ = asked.add(1)
    asked.wake(1)
  }

  var countArrived: Int { Int(arrived.value) }
  var hasFailed: Bool { failed.value != 0 }
  func isDone(_ i: Int) -> Bool { SharedWord(at: done + i).value != 0 }

  /// A forked child has no helper: what it was doing will not be done.
  var isInParent: Bool { process.pointee != moei_process_id() }

  /// Sleeps while no more than `count` are done; may wake early.
  func wait(forMoreThan count: Int) {
    if hasFailed { return }
    arrived.sleepBriefly(while: Int32(truncatingIfNeeded: count), milliseconds: 5)
  }

  /// The helper ends after what it is doing; returns then.
  func finish(abandon: Bool) {
    if isInParent { return }
    if abandon {
      abandoned.set(1)
      ask()
    }
    moei_thread_join(thread.pointee)
  }

  // MARK: the helper's

  /// Does items of 0 ..< count as they are asked for, until all have somebody or `item` returns false.
  func serve(_ count: Int, _ item: (Int) -> Bool) {
    while true {
      let next = claimed.value
      if Int(next) >= count { return }
      let wanted = asked.value
      if abandoned.value != 0 { return }
      if wanted <= next {
        asked.sleep(while: wanted)
      } else if let i = claim(of: Int(wanted)) {
        if !item(i) {
          failed.set(1)
          arrived.wake(1)
          return
        }
        note(i)
      }
    }
  }

  // MARK: both

  /// One of items 0 ..< count, which have been asked for, that has nobody yet; nil where there is none.
  func claim(of count: Int) -> Int? {
    let next = claimed.value
    return Int(next) < count && claimed.change(next, to: next + 1) ? Int(next) : nil
  }

  /// Item i is done.
  func note(_ i: Int) {
    SharedWord(at: done + i).set(1)
    _ = arrived.add(1)
    arrived.wake(1)
  }
}
