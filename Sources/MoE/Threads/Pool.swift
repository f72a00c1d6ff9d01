import CShims

/// The calling thread and `workers` more share out the items of a job. Which thread takes which item is chance; items
/// write to places of their own, so the result does not depend on it.
struct Pool {
  private var workers: Int32 = 0
  private var threads: UnsafeMutablePointer<UInt64>?
  private var host: HostThreads?  // in place of workers
  private var processID: Int64 = 0
  private let busy: Lock
  private let lanesTaken: SharedWord  // lane 0 is the caller's, but of the host's threads the first one's

  private let run: UnsafeMutablePointer<Run>  // written by the caller before `generation` moves on
  private let nextItem: SharedCounter
  private let cancelled: SharedWord
  private let stop: SharedWord
  private let generation: SharedWord  // workers wait for it to change
  private let working: SharedWord  // workers that have not finished this generation; the caller waits for 0

  /// Pauses before sleeping: a tenth of a millisecond, the length of a gap between two jobs of one call, or between the calls of a
  /// loop. To wake a thread takes 25 microseconds.
  private static let spins = 4000

  // MARK: life

  init(_ arena: inout Arena) {
    busy = Lock(&arena)
    lanesTaken = SharedWord(&arena)
    run = arena.take(Run.self, 1)
    nextItem = SharedCounter(&arena)
    cancelled = SharedWord(&arena)
    stop = SharedWord(&arena)
    generation = SharedWord(&arena)
    working = SharedWord(&arena)
  }

  /// Starts up to `count` - 1 workers; fewer when the system has no more threads to give, with the same results. None where
  /// the host lends threads.
  static func start(
    _ pool: UnsafeMutablePointer<Pool>, threads count: Int, host: HostThreads?, allocator: Allocator
  ) throws(Fault) {
    let p = pool.pointee
    p.busy.initialise()
    p.run.initialize(to: Run(nextItem: p.nextItem, cancelled: p.cancelled, lanesTaken: p.lanesTaken))
    p.lanesTaken.set(0)
    p.stop.set(0)
    p.generation.set(0)
    p.working.set(0)
    pool.pointee.processID = moei_process_id()
    guard count > 1 else { return }
    if let host {
      pool.pointee.host = host
      pool.pointee.workers = Int32(count - 1)
      return
    }
    let threads = try allocator.allocate(UInt64.self, count: count - 1)
    pool.pointee.threads = threads
    for i in 0..<(count - 1) {
      guard moei_thread_start(threads + i, { poolWorker($0) }, pool) == 0 else { break }
      pool.pointee.workers += 1
    }
  }

  func finish(allocator: Allocator) {
    if host == nil && processID == moei_process_id() {  // a forked child has the memory, not the threads
      stop.set(1)
      announce()
      for i in 0..<Int(workers) { moei_thread_join(threads![i]) }
    }
    allocator.deallocate(threads)
  }

  private func announce() {
    _ = generation.add(1)
    generation.wake(.max)
  }

  var threadCount: Int { Int(workers) + 1 }
  var isHosts: Bool { host != nil }

  // MARK: work

  /// How a job ended. But for `done`, some items have not run. The raw type is for the linker, see ExpertForm.
  enum Ending: UInt8 {
    case done
    case cancelled  // by the callback
    case forked  // by the callback: this is the child, and the others' items are done in the parent
  }

