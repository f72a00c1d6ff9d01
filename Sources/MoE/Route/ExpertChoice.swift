import CShims

/// Each expert takes the C tokens with the largest values for it, the lowest first among equals [Expert choice, Zhou et
/// al. 2022]. A token's slot e is its place with expert e.
struct ExpertChoice {
  let c: Configuration
  let call: Call
  let routing: Routing
  let values: UnsafePointer<Float>  // [T,E]
  private let rankings: Ranking  // of tokens, one for each thread

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, context: ContextPointer, routing: Routing,
    values: UnsafePointer<Float>
  ) {
    self.c = c
    self.call = call
    self.routing = routing
    self.values = values
    rankings = Ranking(&arena, call.tokens, lanes: context.lanes)
  }

  func run(in context: ContextPointer) throws(Fault) {
    for t in 0..<routing.tokens {
      (routing.indices + t * routing.slots).update(repeating: .noExpert, count: c.experts)
    }
    try context.run(c.experts, self)
  }
}

extension ExpertChoice: Job {
  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let ranking = rankings.of(lane.pointee.index)
    let apart = c.capacity?.perSequence ?? false
    for sequence in 0..<call.sequences(apart: apart) {
      if lane.pointee.shouldStop() { return }
      let tokens = call.tokens(ofSequence: sequence, apart: apart)
      let room = c.room(tokens: call.valid(in: tokens), training: call.training)
      var count = 0
      for t in tokens where routing.isValid(t) && values[t * c.experts + expert] != -.infinity {
        ranking.set(count, t, Ranking.descending(values[t * c.experts + expert]))
        count += 1
      }
      ranking.sort(count)
      for i in 0..<min(room, count) {
        routing.indices[ranking[i] * routing.slots + expert] = Int32(truncatingIfNeeded: expert)
      }
    }
  }
}

extension Configuration {
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
    guard router == .expertChoice else { return call.tokens * slots }
    let apart = capacity?.perSequence ?? false
    let tokens = apart ? call.sequenceLength : call.tokens
    // The room grows with the number of tokens.
    let taken = min(room(tokens: tokens, training: call.training), tokens) * call.sequences(apart: apart)
    return experts * taken + call.tokens * shared
  }
}
