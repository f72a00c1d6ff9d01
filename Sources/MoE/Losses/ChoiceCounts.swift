import CShims

extension Losses {
  /// Into statistics.counts [E], of the valid tokens in a range. Choices count before any of them is dropped.
  func count(_ what: BalanceFamily.Counts, of p: UnsafePointer<Float>, in range: Range<Int>) {
    let counts = statistics.counts
    counts.initialize(repeating: 0, count: c.experts)
    for t in range where routing.isValid(t) {
      switch what {
      case .distinct: routing.countChoices(of: t, oncePerToken: true, into: counts)
      case .every: routing.countChoices(of: t, oncePerToken: false, into: counts)
      case .first: if let first = firstChoice(of: t) { counts[first] += 1 }
      case .largest: countLargest(1, p + t * c.experts)
      case .kLargest: countLargest(c.topK, p + t * c.experts)
      }
    }
  }

  private func countLargest(_ k: Int, _ p: UnsafePointer<Float>) {
    kernels.pointee.top_k(Int64(c.experts), Int64(k), p, statistics.places, statistics.best)
    for i in 0..<k { statistics.counts[Int(statistics.places[i])] += 1 }
  }

  /// Slots are in order, best first; but where experts choose, the most probable of those that took the token.
  private func firstChoice(of t: Int) -> Int? {
    let own = routing.wanted + t * routing.slots
    if c.router != .expertChoice { return own[0] == .noExpert ? nil : Int(own[0].chosen) }
    let p = routing.probabilities + t * c.experts
    var first: Int?
    for e in 0..<c.experts where own[e] != .noExpert && (first == nil || p[e] > p[first!]) { first = e }
    return first
  }
}

extension Routing {
  /// counts [E] += the choices of a token, dropped, moved or not.
  fileprivate func countChoices(of t: Int, oncePerToken: Bool, into counts: UnsafeMutablePointer<Double>) {
    let own = wanted + t * slots
    for slot in 0..<choices where own[slot] != .noExpert {
      var again = false
      if oncePerToken && mayRepeat {
        for before in 0..<slot where own[before].chosen == own[slot].chosen { again = true }
      }
      if !again { counts[Int(own[slot].chosen)] += 1 }
    }
  }
}
