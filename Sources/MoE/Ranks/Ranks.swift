import CShims

// One rank's part of a layer that is spread over several (docs/ranks.md). Every rank makes every exchange: what one finds wrong is
// told in the next agreement, and ends the call on all of them.

public typealias RanksPointer = UnsafeMutablePointer<Ranks>

/// The ranks of a layer or a model, and what they tell each other in every call. Its many fields are the arrays that travel, and what
/// each rank says of itself in them.
public struct Ranks {
  let communicator: Communicator
  let placement: Placement
  var hot: HotExperts
  /// Whether each rank chooses among its own tokens alone.
  let choosesLocally: Bool
  /// Of all that has to be the same on every rank.
  let configurationHash: UInt64

  /// The tokens of a call, all ranks'.
  struct AllTokens {
    var first = 0  // number of this rank's first
    var tokens = 0
    var valid = 0
    var counted = 0
    var sequences = 0
    /// Whether the caller gives the choices, on the ranks that have tokens.
    var choicesAreGiven = false
    /// Whether some rank wants the tokens in chunks.
    var isDivided = false
    /// Of experts by call: whether some rank keeps something for backward, or, in backward, wants gradients of x.
    var isWanted = false
    /// Of experts by call: whether rows travel as floats, since some rank's experts read them so.
    var isWide = false
  }
  private(set) var all = AllTokens()

  private var calls: Int64 = 0
  /// Words of the agreement that the others will wait for; nil where they wait for none.
  private var expected: Int?
  fileprivate var isBroken = false

  // Memory of the exchanges.
  private let own: UnsafeMutablePointer<Int64>  // [header + words]
  private let others: UnsafeMutablePointer<Int64>  // [ranks, header + words]
  private let text: UnsafeMutablePointer<CChar>  // what is sent, then what is received
  private let sent: ByteRanges
  private let received: ByteRanges
  /// Those that are under way.
  let exchanges: ExchangesPointer
  let rowsTo: UnsafeMutablePointer<Int>  // [ranks] of this rank's tokens, to the owners of their experts
  let rowsFrom: UnsafeMutablePointer<Int>  // [ranks]
  let counts: UnsafeMutablePointer<Int32>  // [ranks, experts of this rank] rows of the latter
  /// What the exchanges of a call's rows take, and what is computed for others: kept for the next call.
  fileprivate var memory: UnsafeMutableRawPointer?
  private var memoryBytes = 0
  /// The model's, in whose memory the exchanges of all of its layers are, one after the other.
  var lender: RanksPointer?

  private enum Header {
    static var call: Int { 0 }
    static var hash: Int { 1 }
    static var fault: Int { 2 }
    static var count: Int { 3 }
  }
  private static var textSize: Int { Int(MOEI_TEXT_SIZE) }
  /// Words of a call's first agreement: tokens, those that are valid, those that count, sequences, choices, flags.
  static var callWords: Int { 6 }

  /// What the boundary has of it.
  public struct Wanted {
    public var communicator: Communicator
    public var expertsPerRank: UnsafePointer<Int64>?  // [ranks]
    public var choosesLocally: Bool
    public var strategy: Placement.Strategy
    public var hot = HotExperts.Wanted()
    public var configurationHash: UInt64

    public init(
      _ communicator: Communicator, expertsPerRank: UnsafePointer<Int64>?, choosesLocally: Bool,
      _ strategy: Placement.Strategy = .exclusive, configurationHash: UInt64
    ) {
      (self.communicator, self.expertsPerRank) = (communicator, expertsPerRank)
      (self.choosesLocally, self.strategy) = (choosesLocally, strategy)
      self.configurationHash = configurationHash
    }
  }

  /// `c`: nil where no layer's experts are to be placed.
  fileprivate init(_ arena: inout Arena, _ wanted: Wanted, _ c: Configuration.Values?) {
    communicator = wanted.communicator
    choosesLocally = wanted.choosesLocally
    configurationHash = wanted.configurationHash
    let size = communicator.size
    let words = Header.count + max(Self.callWords, c?.wordsOfCounts ?? 0)
    placement = Placement(&arena, ranks: size, groups: c?.groupCount ?? 0, wanted.strategy)
    hot = HotExperts(&arena, wanted.hot, c)
    own = arena.take(Int64.self, words)
    others = arena.take(Int64.self, size, words)
    text = arena.take(CChar.self, 2 * Self.textSize)
    sent = ByteRanges(&arena, size: size)
    received = ByteRanges(&arena, size: size)
    exchanges = arena.take(Exchanges.self, 1)
    rowsTo = arena.take(Int.self, size)
    rowsFrom = arena.take(Int.self, size)
    counts = arena.take(Int32.self, size, c?.experts ?? 0)
  }

