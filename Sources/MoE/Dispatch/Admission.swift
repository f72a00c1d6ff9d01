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
    givenSecond = draws.given.second
    shuffle = c.capacity?.order == .random && call.training ? draws.of(.dropOrder) : nil
    let pairs = c.capacity == nil ? 0 : call.tokens * c.topK
    ranking = Ranking(&arena, pairs)
    room = arena.take(Int.self, c.experts)
  }

  /// Weights have to be made again afterwards.
  func run() {
    if c.movesChoices(call) { routing.wanted.update(from: routing.indices, count: routing.tokens * routing.slots) }
    if let second { leaveSecondsOut(second) }
    if let capacity = c.capacity {
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
    for t in 0..<call.tokens where routing.isValid(t) && index(t, 1).pointee.isExpert {
      let uniform = givenSecond?[t] ?? Float(random.word(UInt64(t)) >> 9) * 0x1p-23
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
    var most = 0
    for e in 0..<c.experts { most = max(most, room[e]) }
    let usual = capacity.room(
      tokens: call.valid(in: tokens), topK: c.topK, experts: c.experts, training: call.training, load: most)
    for e in 0..<c.experts { room[e] = capacity.adapted(usual, load: room[e]) }
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
