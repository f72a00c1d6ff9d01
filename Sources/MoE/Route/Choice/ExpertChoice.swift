import CShims

/// Each expert takes the C tokens with the largest values for it, the lowest first among equals [Expert choice, Zhou et
/// al. 2022]. A token's slot e is its place with expert e. Tokens come by wave after wave; an expert keeps its best so far.
struct ExpertChoice {
  let c: Configuration
  let call: Call
  let context: ContextPointer
  let routing: Routing
  private let selection: Selection
  let values: TokenRows  // of a wave
  fileprivate let most: Int  // that an expert takes of a sequence
  fileprivate let keys: UnsafeMutablePointer<UInt64>  // [E,most] see Ranking
  fileprivate let counts: UnsafeMutablePointer<Int>  // [E] keys that are kept

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, context: ContextPointer, routing: Routing,
    selection: Selection, values: TokenRows
  ) {
    self.c = c
    self.call = call
    self.context = context
    self.routing = routing
    self.selection = selection
    self.values = values
    most = c.mostTaken(call)
    keys = arena.take(UInt64.self, c.experts, most)
    counts = arena.take(Int.self, c.experts)
  }

  func prepare() {
    counts.initialize(repeating: 0, count: c.experts)
    for t in 0..<routing.tokens {
      (routing.indices + t * routing.slots).update(repeating: .noExpert, count: c.experts)
    }
  }

  func note(_ t: Int, logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>) {
    selection.fill(values.of(t), logits: z, probabilities: p)
  }

  /// The tokens of a wave, whose values are known.
  func offer(_ tokens: Range<Int>) throws(Fault) {
    try call.forSequences(of: tokens, apart: c.choosesBySequence) { (sequence, part) throws(Fault) in
      let room = min(c.room(tokens: call.valid(in: sequence), training: call.training), most)
      try context.run(
        c.experts,
        OfferTokens(choice: self, tokens: part, room: room, isLast: part.upperBound == sequence.upperBound))
    }
  }
}

/// Offers tokens of one sequence to an expert, which after the last of them takes those it has kept.
private struct OfferTokens: Job {
  let choice: ExpertChoice
  let tokens: Range<Int>
  let room: Int
  let isLast: Bool

  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let routing = choice.routing
    var best = SmallestKeys(choice.keys + expert * choice.most, room: room, count: choice.counts[expert])
    for t in tokens where routing.isValid(t) {
      let value = choice.values.of(t)[expert]
      if value != -.infinity { best.offer(Ranking.key(t, Ranking.descending(value))) }
    }
    choice.counts[expert] = isLast ? 0 : best.count
    if !isLast { return }
    for i in 0..<best.count {
      routing.indices[Ranking.number(best[i]) * routing.slots + expert] = Int32(truncatingIfNeeded: expert)
    }
  }
}

extension Configuration {
  fileprivate var choosesBySequence: Bool { capacity?.perSequence ?? false }

  /// Tokens that an expert takes when experts choose: without a formula K experts a token on average.
  fileprivate func room(tokens: Int, training: Bool) -> Int {
    if let capacity {
      return capacity.room(tokens: tokens, topK: topK, experts: experts, training: training, load: tokens)
    }
    return Int((Double(tokens) * Double(topK) / Double(experts)).rounded(.up))
  }

  /// Rows that so many of a call's tokens have at most.
  func mostRows(_ call: Call, of chunk: Int) -> Int { min(chunk * slots, mostRows(call)) }

  private func mostRows(_ call: Call) -> Int {
    if let given = call.givenIndices {
      var rows = call.tokens * shared
      for pair in 0..<call.tokens * choices where given[pair].isExpert { rows += 1 }
      return rows
    }
    guard router.listsAllExperts else { return call.tokens * slots }
    return experts * mostTaken(call) * call.sequences(apart: choosesBySequence) + call.tokens * shared
  }

  /// Tokens of one sequence that an expert takes at most: the room grows with the number of tokens.
  fileprivate func mostTaken(_ call: Call) -> Int {
    let tokens = choosesBySequence ? call.sequenceLength : call.tokens
    return min(room(tokens: tokens, training: call.training), tokens)
  }
}