  /// Runs `body` for items 0 ..< count, each once. If another thread is using the pool, the caller does all items itself.
  func run<J: Job>(_ count: Int, _ job: UnsafePointer<J>, cancel: UnsafePointer<Cancel>?) -> Ending {
    if count <= 0 { return .done }
    // Captures nothing, so that no memory is needed for it.
    let body: Run.Body = { job, item, lane in job.assumingMemoryBound(to: J.self).pointee.run(item, lane) }
    if count == 1 || workers == 0 || processID != moei_process_id() || !busy.tryAcquire() {
      return alone(body, UnsafeRawPointer(job), count, cancel)
    }
    nextItem.set(0)
    cancelled.set(0)
    run.pointee.body = body
    run.pointee.job = UnsafeRawPointer(job)
    run.pointee.items = count
    if let host {
      runOnHost(host, cancel)
      busy.release()
      return cancelled.value != 0 ? .cancelled : .done
    }
    working.set(workers)
    announce()
    var lane = Lane(run.pointee, index: 0, cancel: cancel)
    Self.work(run.pointee, &lane)
    // The others may still be at work for long: the callback is asked all the while.
    let isWhole = wait(forWorkersAsking: &lane)
    let wasCancelled = cancelled.value != 0
    run.pointee.body = nil  // ordinary Swift counts references to it
    busy.release()
    return !isWhole ? .forked : wasCancelled ? .cancelled : .done
  }

  /// `run` on the host's threads.
  private func runOnHost(_ host: HostThreads, _ cancel: UnsafePointer<Cancel>?) {
    lanesTaken.set(0)
    run.pointee.lanes = threadCount
    run.pointee.caller = moei_thread_id()
    run.pointee.cancel = cancel
    host({ hostLane($0) }, run, UInt32(threadCount), 0)
    // All of it, should the host have called nothing.
    var lane = Lane(run.pointee, index: 0, cancel: cancel)
    Self.work(run.pointee, &lane)
    run.pointee.body = nil  // as below
  }

  /// A lane of `run` on a thread of the host. There are no more than it was told, since each has scratch memory of its own.
  fileprivate static func serve(_ run: Run) {
    let index = Int(run.lanesTaken.add(1)) - 1
    if index >= run.lanes { return }
    let isCaller = run.caller == moei_thread_id()
    var lane = Lane(run, index: index, cancel: isCaller ? run.cancel : nil)
    work(run, &lane)
  }

  private func alone(
    _ body: @escaping Run.Body, _ job: UnsafeRawPointer, _ count: Int, _ cancel: UnsafePointer<Cancel>?
  ) -> Ending {
    var (next, stopped): (Int64, Int32) = (0, 0)
    return withUnsafeMutablePointer(to: &next) { next in
      withUnsafeMutablePointer(to: &stopped) { stopped in
        let run = Run(
          body: body, job: job, items: count, nextItem: SharedCounter(at: next), cancelled: SharedWord(at: stopped),
          lanesTaken: lanesTaken)
        var lane = Lane(run, index: 0, cancel: cancel)
        Self.work(run, &lane)
        return run.cancelled.value != 0 ? .cancelled : .done
      }
    }
  }

  private static func work(_ run: Run, _ lane: inout Lane) {
    while !lane.shouldStop() {
      let item = Int(run.nextItem.next())
      if item >= run.items { break }
      run.body!(run.job!, item, &lane)
    }
  }

  fileprivate func serve() {
    let index = Int(lanesTaken.add(1))
    var seen: Int32 = 0
    while true {
      let last = seen
      seen = Self.wait(generation) { $0 != last }
      if stop.value != 0 { return }
      var lane = Lane(run.pointee, index: index, cancel: nil)
      Self.work(run.pointee, &lane)
      if working.add(-1) == 0 { working.wake(1) }
    }
  }

  /// Waits, as below, until no worker is at work; false where that will never be, in a child that the callback forked.
  private func wait(forWorkersAsking lane: inout Lane) -> Bool {
    var spun = 0
    while working.value != 0 {
      if spun < Self.spins {
        spun += 1
        moei_pause()
      } else {
        _ = lane.shouldStop()
        if processID != moei_process_id() { return false }
        working.sleepBriefly(while: working.value, milliseconds: Lane.millisecondsBetweenQuestions)
      }
    }
    return true
  }

  /// Spins for a bounded while, then sleeps, until the word satisfies the condition; returns the word.
  @discardableResult
  private static func wait(_ word: SharedWord, until condition: (Int32) -> Bool) -> Int32 {
    var spun = 0
    while true {
      let value = word.value
      if condition(value) { return value }
      if spun < spins {
        spun += 1
        moei_pause()
      } else {
        word.sleep(while: value)
      }
    }
  }
}

