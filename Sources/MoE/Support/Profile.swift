import CShims

/// A part of a call. Numbers as in moe_phase.
public enum Phase: Int32 {
  case route = 0
  case dispatch = 1
  case gateUp = 2
  case down = 3
  case combine = 4
  case projection = 5
  case attention = 6
  case norm = 7
  case embedding = 8
  case loss = 9
  case optimizer = 10

  public static var count: Int { 11 }

  public static func name(_ number: Int32) -> UnsafePointer<CChar> {
    switch Phase(rawValue: number) {
    case .route: cText("route")
    case .dispatch: cText("dispatch")
    case .gateUp: cText("gate/up")
    case .down: cText("down")
    case .combine: cText("combine")
    case .projection: cText("projection")
    case .attention: cText("attention")
    case .norm: cText("norm")
    case .embedding: cText("embedding")
    case .loss: cText("loss")
    case .optimizer: cText("optimizer")
    case nil: cText("unknown phase")
    }
  }
}

/// What a part of a call had to do: for GFLOP/s and GB/s.
struct Work {
  var flops = 0  // a multiplication and an addition count as two
  var bytes = 0  // read and written once each, whatever the caches make of it

  /// Of a backward in one job: for what is multiplied, and for the weights.
  var twice: Work { Work(flops: 2 * flops, bytes: 2 * bytes) }
}

/// Where the time of a context's calls goes. It is taken by the calling thread around each part that is shared out to the
/// threads; while it is off, a part costs one look at a word.
struct Profile {
  /// What one phase in one direction came to.
  struct Sums {
    var calls: Int64 = 0
    var nanoseconds: Int64 = 0
    var flops: Int64 = 0
    var bytes: Int64 = 0
  }

  /// Numbers only: read before it is written, which a host can bring about, it is nonsense and no more.
  struct Event {
    let phase: Int32
    let backward: Int32
    let thread: Int64
    let start: Int64  // nanoseconds since the profile began
    let nanoseconds: Int64
    let flops: Int64
    let bytes: Int64
  }

  /// What `moe_profile_start` makes anew.
  private struct Record {
    var events: UnsafeMutablePointer<Event>?
    var capacity = 0
    var began: Int64 = 0
  }

  private let on: SharedWord
  private let sums: UnsafeMutablePointer<Sums>  // [Phase.count, 2]
  private let recorded: SharedCounter
  private let record: UnsafeMutablePointer<Record>

  init(_ arena: inout Arena) {
    on = SharedWord(&arena)
    sums = arena.take(Sums.self, Phase.count, 2)
    recorded = SharedCounter(&arena)
    record = arena.take(Record.self, 1)
  }

  /// Once, before the first use.
  func initialise() {
    on.set(0)
    clear(Record())
  }

  private func clear(_ record: Record) {
    sums.initialize(repeating: Sums(), count: Phase.count * 2)
    recorded.set(0)
    self.record.initialize(to: record)
  }

  func start(events: Int, allocator: Allocator) throws(Fault) {
    // New memory first: on an error everything is as it was.
    let memory = events > 0 ? try allocator.allocate(Event.self, count: events) : nil
    free(allocator: allocator)
    clear(Record(events: memory, capacity: events, began: moei_nanoseconds()))
    on.set(1)
  }

  func stop() { on.set(0) }
  func free(allocator: Allocator) { allocator.deallocate(record.pointee.events) }

  /// 0 while nothing is measured.
  @inline(__always)
  func begin() -> Int64 { on.value == 0 ? 0 : moei_nanoseconds() }

  func end(_ begun: Int64, _ phase: Phase, backward: Bool, _ work: Work) {
    add(phase, backward, work, from: begun, moei_nanoseconds() - begun)
  }

