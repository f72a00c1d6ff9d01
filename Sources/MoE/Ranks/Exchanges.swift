import CShims

typealias ExchangesPointer = UnsafeMutablePointer<Exchanges>

/// Exchanges of all ranks with all that are under way, and end in the order in which they began. While the calling thread computes, it
/// moves them on (Lane.shouldStop): a transport may do nothing between two calls.
struct Exchanges {
  private let communicator: Communicator
  /// At most a call's rows in all pieces, there and back, a number for each, and weights of hot experts.
  private var requests = InlineArray<12, Communicator.Pointer?>(repeating: nil)
  // Counted from the last time that there were none.
  private var begun = 0
  private var ended = 0
  private var finished = 0  // by the caller; others may have ended, which it does not know yet
  private var code: Int32 = 0  // that a test has returned
  private var moved: Int64 = 0  // when, milliseconds

  /// Asking may be dear to the host, so not more often than this.
  private static var millisecondsBetweenTests: Int64 { 1 }

  init(_ communicator: Communicator) { self.communicator = communicator }

  mutating func begin(
    _ send: UnsafeRawPointer, _ sent: ByteRanges, _ receive: UnsafeMutableRawPointer, _ received: ByteRanges
  ) throws(Fault) {
    try require(code, "test")
    var request: Communicator.Pointer?
    try require(
      communicator.allToAll(
        communicator.user, send, sent.counts, sent.offsets, receive, received.counts, received.offsets, &request),
      "all_to_all")
    requests[begun] = request
    begun += 1
  }

  /// Waits for the next one.
  mutating func finishNext() throws(Fault) {
    try require(code, "test")
    if finished == ended {
      ended += 1
      try require(communicator.wait(communicator.user, requests[finished]), "the wait for all_to_all")
    }
    finished += 1
    if finished == begun { (begun, ended, finished) = (0, 0, 0) }
  }

  /// Looks after them now and then.
  @inline(never) mutating func moveOn() {
    if ended == begun || code != 0 { return }
    let now = moei_milliseconds()
    if now - moved < Self.millisecondsBetweenTests { return }
    moved = now
    var done: Int32 = 0
    code = communicator.test(communicator.user, requests[ended], &done)
    if code != 0 || done != 0 { ended += 1 }
  }

  /// Where one has failed, nobody waits for the others.
  private mutating func require(_ result: Int32, _ what: StaticString) throws(Fault) {
    if result == 0 { return }
    for i in ended..<begun { communicator.abandon(communicator.user, requests[i]) }
    (begun, ended, finished) = (0, 0, 0)
    try communicator.require(result, what)
  }
}
