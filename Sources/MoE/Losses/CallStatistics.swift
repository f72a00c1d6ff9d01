/// What is counted and measured in one call.
struct CallStatistics {
  let meanProbability: UnsafeMutablePointer<Double>  // [E]
  let computed: UnsafeMutablePointer<Int64>  // [E]
  let dropped: UnsafeMutablePointer<Int64>  // [E]
  let losses: UnsafeMutablePointer<Float>  // [losses]
  /// What losses count and add up over the tokens, see LossSums.swift.
  let sums: LossSums
  let means: UnsafeMutablePointer<Double>  // [E] scratch of one loss
  private let experts: Int

  init(_ arena: inout Arena, _ c: Configuration) {
    experts = c.experts
    meanProbability = arena.take(Double.self, c.experts)
    computed = arena.take(Int64.self, c.experts)
    dropped = arena.take(Int64.self, c.experts)
    losses = arena.take(Float.self, c.lossCount)
    sums = LossSums(&arena, c)
    means = arena.take(Double.self, c.lossCount == 0 ? 0 : c.experts)
  }

  func clear() {
    dropped.initialize(repeating: 0, count: experts)
    computed.initialize(repeating: 0, count: experts)
    sums.clear()
  }

  var droppedTotal: Int {
    var total = 0
    for e in 0..<experts { total += Int(dropped[e]) }
    return total
  }

  /// Adds what is computed and what was dropped, of the tokens that count. Padding that counts has its choices among the former.
  func count(_ routing: Routing) {
    for t in 0..<routing.tokens where routing.counts(t) {
      for pair in t * routing.slots..<t * routing.slots + routing.choices {
        let index = routing.indices[pair]
        if index.isExpert || index.wasDropped && !routing.isValid(t) {
          computed[Int(index.chosen)] += 1
        } else if index.wasDropped {
          dropped[Int(index.chosen)] += 1
        }
      }
    }
  }
}
