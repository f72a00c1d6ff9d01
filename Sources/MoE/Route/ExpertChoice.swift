import CShims

/// Each expert takes the C tokens with the largest values for it, the lowest first among equals [Expert choice, Zhou et
/// al. 2022]. A token's slot e is its place with expert e.
struct ExpertChoice {
  let c: Configuration
  let call: Call
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let values: UnsafePointer<Float>  // [T,E]
  private let column: UnsafeMutablePointer<Float>  // [lanes, T]
  private let best: UnsafeMutablePointer<Float>  // [lanes, T]
  private let places: UnsafeMutablePointer<Int32>  // [lanes, T]

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, context: ContextPointer, routing: Routing,
    values: UnsafePointer<Float>
  ) {
    self.c = c
    self.call = call
    kernels = context.kernels
    self.routing = routing
    self.values = values
    column = arena.take(Float.self, context.lanes, call.tokens)
    best = arena.take(Float.self, context.lanes, call.tokens)
    places = arena.take(Int32.self, context.lanes, call.tokens)
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
    let index = lane.pointee.index
    let (column, best, places) = (
      column + index * call.tokens, best + index * call.tokens, places + index * call.tokens
    )
    let apart = c.capacity?.perSequence ?? false
    for sequence in 0..<call.sequences(apart: apart) {
      if lane.pointee.shouldStop() { return }
      let tokens = call.tokens(ofSequence: sequence, apart: apart)
      let valid = call.valid(in: tokens)
      let room = min(c.room(tokens: valid, training: call.training), valid)
      if room == 0 { continue }
      for t in tokens {
        column[t - tokens.lowerBound] = routing.isValid(t) ? values[t * c.experts + expert] : -.infinity
      }
      kernels.pointee.top_k(Int64(tokens.count), Int64(room), column, places, best)
      for i in 0..<room where best[i] != -.infinity {
        let t = tokens.lowerBound + Int(places[i])
        routing.indices[t * routing.slots + expert] = Int32(truncatingIfNeeded: expert)
      }
    }
  }
}

extension Configuration {
  /// Tokens that an expert takes when experts choose: without a formula K experts a token on average.
  fileprivate func room(tokens: Int, training: Bool) -> Int {
    if let capacity { return capacity.room(tokens: tokens, topK: topK, experts: experts, training: training, load: tokens) }
    return Int((Double(tokens) * Double(topK) / Double(experts)).rounded(.up))
  }

  /// Rows that a call's tokens have at most.
  func mostRows(_ call: Call) -> Int {
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
