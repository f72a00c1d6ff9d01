/// What is counted and measured in one call.
struct CallStatistics {
  let meanProbability: UnsafeMutablePointer<Double>  // [E]
  let computed: UnsafeMutablePointer<Int64>  // [E]
  let dropped: UnsafeMutablePointer<Int64>  // [E]
  let losses: UnsafeMutablePointer<Float>  // [losses]
  // Scratch of one loss.
  let counts: UnsafeMutablePointer<Double>  // [E]
  let means: UnsafeMutablePointer<Double>  // [E]
  private let experts: Int

  init(_ arena: inout Arena, _ c: Configuration) {
    experts = c.experts
    meanProbability = arena.take(Double.self, c.experts)
    computed = arena.take(Int64.self, c.experts)
    dropped = arena.take(Int64.self, c.experts)
    losses = arena.take(Float.self, c.lossCount)
    counts = arena.take(Double.self, c.experts)
    means = arena.take(Double.self, c.lossCount == 0 ? 0 : c.experts)
  }

  /// What is computed and what was dropped, of the tokens that count; returns the sum of the latter. Padding that counts has
  /// its choices among the former.
  func count(_ routing: Routing) -> Int {
    var total = 0
    dropped.initialize(repeating: 0, count: experts)
    computed.initialize(repeating: 0, count: experts)
    for t in 0..<routing.tokens where routing.counts(t) {
      for pair in t * routing.slots..<t * routing.slots + routing.choices {
        let index = routing.indices[pair]
        if index.isExpert || index.wasDropped && !routing.isValid(t) {
          computed[Int(index.chosen)] += 1
        } else if index.wasDropped {
          dropped[Int(index.chosen)] += 1
          total += 1
        }
      }
    }
    return total
  }
}
