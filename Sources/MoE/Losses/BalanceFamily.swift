// All losses that are
//
//     factor * sum over e of count_e P_e      P_e = mean over tokens of P_te
//
// of the whole call, or the mean of that over sequences (one that is all padding counting as 0). They differ in whose
// counts, which P, and the factor. Counts are constants, so  d / d P_te = factor * count_e / tokens.

struct BalanceFamily {
  enum Counts: UInt8 {
    case distinct = 0  // tokens that chose e, once each
    case every = 1  // choices of e
    case weighed = 2  // tokens in which e has a weight above 0
    case first = 3  // tokens whose first choice is e
    // Of probabilities:
    case largest = 4  // tokens whose largest P is that of e
    case kLargest = 5  // tokens with e among their K largest P

    /// How many kinds are of choices.
    static var ofChoices: Int { 4 }
  }

  /// What counts are divided by; all are then times E.
  enum Divisor: UInt8 {
    case tokens
    case choices  // K for each token
    case counted  // all that was counted, here and elsewhere
  }

  var counts: Counts
  var divisor = Divisor.tokens
  /// P are the scores divided by their sum, in place of the probabilities.
  var ofShares = false
  var bySequence = false

  /// Whether its counts are of probabilities, and not of choices.
  var countsLargest: Bool { counts == .largest || counts == .kLargest }

  /// What counts [E] are divided by; adds what was counted elsewhere, too, where that is asked for.
  func divisor(
    _ counts: UnsafeMutablePointer<Double>, tokens: Double, _ c: Configuration, _ call: Call
  ) -> Double {
    switch divisor {
    case .tokens: return tokens
    case .choices: return tokens * Double(c.topK)
    case .counted:
      var total = 0.0
      for e in 0..<c.experts {
        counts[e] += Double(call.globalCounts?[e] ?? 0)
        total += counts[e]
      }
      return total
    }
  }
}

extension Losses {
  /// A loss of the whole call has its slopes now; one of sequences was made as they ended.
  func balance(_ family: BalanceFamily, _ coefficient: Double, term: Int?) -> Double {
    if family.bySequence { return sums.ofSequences(term!, family, slopes) }
    let counts: UnsafeMutablePointer<Double>
    if family.countsLargest {
      counts = sums.counts(term!)
    } else {
      counts = statistics.sums.of(family.counts)
    }
    let factor = Double(c.experts) / family.divisor(counts, tokens: valid, c, call)
    var value = 0.0
    for e in 0..<c.experts {
      let slope = factor * counts[e]
      let mean = sums.hasOwnMeans(family) ? sums.values(term!)[e] / valid : statistics.meanProbability[e]
      value += slope * mean
      slopes?.add(coefficient * slope / valid, toShares: family.ofShares && c.hasScoreShares, e, sequence: nil)
    }
    return value
  }
}
