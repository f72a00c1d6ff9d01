extension Losses {
  /// Added to the sums [E], of the tokens that count. Choices count before any of them is dropped, but those that have to have a
  /// weight.
  func count(_ what: BalanceFamily.Counts) {
    let counts = statistics.sums.of(what)
    for t in 0..<routing.tokens where routing.counts(t) {
      switch what {
      case .distinct: routing.countChoices(of: t, oncePerToken: true, into: counts)
      case .every: routing.countChoices(of: t, oncePerToken: false, into: counts)
      case .weighed: routing.countWeights(of: t, into: counts)
      case .first: if let first = firstChoice(of: t) { counts[first] += 1 }
      case .largest, .kLargest: break  // while probabilities were at hand: TokenSums.swift
      }
    }
  }

  /// Slots are in order, best first; but where experts choose, the most probable of those that took the token.
  private func firstChoice(of t: Int) -> Int? {
    let first = firstTaken.map { $0[t] } ?? routing.wanted[t * routing.slots]
    return first == .noExpert ? nil : Int(first.chosen)
  }
}

extension Routing {
  /// counts [E] += the experts that have a weight above 0 in a token, once each.
  fileprivate func countWeights(of t: Int, into counts: UnsafeMutablePointer<Double>) {
    let (own, weights) = (indices + t * slots, weights + t * slots)
    for slot in 0..<choices where own[slot].isExpert && weights[slot] > 0 {
      var again = false
      if mayRepeat { for before in 0..<slot where own[before] == own[slot] && weights[before] > 0 { again = true } }
      if !again { counts[Int(own[slot])] += 1 }
    }
  }

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
