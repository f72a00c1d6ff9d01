import CShims

/// Lets choices in while their experts have room, in the order that the configuration says. A choice without room goes to
/// the token's next best expert that has some, or is dropped.
struct Admission {
  private let c: Configuration
  private let call: Call
  private let routing: Routing
  private let values: TokenRows  // what experts are chosen by, of all tokens, for the next best
  private let second: Random?
  private let givenSecond: UnsafePointer<Float>?  // [T]
  private let shuffle: Random?
  private let ranking: Ranking  // of pairs, or of tokens
  private let room: UnsafeMutablePointer<Int>  // [E] that is left

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, _ draws: Draws, routing: Routing,
    values: TokenRows
  ) {
    self.c = c
    self.call = call
    self.routing = routing
    self.values = values
    second = c.exploration.randomSecond && call.training ? draws.of(.secondChoice) : nil
    givenSecond = call.given.second
    shuffle = c.capacity?.order == .random && call.training ? draws.of(.dropOrder) : nil
    let pairs = c.capacity == nil ? 0 : call.tokens * c.topK
    ranking = Ranking(&arena, pairs)
    room = arena.take(Int.self, c.experts)
  }

  /// Weights have to be made again afterwards.
  func run() throws(Fault) {
    if c.movesChoices(call) { routing.wanted.update(from: routing.indices, count: routing.tokens * routing.slots) }
    if let second { leaveSecondsOut(second) }
    if let capacity = c.capacity {
      if let ranks = call.ranks, c.sharesRoom(ranks) { return try admit(capacity, over: ranks) }
      for sequence in 0..<call.sequences(apart: capacity.perSequence) {
        admit(capacity, call.tokens(ofSequence: sequence, apart: capacity.perSequence))
      }
    }
  }

  private func index(_ t: Int, _ slot: Int) -> UnsafeMutablePointer<Int32> {
    routing.indices + t * routing.slots + slot
  }
  private func weight(_ t: Int, _ slot: Int) -> Float { routing.weights[t * routing.slots + slot] }

  /// A second choice of weight w is kept with probability 2 w [GShard 2020]; the first keeps its weight.
  private func leaveSecondsOut(_ random: Random) {
    let firstToken = call.ranks?.pointee.all.first ?? 0
    for t in 0..<call.tokens where routing.isValid(t) && index(t, 1).pointee.isExpert {
      let uniform = givenSecond?[t] ?? Float(random.word(UInt64(firstToken + t)) >> 9) * 0x1p-23
      if 2 * weight(t, 1) < uniform { index(t, 1).pointee = index(t, 1).pointee.dropped }
    }
  }

  private func admit(_ capacity: Capacity, _ tokens: Range<Int>) {
    setRoom(capacity, tokens)
    let count = order(capacity, tokens)
    for i in 0..<count {
      let pair = ranking[i]
      let (t, slot) = (pair / c.topK, pair % c.topK)
      let own = index(t, slot)
      if room[Int(own.pointee)] == 0, capacity.nextBest, let next = nextBest(t) { own.pointee = next }
      if room[Int(own.pointee)] > 0 { room[Int(own.pointee)] -= 1 } else { own.pointee = own.pointee.dropped }
    }
  }

  private func setRoom(_ capacity: Capacity, _ tokens: Range<Int>) {
    room.update(repeating: 0, count: c.experts)
    for t in tokens {
      for slot in 0..<c.topK where index(t, slot).pointee.isExpert { room[Int(index(t, slot).pointee)] += 1 }
    }
    setRoom(capacity, tokens: call.valid(in: tokens))
  }

  /// From the choices of each expert in `room`, and so many tokens.
  private func setRoom(_ capacity: Capacity, tokens: Int) {
    var most = 0
    for e in 0..<c.experts { most = max(most, room[e]) }
    let usual = capacity.room(tokens: tokens, topK: c.topK, experts: c.experts, training: call.training, load: most)
    for e in 0..<c.experts { room[e] = capacity.adapted(usual, load: room[e]) }
  }

  // MARK: over several ranks

  /// The same for the tokens of all ranks, in the order of the ranks: what those before this one take is known by counting.
  private func admit(_ capacity: Capacity, over ranks: RanksPointer) throws(Fault) {
    let words = c.experts * c.topK  // [K,E] choices of each expert, slot by slot
    let own = ranks.pointee.words
    own.update(repeating: 0, count: words)
    for t in 0..<call.tokens {
      for slot in 0..<c.topK where index(t, slot).pointee.isExpert {
        own[slot * c.experts + Int(index(t, slot).pointee)] += 1
      }
    }
    try ranks.pointee.agree(words, nil, next: c.experts)
    func wanted(by rank: Int, _ slot: Int, _ e: Int) -> Int {
      Int(ranks.pointee.words(of: rank, words)[slot * c.experts + e])
    }
    let (rank, all) = (ranks.pointee.rank, 0..<ranks.pointee.size)
    room.update(repeating: 0, count: c.experts)
    for other in all { for slot in 0..<c.topK { for e in 0..<c.experts { room[e] += wanted(by: other, slot, e) } } }
    setRoom(capacity, tokens: ranks.pointee.all.valid)
    func take(_ slot: Int, _ range: Range<Int>) {
      for other in range { for e in 0..<c.experts { room[e] = max(0, room[e] - wanted(by: other, slot, e)) } }
    }
    func admit(_ t: Int, _ slot: Int) {
      let own = index(t, slot)
      guard own.pointee.isExpert else { return }
      if room[Int(own.pointee)] > 0 { room[Int(own.pointee)] -= 1 } else { own.pointee = own.pointee.dropped }
    }
    if capacity.order == .choicePosition {
      for slot in 0..<c.topK {
        take(slot, 0..<rank)
        for t in 0..<call.tokens { admit(t, slot) }
        take(slot, rank + 1..<ranks.pointee.size)
      }
    } else {
      for slot in 0..<c.topK { take(slot, 0..<rank) }
      for t in 0..<call.tokens { for slot in 0..<c.topK { admit(t, slot) } }
    }
  }

  /// The best expert with room that the token does not hold yet.
  private func nextBest(_ t: Int) -> Int32? {
    var best: Int32?
    var bestValue = -Float.infinity
    let values = values.of(t)
    for e in 0..<c.experts where room[e] > 0 && values[e] > bestValue {
      var held = false
      for slot in 0..<c.topK where index(t, slot).pointee == Int32(truncatingIfNeeded: e) { held = true }
      if held { continue }
      best = Int32(truncatingIfNeeded: e)
      bestValue = values[e]
    }
    return best
  }

  // MARK: the order

  /// Ranks the tokens' choices and returns how many there are.
  private func order(_ capacity: Capacity, _ tokens: Range<Int>) -> Int {
    var count = 0
    func add(_ t: Int, _ slot: Int, _ priority: UInt32) {
      guard index(t, slot).pointee.isExpert else { return }
      ranking.set(count, t * c.topK + slot, priority)
      count += 1
    }
    switch capacity.order {
    case .random where shuffle != nil:
      for t in tokens { for slot in 0..<c.topK { add(t, slot, shuffle!.word(UInt64(t * c.topK + slot))) } }
      ranking.sort(count)
    case .position, .random:
      for t in tokens { for slot in 0..<c.topK { add(t, slot, 0) } }
    case .choicePosition:
      for slot in 0..<c.topK { for t in tokens { add(t, slot, 0) } }
    case .probability:
      for t in tokens { for slot in 0..<c.topK { add(t, slot, Ranking.descending(weight(t, slot))) } }
      ranking.sort(count)
    case .batchPrioritized:
      // First the tokens among themselves, then slot by slot in that order.
      for t in tokens {
        var largest = -Float.infinity
        for slot in 0..<c.topK where index(t, slot).pointee.isExpert { largest = max(largest, weight(t, slot)) }
        ranking.set(count, t, Ranking.descending(largest))
        count += 1
      }
      ranking.sort(count)
      let all = count
      ranking.keepAside(all)
      count = 0
      for slot in 0..<c.topK { for i in 0..<all { add(ranking.aside(i), slot, 0) } }
    }
    return count
  }
}