  func end(_ begun: Int64, gateUp: Work, down: Work, backward: Bool) {
    let duration = moei_nanoseconds() - begun
    let all = gateUp.flops + down.flops
    let first = all == 0 ? 0 : Int64(Double(duration) * Double(gateUp.flops) / Double(all))
    add(.gateUp, backward, gateUp, from: begun, first)
    add(.down, backward, down, from: begun + first, duration - first)
  }

  private func add(_ phase: Phase, _ backward: Bool, _ work: Work, from begun: Int64, _ duration: Int64) {
    let own = sums + (Int(phase.rawValue) * 2 + (backward ? 1 : 0))
    own.withMemoryRebound(to: Int64.self, capacity: 4) {
      _ = moei_fetch_add64($0, 1)
      _ = moei_fetch_add64($0 + 1, duration)
      _ = moei_fetch_add64($0 + 2, Int64(work.flops))
      _ = moei_fetch_add64($0 + 3, Int64(work.bytes))
    }
    guard let events = record.pointee.events else { return }
    let place = Int(recorded.next())
    if place >= record.pointee.capacity { return }
    (events + place).initialize(
      to: Event(
        phase: phase.rawValue, backward: backward ? 1 : 0, thread: moei_thread_id(),
        start: begun - record.pointee.began, nanoseconds: duration, flops: Int64(work.flops), bytes: Int64(work.bytes)))
  }

  /// May be called while others add.
  func sums(_ phase: Phase, backward: Bool) -> Sums {
    let own = sums + (Int(phase.rawValue) * 2 + (backward ? 1 : 0))
    return own.withMemoryRebound(to: Int64.self, capacity: 4) { number in
      Sums(
        calls: moei_fetch_add64(number, 0), nanoseconds: moei_fetch_add64(number + 1, 0),
        flops: moei_fetch_add64(number + 2, 0), bytes: moei_fetch_add64(number + 3, 0))
    }
  }
  var eventCount: Int { min(recorded.value, record.pointee.capacity) }
  func event(_ index: Int) -> Event { record.pointee.events![index] }
}

extension UnsafeMutablePointer where Pointee == Context {
  /// Runs a part of a call, and takes its time where that is wanted.
  @inline(__always)
  func measure(
    _ phase: Phase, backward: Bool = false, _ work: @autoclosure () -> Work = Work(),
    _ body: () throws(Fault) -> Void
  ) throws(Fault) {
    let begun = profile.begin()
    try body()
    if begun != 0 { profile.end(begun, phase, backward: backward, work()) }
  }

  /// Measures from now on, with room for so many events. Wants the context for itself.
  public func startProfile(events: Int) throws(Fault) {
    try profile.start(events: events, allocator: pointee.allocator)
  }
  public func stopProfile() { profile.stop() }

  /// Measures both of the experts' phases at once, where the same jobs do both: the time is divided as their products are.
  @inline(__always)
  func measureExperts(
    backward: Bool, gateUp: @autoclosure () -> Work, down: @autoclosure () -> Work, _ body: () throws(Fault) -> Void
  ) throws(Fault) {
    let begun = profile.begin()
    try body()
    if begun != 0 { profile.end(begun, gateUp: gateUp(), down: down(), backward: backward) }
  }

  public typealias PhaseSums = (calls: Int64, nanoseconds: Int64, flops: Int64, bytes: Int64)
  public func profiled(_ phase: Phase, backward: Bool) -> PhaseSums {
    let sums = profile.sums(phase, backward: backward)
    return (sums.calls, sums.nanoseconds, sums.flops, sums.bytes)
  }

  public typealias ProfileEvent = (
    phase: Int32, backward: Int32, thread: Int64, start: Int64, nanoseconds: Int64, flops: Int64, bytes: Int64
  )
  public var profileEventCount: Int { profile.eventCount }
  public func profileEvent(_ index: Int) -> ProfileEvent {
    let event = profile.event(index)
    return (
      event.phase, event.backward, event.thread, event.start, event.nanoseconds, event.flops, event.bytes
    )
  }
}
