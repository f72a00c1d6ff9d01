// All losses that are
//
//     factor * sum over e of count_e P_e      P_e = mean over tokens of P_te
//
// of the whole call, or the mean of that over sequences (one that is all padding counting as 0). They differ in whose
// counts, which P, and the factor. Counts are constants, so  d / d P_te = factor * count_e / tokens.

struct BalanceFamily {
  enum Counts: UInt8 {
    case distinct  // tokens that chose e, once each
    case every  // choices of e
    case first  // tokens whose first choice is e
    case largest  // tokens whose largest P is that of e
    case kLargest  // tokens with e among their K largest P
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
}

extension LossTerm.Kind {
  /// nil for losses of another form.
  func balanceFamily(topK: Int) -> BalanceFamily? {
    switch self {
    case .balance: BalanceFamily(counts: .distinct)
    case .balanceCount: BalanceFamily(counts: .every)
    case .transformers: BalanceFamily(counts: .kLargest)
    case .switchTransformer: BalanceFamily(counts: .largest)
    case .switchSequence: BalanceFamily(counts: .largest, bySequence: true)
    // E^2 times the mean over experts is E times the sum.
    case .gShard, .tutelGShard: BalanceFamily(counts: .first)
    case .deepSpeed:
      topK <= 2 ? BalanceFamily(counts: .first) : BalanceFamily(counts: .every, divisor: .choices)
    case .megatron: BalanceFamily(counts: .kLargest, divisor: .choices, ofShares: true)
    case .megatronSequence:
      BalanceFamily(counts: .kLargest, divisor: .choices, ofShares: true, bySequence: true)
    case .megatronGlobal: BalanceFamily(counts: .kLargest, divisor: .counted, ofShares: true)
    case .variance, .importance, .load, .shazeer, .tutelImportanceLoad, .z, .zSwitch: nil
    }
  }
}

extension Losses {
  func balance(_ family: BalanceFamily, _ coefficient: Double) -> Double {
    let sequences = call.sequences(apart: family.bySequence)
    let p = UnsafePointer(family.ofShares ? measures.shares : routing.probabilities)
    let toShares = family.ofShares && c.hasScoreShares
    var value = 0.0
    for s in 0..<sequences {
      let range = call.tokens(ofSequence: s, apart: family.bySequence)
      let tokens = Double(call.valid(in: range))
      if tokens == 0 { continue }
      count(family.counts, of: p, in: range)
      let mean = means(of: p, in: range, tokens: tokens)
      let factor = Double(c.experts) / (divisor(family.divisor, tokens: tokens) * Double(sequences))
      for e in 0..<c.experts {
        let slope = factor * statistics.counts[e]
        value += slope * mean[e]
        slopes?.add(
          coefficient * slope / tokens, toShares: toShares, e, sequence: family.bySequence ? s : nil)
      }
    }
    return value
  }

  /// Adds what was counted elsewhere, too, where that is asked for.
  private func divisor(_ divisor: BalanceFamily.Divisor, tokens: Double) -> Double {
    switch divisor {
    case .tokens: return tokens
    case .choices: return tokens * Double(c.topK)
    case .counted:
      var total = 0.0
      for e in 0..<c.experts {
        statistics.counts[e] += Double(call.globalCounts?[e] ?? 0)
        total += statistics.counts[e]
      }
      return total
    }
  }

  /// [E] of some tokens; those of the whole call are known.
  private func means(
    of p: UnsafePointer<Float>, in range: Range<Int>, tokens: Double
  ) -> UnsafePointer<Double> {
    if p == UnsafePointer(routing.probabilities) && range.count == routing.tokens {
      return UnsafePointer(statistics.meanProbability)
    }
    let means = statistics.means
    means.initialize(repeating: 0, count: c.experts)
    for t in range where routing.isValid(t) {
      for e in 0..<c.experts { means[e] += Double(p[t * c.experts + e]) }
    }
    for e in 0..<c.experts { means[e] /= tokens }
    return UnsafePointer(means)
  }
}
