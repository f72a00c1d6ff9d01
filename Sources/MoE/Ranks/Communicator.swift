/// What moves bytes between ranks: the caller's functions, in the layout and by the rules of moe_communicator. The boundary has
/// seen that all are there.
public struct Communicator {
  public typealias Pointer = UnsafeMutableRawPointer
  public typealias Sizes = UnsafePointer<Int64>
  public typealias AllToAll =
    @convention(c) (
      Pointer?, UnsafeRawPointer?, Sizes?, Sizes?, Pointer?, Sizes?, Sizes?, UnsafeMutablePointer<Pointer?>?
    ) -> Int32
  public typealias Send =
    @convention(c) (Pointer?, UnsafeRawPointer?, Int64, Int32, Int32, UnsafeMutablePointer<Pointer?>?) -> Int32
  public typealias Receive =
    @convention(c) (Pointer?, Pointer?, Int64, Int32, Int32, UnsafeMutablePointer<Pointer?>?) -> Int32
  public typealias Test = @convention(c) (Pointer?, Pointer?, UnsafeMutablePointer<Int32>?) -> Int32
  public typealias Wait = @convention(c) (Pointer?, Pointer?) -> Int32
  public typealias Abandon = @convention(c) (Pointer?, Pointer?) -> Void
  public typealias Words = @convention(c) (Pointer?, Int32) -> UnsafePointer<CChar>?

  public let user: Pointer?
  public let rank: Int
  public let size: Int
  let allToAll: AllToAll
  let send: Send
  let receive: Receive
  let test: Test
  let wait: Wait
  let abandon: Abandon
  let words: Words

  public init(
    user: Pointer?, rank: Int, size: Int, allToAll: AllToAll, send: Send, receive: Receive, test: Test, wait: Wait,
    abandon: Abandon, words: Words
  ) {
    (self.user, self.rank, self.size) = (user, rank, size)
    (self.allToAll, self.send, self.receive) = (allToAll, send, receive)
    (self.test, self.wait, self.abandon, self.words) = (test, wait, abandon, words)
  }

  var isLast: Bool { rank == size - 1 }

  /// Refuses a code that is no success.
  func require(_ code: Int32, _ what: StaticString) throws(Fault) {
    if code == 0 { return }
    throw Fault(
      .communication,
      "rank \(rank): \(what) failed with code \(Int(code)): \(words(user, code)); the layer cannot exchange any more")
  }

  func sendWhole(_ data: UnsafeRawPointer, bytes: Int, to: Int) throws(Fault) {
    var request: Pointer?
    try require(send(user, data, Int64(bytes), Int32(truncatingIfNeeded: to), 0, &request), "send")
    try require(wait(user, request), "the wait for send")
  }

  func receiveWhole(_ data: Pointer, bytes: Int, from: Int) throws(Fault) {
    var request: Pointer?
    try require(receive(user, data, Int64(bytes), Int32(truncatingIfNeeded: from), 0, &request), "receive")
    try require(wait(user, request), "the wait for receive")
  }
}

/// [ranks] What of some memory is whose.
struct ByteRanges {
  let counts: UnsafeMutablePointer<Int64>
  let offsets: UnsafeMutablePointer<Int64>
  private let size: Int

  init(_ arena: inout Arena, size: Int) {
    self.size = size
    counts = arena.take(Int64.self, size)
    offsets = arena.take(Int64.self, size)
  }

  /// The same bytes for each.
  func setAll(_ bytes: Int) {
    for rank in 0..<size { (counts[rank], offsets[rank]) = (Int64(bytes), 0) }
  }

  /// Rows of so many bytes, those of a rank beginning where rows of `room` bytes would.
  func set(_ rows: (_ rank: Int) -> Range<Int>, bytesOfOne: Int, room: Int) {
    for rank in 0..<size {
      let own = rows(rank)
      (counts[rank], offsets[rank]) = (Int64(own.count * bytesOfOne), Int64(own.lowerBound * room))
    }
  }

  func setOne(_ rank: Int, _ bytes: Int) {
    setAll(0)
    counts[rank] = Int64(bytes)
  }
}