  var callNumber: Int64 { calls }
  var rank: Int { communicator.rank }
  var size: Int { communicator.size }
  var experts: Range<Int> { placement.experts(of: rank) }
  /// Of a group's experts, those of this rank.
  func owned(inGroup index: Int) -> Range<Int> { placement.owned(by: rank, inGroup: index) }

  /// What this rank tells in an agreement.
  var words: UnsafeMutablePointer<Int64> { own + Header.count }
  /// What a rank has told in the latest one, of `count` words.
  func words(of rank: Int, _ count: Int) -> UnsafePointer<Int64> {
    UnsafePointer(others + rank * (Header.count + count) + Header.count)
  }

  // MARK: calls and agreements

  /// A call begins: from here on the others wait for this rank.
  public mutating func beginCall() throws(Fault) {
    if isBroken {
      throw Fault(
        .communication, "an exchange of this layer has failed before: make it again over another communicator")
    }
    calls += 1
    own[Header.hash] = 0
    expected = Self.callWords
  }

  /// What goes wrong outside of an agreement is told in the one that the others wait for.
  public mutating func told(_ fault: Fault) -> Fault {
    guard let words = expected else { return fault }
    do throws(Fault) {
      try agree(words, fault, next: nil)
    } catch {
      return error
    }
    return fault
  }

  /// Hears of all ranks' tokens. `kind` is what all ranks have to call alike.
  mutating func open(_ call: Call, kind: Hash, isDivided: Bool, _ c: Configuration) throws(Fault) {
    let tokens = 0..<call.tokens
    var own = AllTokens(
      tokens: call.tokens, valid: call.valid(in: tokens), counted: call.counted(in: tokens),
      sequences: call.tokens / max(call.sequenceLength, 1))
    own.choicesAreGiven = call.givenIndices != nil
    own.isDivided = isDivided
    try open(own, kind: kind)
    // The same on all ranks, and so is the refusal.
    func fits(_ n: Int, _ most: Int) -> Bool { all.tokens <= most / n }
    let noiseFits = c.exploration.noise == .none || !call.training || fits(c.experts, Int(UInt32.max))
    if !fits(c.slots, Int(Int32.max)) || !noiseFits {
      throw .invalid("n_tokens: all ranks together have \(all.tokens), more than a call can have")
    }
  }

