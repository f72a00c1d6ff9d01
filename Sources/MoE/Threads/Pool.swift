import CShims

/// The calling thread and `workers` more share out the items of a job. Which thread takes which item is chance; items
/// write to places of their own, so the result does not depend on it.
struct Pool {
  private var workers: Int32 = 0
  private var threads: UnsafeMutablePointer<UInt64>?
  private var processID: Int64 = 0
  private var busy = Lock()
  private var lanesTaken: Int32 = 0  // lane 0 is the caller's

  fileprivate var run = Run()  // written by the caller before `generation` moves on
  private var stop: Int32 = 0
  private var generation: Int32 = 0  // workers wait for it to change
  private var working: Int32 = 0  // workers that have not finished this generation; the caller waits for 0

  /// Pauses before sleeping: some microseconds, the length of a gap between two jobs of one call.
  private static let spins = 2000

  // MARK: life

  /// Starts up to `count` - 1 workers; fewer when the system has no more threads to give, with the same results.
  static func start(_ pool: UnsafeMutablePointer<Pool>, threads count: Int, allocator: Allocator) throws(Fault) {
    pool.pointee.processID = moei_process_id()
    guard count > 1 else { return }
    let threads = try allocator.allocate(UInt64.self, count: count - 1)
    pool.pointee.threads = threads
    for i in 0..<(count - 1) {
      guard moei_thread_start(threads + i, { poolWorker($0) }, pool) == 0 else { break }
      pool.pointee.workers += 1
    }
  }

  static func finish(_ pool: UnsafeMutablePointer<Pool>, allocator: Allocator) {
    let p = pool.pointee
    if p.processID == moei_process_id() {  // a forked child has the memory, not the threads
      moei_store(&pool.pointee.stop, 1)
      announce(pool)
      for i in 0..<Int(p.workers) { moei_thread_join(p.threads![i]) }
    }
    allocator.deallocate(p.threads)
  }

  private static func announce(_ pool: UnsafeMutablePointer<Pool>) {
    _ = moei_add(&pool.pointee.generation, 1)
    moei_futex_wake(&pool.pointee.generation, .max)
  }

  var threadCount: Int { Int(workers) + 1 }

  // MARK: work

  /// Runs `body` for items 0 ..< count, each once, and returns whether the callback cancelled it; some items have
  /// not run then. If another thread is using the pool, the caller does all items itself.
  static func run<J: Job>(
    _ pool: UnsafeMutablePointer<Pool>, _ count: Int, _ job: UnsafePointer<J>, cancel: Cancel
  ) -> Bool {
    if count <= 0 { return false }
    // Captures nothing, so that no memory is needed for it.
    let body: Run.Body = { job, item, lane in job.assumingMemoryBound(to: J.self).pointee.run(item, lane) }
    let cancelled: Int32
    if count == 1 || pool.pointee.workers == 0 || pool.pointee.processID != moei_process_id()
      || !pool.pointee.busy.tryAcquire()
    {
      var run = Run(body: body, job: UnsafeRawPointer(job), items: count)
      work(&run, lane: 0, cancel: cancel)
      cancelled = run.cancelled
    } else {
      pool.pointee.run = Run(body: body, job: UnsafeRawPointer(job), items: count)
      moei_store(&pool.pointee.working, pool.pointee.workers)
      announce(pool)
      work(&pool.pointee.run, lane: 0, cancel: cancel)
      wait(&pool.pointee.working) { $0 == 0 }
      cancelled = pool.pointee.run.cancelled
      pool.pointee.run = Run()
      pool.pointee.busy.release()
    }
    return cancelled != 0
  }

  private static func work(_ run: UnsafeMutablePointer<Run>, lane index: Int, cancel: Cancel) {
    var lane = Lane(run, index: index, cancel: cancel)
    while !lane.shouldStop() {
      let item = Int(moei_fetch_add64(&run.pointee.nextItem, 1))
      if item >= run.pointee.items { break }
      run.pointee.body!(run.pointee.job!, item, &lane)
    }
  }

  fileprivate static func serve(_ pool: UnsafeMutablePointer<Pool>) {
    let lane = Int(moei_add(&pool.pointee.lanesTaken, 1))
    var seen: Int32 = 0
    while true {
      let last = seen
      seen = wait(&pool.pointee.generation) { $0 != last }
      if moei_load(&pool.pointee.stop) != 0 { return }
      work(&pool.pointee.run, lane: lane, cancel: Cancel())
      if moei_add(&pool.pointee.working, -1) == 0 { moei_futex_wake(&pool.pointee.working, 1) }
    }
  }

  /// Spins for a bounded while, then sleeps, until the word satisfies the condition; returns the word.
  @discardableResult
  private static func wait(_ word: UnsafeMutablePointer<Int32>, until condition: (Int32) -> Bool) -> Int32 {
    var spun = 0
    while true {
      let value = moei_load(word)
      if condition(value) { return value }
      if spun < spins {
        spun += 1
        moei_pause()
      } else {
        moei_futex_wait(word, value)
      }
    }
  }
}

private func poolWorker(_ pool: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  Pool.serve(pool!.assumingMemoryBound(to: Pool.self))
  return nil
}

/// The context's question "go on?".
public struct Cancel {
  public typealias Callback = @convention(c) (UnsafeMutableRawPointer?) -> Int32

  let callback: Callback?
  let user: UnsafeMutableRawPointer?

  public init(_ callback: Callback? = nil, user: UnsafeMutableRawPointer? = nil) {
    self.callback = callback
    self.user = user
  }
}

/// Work in independent items. Each item writes to places of its own; `lane` tells whether to stop early.
protocol Job {
  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>)
}

/// A job being shared out.
struct Run {
  typealias Body = (_ job: UnsafeRawPointer, _ item: Int, _ lane: UnsafeMutablePointer<Lane>) -> Void

  var body: Body?
  var job: UnsafeRawPointer?
  var items = 0
  var nextItem: Int64 = 0
  var cancelled: Int32 = 0
}

/// One thread's view of a running job. Only the calling thread asks the callback: it belongs to the host (Python's,
/// for instance, learns of Ctrl-C in its main thread alone).
struct Lane {
  /// Which of the job's threads this is, 0 ..< threadCount: for scratch memory of one's own.
  let index: Int
  private let run: UnsafeMutablePointer<Run>
  private let cancel: Cancel
  private var asked: Int64 = 0

  /// Asking may be dear to the host (Python takes its lock), so not more often than this.
  private static let millisecondsBetweenQuestions: Int64 = 5

  init(_ run: UnsafeMutablePointer<Run>, index: Int, cancel: Cancel) {
    self.index = index
    self.run = run
    self.cancel = cancel
  }

  mutating func shouldStop() -> Bool {
    if moei_load(&run.pointee.cancelled) != 0 { return true }
    guard let callback = cancel.callback else { return false }
    let now = moei_milliseconds()
    if now - asked < Self.millisecondsBetweenQuestions { return false }
    asked = now
    if callback(cancel.user) == 0 { return false }
    moei_store(&run.pointee.cancelled, 1)
    return true
  }
}