private func poolWorker(_ pool: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  pool!.assumingMemoryBound(to: Pool.self).pointee.serve()
  return nil
}

private func hostLane(_ run: UnsafeMutableRawPointer?) {
  Pool.serve(run!.assumingMemoryBound(to: Run.self).pointee)
}

/// Has `lane` called with `argument` on so many threads of the host at once, the calling one among them; flags are 0
/// (moe_context_config.host_threads).
public typealias HostThreads =
  @convention(c) (
    _ lane: (@convention(c) (_ argument: UnsafeMutableRawPointer?) -> Void)?, _ argument: UnsafeMutableRawPointer?,
    _ threads: UInt32, _ flags: UInt32
  ) -> Void

/// The context's question "go on?".
public struct Cancel {
  public typealias Callback = @convention(c) (UnsafeMutableRawPointer?) -> Int32

  let callback: Callback?
  let user: UnsafeMutableRawPointer?
  /// What is to be looked after meanwhile.
  var exchanges: ExchangesPointer?

  public init(_ callback: Callback? = nil, user: UnsafeMutableRawPointer? = nil) {
    self.callback = callback
    self.user = user
  }
}

/// Work in independent items. Each item writes to places of its own; `lane` tells whether to stop early.
protocol Job {
  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>)
}

/// Two jobs over the same items: the second finds in the cache what the first has just read or written.
struct InTurn<First: Job, Second: Job>: Job {
  let first: First
  let second: Second

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    first.run(item, lane)
    second.run(item, lane)
  }
}

/// Work whose items may fail, such as reading files.
protocol FallibleJob {
  func run(_ item: Int, lane: Int) throws(Fault)
}

/// Notes an item that failed.
struct Attempts<J: FallibleJob>: Job {
  let job: J
  let failed: UnsafeMutablePointer<Int32>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    do throws(Fault) {
      try job.run(item, lane: lane.pointee.index)
    } catch {
      moei_store(failed, Int32(truncatingIfNeeded: item))
    }
  }
}

/// A job being shared out.
struct Run {
  typealias Body = (_ job: UnsafeRawPointer, _ item: Int, _ lane: UnsafeMutablePointer<Lane>) -> Void

  var body: Body?
  var job: UnsafeRawPointer?
  var items = 0
  let nextItem: SharedCounter
  let cancelled: SharedWord
  let lanesTaken: SharedWord  // by threads of the host, and the next three for them
  var lanes = 0
  var caller: Int64 = 0
  var cancel: UnsafePointer<Cancel>?
}

/// One thread's view of a running job. Only the calling thread asks the callback: it belongs to the host (Python's,
/// for instance, learns of Ctrl-C in its main thread alone).
struct Lane {
  /// Which of the job's threads this is, 0 ..< threadCount: for scratch memory of one's own.
  let index: Int
  private let cancelled: SharedWord
  private let cancel: UnsafePointer<Cancel>?
  private var asked: Int64 = 0

  /// Asking may be dear to the host (Python takes its lock), so not more often than this.
  fileprivate static var millisecondsBetweenQuestions: Int32 { 5 }

  init(_ run: Run, index: Int, cancel: UnsafePointer<Cancel>?) {
    self.index = index
    cancelled = run.cancelled
    self.cancel = cancel
  }

  mutating func shouldStop() -> Bool {
    if cancelled.value != 0 { return true }
    guard let cancel else { return false }
    cancel.pointee.exchanges?.pointee.moveOn()
    guard let callback = cancel.pointee.callback else { return false }
    let now = moei_milliseconds()
    if now - asked < Int64(Self.millisecondsBetweenQuestions) { return false }
    asked = now
    if callback(cancel.pointee.user) == 0 { return false }
    cancelled.set(1)
    return true
  }
}