  mutating func open(_ tokens: AllTokens, kind: Hash) throws(Fault) {
    var kind = kind
    kind.add(configurationHash)
    own[Header.hash] = Int64(bitPattern: kind.value)
    (words[0], words[1]) = (Int64(tokens.tokens), Int64(tokens.valid))
    (words[2], words[3]) = (Int64(tokens.counted), Int64(tokens.sequences))
    words[4] = tokens.tokens == 0 ? 0 : tokens.choicesAreGiven ? 2 : 1
    words[5] = (tokens.isDivided ? 1 : 0) | (tokens.isWanted ? 2 : 0) | (tokens.isWide ? 4 : 0)
    try agree(Self.callWords, nil, next: nil)
    all = AllTokens()
    var (choices, flags): (Int64, Int64) = (0, 0)
    for other in 0..<size {
      let theirs = words(of: other, Self.callWords)
      if other < rank { all.first += Int(theirs[0]) }
      all.tokens += Int(theirs[0])
      all.valid += Int(theirs[1])
      all.counted += Int(theirs[2])
      all.sequences += Int(theirs[3])
      choices |= theirs[4]
      flags |= theirs[5]
    }
    (all.isDivided, all.isWanted, all.isWide) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0)
    all.choicesAreGiven = choices & 2 != 0
    if choices == 3 { throw .invalid("options.expert_indices are given on some ranks and NULL on others") }
  }

  /// Words of the agreement that follows, in which a fault will be told.
  mutating func expect(_ words: Int) { expected = words }

  /// Every rank tells every other `count` words, and whether something is wrong; what the first of those has found is thrown on all.
  /// `next`: words of the agreement that follows.
  mutating func agree(_ count: Int, _ fault: Fault?, next: Int?) throws(Fault) {
    expected = nil
    own[Header.call] = calls
    own[Header.fault] = Int64(fault?.kind.rawValue ?? 0)
    if fault != nil { text.update(from: moei_error_text(), count: Self.textSize) }
    let bytes = (Header.count + count) * MemoryLayout<Int64>.stride
    sent.setAll(bytes)
    for other in 0..<size { (received.counts[other], received.offsets[other]) = (Int64(bytes), Int64(other * bytes)) }
    try exchange(own, others)
    func told(_ rank: Int, _ place: Int) -> Int64 { others[rank * (Header.count + count) + place] }
    for other in 0..<size where told(other, Header.fault) != 0 {
      sent.setAll(other == rank ? Self.textSize : 0)
      received.setOne(other, Self.textSize)
      try exchange(text, text + Self.textSize)
      let words = UnsafePointer(text + Self.textSize)
      text[2 * Self.textSize - 1] = 0
      let kind = Fault.Kind(rawValue: Int32(truncatingIfNeeded: told(other, Header.fault)))
      throw Fault(kind ?? .communication, "rank \(other): \(words)")
    }
    for other in 1..<max(size, 1) where told(other, Header.hash) != told(0, Header.hash) {
      throw .invalid(
        "rank \(other) makes another call than rank 0, or has another configuration, placement or number of ranks: all ranks make the same calls of the same layer"
      )
    }
    for other in 1..<max(size, 1) where told(other, Header.call) != told(0, Header.call) {
      throw .badState(
        "this is call number \(Int(told(other, Header.call))) of rank \(other), but number \(Int(told(0, Header.call))) of rank 0: one of them has left calls out"
      )
    }
    expected = next
  }

  // MARK: moving

  private mutating func exchange(_ data: UnsafeRawPointer, _ to: UnsafeMutableRawPointer) throws(Fault) {
    try begin(data, to)
    try finishNext()
  }

  private mutating func begin(_ data: UnsafeRawPointer, _ to: UnsafeMutableRawPointer) throws(Fault) {
    do throws(Fault) { try exchanges.pointee.begin(data, sent, to, received) } catch { throw broken(error) }
  }

  /// Waits for the exchange that began first of those that are under way.
  mutating func finishNext() throws(Fault) {
    do throws(Fault) { try exchanges.pointee.finishNext() } catch { throw broken(error) }
  }

  fileprivate mutating func broken(_ fault: Fault) -> Fault {
    (isBroken, expected) = (true, nil)
    lender?.pointee.isBroken = true
    return fault
  }

  mutating func send(_ data: UnsafeRawPointer, bytes: Int, to other: Int) throws(Fault) {
    do throws(Fault) { try communicator.sendWhole(data, bytes: bytes, to: other) } catch { throw broken(error) }
  }

  mutating func receive(_ data: UnsafeMutableRawPointer, bytes: Int, from other: Int) throws(Fault) {
    do throws(Fault) { try communicator.receiveWhole(data, bytes: bytes, from: other) } catch { throw broken(error) }
  }

  /// What the last rank has, to all others.
  fileprivate mutating func spread(_ sums: UnsafeMutableRawPointer, bytes: Int) throws(Fault) {
    if size == 1 { return }
    sent.setAll(communicator.isLast ? bytes : 0)
    sent.counts[rank] = 0
    received.setOne(size - 1, communicator.isLast ? 0 : bytes)
    try exchange(sums, sums)
  }

  /// At least so many bytes.
  fileprivate mutating func room(_ bytes: Int, _ allocator: Allocator) throws(Fault) -> UnsafeMutableRawPointer {
    if let memory, memoryBytes >= bytes { return memory }
    allocator.deallocate(memory)
    memory = nil
    let new = try allocator.allocate(bytes: bytes)
    (memory, memoryBytes) = (new, bytes)
    return new
  }

  /// Begins to move rows of so many bytes, in whose memory those of a rank begin where rows of `room` bytes would.
  mutating func begin(
    _ rows: UnsafeRawPointer, _ sent: (_ rank: Int) -> Range<Int>, to: UnsafeMutableRawPointer,
    _ received: (_ rank: Int) -> Range<Int>, bytesOfOne: Int, room: Int
  ) throws(Fault) {
    self.sent.set(sent, bytesOfOne: bytesOfOne, room: room)
    self.received.set(received, bytesOfOne: bytesOfOne, room: room)
    try begin(rows, to)
  }
}

extension UnsafeMutablePointer where Pointee == Ranks {
  /// A sum over the tokens of all ranks that goes on from rank to rank: `add` continues what is in `sums`, which then is the whole on
  /// every rank. Nothing in it may fail.
  func chain(
    _ sums: UnsafeMutableRawPointer, bytes: Int, _ add: (_ isFirst: Bool) -> Void
  ) throws(Fault) {
    let rank = pointee.rank
    if rank > 0 { try pointee.receive(sums, bytes: bytes, from: rank - 1) }
    add(rank == 0)
    if !pointee.communicator.isLast { try pointee.send(sums, bytes: bytes, to: rank + 1) }
    try pointee.spread(sums, bytes: bytes)
  }

  /// `add` goes on from the gradients of the ranks before this one; afterwards every rank has those of all tokens. `forEach` lists the
  /// gradients, and `memory` has room for all of them: a transport may write to it after an error, when the gradients' own is long gone.
  func chain(gradients forEach: Gradients, in memory: UnsafeMutablePointer<Float>, _ add: () -> Void) throws(Fault) {
    try chain(memory, bytes: bytes(of: forEach)) { isFirst in
      if !isFirst { take(memory, to: forEach) }
      add()
      put(forEach, to: memory)
    }
    take(memory, to: forEach)
  }

  /// The same of a group's experts, one after another: while a rank goes on with one of them, the next rank does with the one before. What
  /// the last rank comes to goes around in the same way. `memory` has room for one expert.
  func chain(
    _ group: ExpertGroup, of parameters: Parameters, in memory: UnsafeMutablePointer<Float>,
    _ add: (_ expert: Int) -> Void
  ) throws(Fault) {
    let (rank, size, isLast) = (pointee.rank, pointee.size, pointee.communicator.isLast)
    let own = parameters.of(group)
    let bytes = bytes(of: { own.forEachGradient(ofExpert: 0, $0) })
    for expert in 0..<group.experts {
      if rank > 0 {
        try pointee.receive(memory, bytes: bytes, from: rank - 1)
        take(memory, to: { own.forEachGradient(ofExpert: expert, $0) })
      }
      add(expert)
      if isLast { continue }
      put({ own.forEachGradient(ofExpert: expert, $0) }, to: memory)
      try pointee.send(memory, bytes: bytes, to: rank + 1)
    }
    if size == 1 { return }
    for expert in 0..<group.experts {
      if isLast {
        put({ own.forEachGradient(ofExpert: expert, $0) }, to: memory)
      } else {
        try pointee.receive(memory, bytes: bytes, from: (rank + size - 1) % size)
        take(memory, to: { own.forEachGradient(ofExpert: expert, $0) })
      }
      if rank != size - 2 { try pointee.send(memory, bytes: bytes, to: (rank + 1) % size) }
    }
  }

  private func bytes(of forEach: Gradients) -> Int {
    var count = 0
    forEach { count += $1 }
    return count * MemoryLayout<Float>.stride
  }

  private func put(_ forEach: Gradients, to memory: UnsafeMutablePointer<Float>) {
    var place = memory
    forEach {
      place.update(from: $0, count: $1)
      place += $1
    }
  }

  private func take(_ memory: UnsafeMutablePointer<Float>, to forEach: Gradients) {
    var place = memory
    forEach {
      $0.update(from: place, count: $1)
      place += $1
    }
  }

  /// What `layout` cuts out of memory that is kept for the next call.
  func room<Parts>(_ allocator: Allocator, _ layout: (inout Arena) -> Parts) throws(Fault) -> Parts {
    let owner = pointee.lender ?? self
    var arena = Arena(try owner.pointee.room(try Arena.bytes(of: layout), allocator))
    return layout(&arena)
  }
}

// MARK: life

extension UnsafeMutablePointer where Pointee == Ranks {
  static func create(
    _ wanted: Ranks.Wanted, _ c: Configuration.Values?, _ allocator: Allocator
  ) throws(Fault) -> RanksPointer {
    let parts = try allocator.make { (arena: inout Arena) in
      (place: arena.take(Ranks.self, 1), ranks: Ranks(&arena, wanted, c))
    }
    parts.place.initialize(to: parts.ranks)
    parts.ranks.exchanges.initialize(to: Exchanges(wanted.communicator))
    if let c { parts.ranks.placement.fill(wanted.expertsPerRank, c, ranks: wanted.communicator.size) }
    return parts.place
  }

  /// For a call that is no layer's.
  public static func create(_ communicator: Communicator, in context: ContextPointer) throws(Fault) -> RanksPointer {
    try create(
      Ranks.Wanted(communicator, expertsPerRank: nil, choosesLocally: false, .exclusive, configurationHash: 0), nil,
      context.pointee.allocator)
  }

  public func free(in context: ContextPointer) { free(context.pointee.allocator) }

  /// What a transport may still write to stays.
  func free(_ allocator: Allocator) {
    if pointee.isBroken { return }
    allocator.deallocate(pointee.memory)
    allocator.deallocate(self)
  }
}

extension Configuration.Values {
  /// Numbers in the largest agreement about choices: those of each expert, and where room is shared out slot by slot those of each slot.
  var wordsOfCounts: Int { capacity == nil ? experts : experts * topK }
}
