// Losses that keep the router healthy, and the statistics that show whether it is. Sums over tokens run in ascending
// order and in double, so that they do not depend on how the tokens were divided.

/// Losses and statistics of one call.
public struct Report {
  public var balanceLoss: Float = 0
  public var zLoss: Float = 0
  public var auxLoss: Float = 0
  public var entropy: Float = 0
  public var valid = 0
  public var dropped = 0
  public var load = Load()
}

/// What is counted in one call.
struct CallStatistics {
  let meanProbability: UnsafeMutablePointer<Double>  // [E]
  let counts: UnsafeMutablePointer<Int>  // [E] tokens that chose
  let computed: UnsafeMutablePointer<Int64>  // [E]
  let dropped: UnsafeMutablePointer<Int64>  // [E]
  let losses: UnsafeMutablePointer<Float>  // [losses]
  private let experts: Int

  init(_ arena: inout Arena, _ c: Configuration) {
    experts = c.experts
    meanProbability = arena.take(Double.self, c.experts)
    counts = arena.take(Int.self, c.experts)
    computed = arena.take(Int64.self, c.experts)
    dropped = arena.take(Int64.self, c.experts)
    losses = arena.take(Float.self, c.lossCount)
  }

  /// What is computed and what was dropped; returns the sum of the latter.
  fileprivate func count(_ routing: Routing, _ dispatch: Dispatch) -> Int {
    var total = 0
    dropped.initialize(repeating: 0, count: experts)
    for e in 0..<experts { computed[e] = Int64(dispatch.count(ofExpert: e)) }
    for t in 0..<routing.tokens {
      for pair in t * routing.slots..<t * routing.slots + routing.choices where routing.indices[pair].wasDropped {
        dropped[Int(routing.indices[pair].chosen)] += 1
        total += 1
      }
    }
    return total
  }
}

extension Report {
  /// Balance loss over all K choices, E * sum of f_e P_e [Switch 2021]; z-loss, mean of logsumexp^2 [ST-MoE 2022].
  init(
    _ c: Configuration, _ call: Call, routing: Routing, dispatch: Dispatch, entropy: UnsafePointer<Float>,
    _ statistics: CallStatistics
  ) {
    let (tokens, experts) = (routing.tokens, c.experts)
    let (mean, counts) = (statistics.meanProbability, statistics.counts)
    mean.initialize(repeating: 0, count: experts)
    routing.count(into: counts, experts: experts)
    dropped = statistics.count(routing, dispatch)
    load = Load(statistics.computed, experts: experts)
    valid = routing.validCount.pointee
    if valid == 0 || !c.hasGate { return }
    var squares = 0.0
    var entropies = 0.0
    for t in 0..<tokens where routing.isValid(t) {
      let p = routing.probabilities + t * experts
      for e in 0..<experts { mean[e] += Double(p[e]) }
      squares += Double(routing.logSumExp[t]) * Double(routing.logSumExp[t])
      entropies += Double(entropy[t])
    }
    let perToken = 1 / Double(valid)
    var balance = 0.0
    for e in 0..<experts {
      mean[e] *= perToken
      balance += Double(counts[e]) * perToken * mean[e]
    }
    balanceLoss = Float(balance * Double(experts))
    zLoss = Float(squares * perToken)
    auxLoss = c.balanceCoefficient * balanceLoss + c.zCoefficient * zLoss
    self.entropy = Float(entropies * perToken)
  }
}

extension Routing {
  /// Tokens that chose each expert, dropped or not; a token that names one twice counts once.
  func count(into counts: UnsafeMutablePointer<Int>, experts: Int) {
    counts.initialize(repeating: 0, count: experts)
    for t in 0..<tokens {
      let own = wanted + t * slots
      for slot in 0..<choices where own[slot] != .noExpert {
        var again = false
        if mayRepeat { for before in 0..<slot where own[before].chosen == own[slot].chosen { again = true } }
        if !again { counts[Int(own[slot].chosen)] += 1 }
      }
    }
  }
}

// MARK: backward

/// Gradient of d_aux_loss * aux_loss. Counts are constants; the balance loss is reached through P alone.
struct LossGradient {
  /// d / d p[t,e]: the same for every token.
  private let probability: UnsafeMutablePointer<Float>  // [E]
  private let counts: UnsafeMutablePointer<Int>  // [E]
  private let c: Configuration
  private let routing: Routing
  private let dAuxLoss: Float
  private let dMeanProbability: UnsafePointer<Float>?  // [E]

  init(
    _ arena: inout Arena, _ c: Configuration, tape: TapeContents, dAuxLoss: Float,
    dMeanProbability: UnsafePointer<Float>?
  ) {
    probability = arena.take(Float.self, c.experts)
    counts = arena.take(Int.self, c.experts)
    self.c = c
    routing = tape.routing
    self.dAuxLoss = dAuxLoss
    self.dMeanProbability = dMeanProbability
  }

  /// balance = E * sum of (count_e / T) * (sum over t of p[t,e] / T)
  func prepare() {
    let tokens = Double(max(routing.validCount.pointee, 1))
    routing.count(into: counts, experts: c.experts)
    let factor = Double(dAuxLoss) * Double(c.balanceCoefficient) * Double(c.experts) / tokens / tokens
    for e in 0..<c.experts {
      probability[e] = Float(factor * Double(counts[e]) + Double(dMeanProbability?[e] ?? 0) / tokens)
    }
  }

  func setProbabilityGradient(_ t: Int, _ dp: UnsafeMutablePointer<Float>) {
    dp.update(from: probability, count: c.experts)
  }

  /// d z-loss / d lse[t]; lse's own gradient with respect to the logits is p.
  func logSumExpGradient(_ logSumExp: Float) -> Float {
    Float(Double(dAuxLoss) * Double(c.zCoefficient) * 2 / Double(routing.validCount.pointee)) * logSumExp
  }

  /// The gradient of losses of the weights.
  func addToWeights(_ dw: UnsafeMutablePointer<Float>, _ indices: UnsafePointer<Int32>, _ count: Int) {}
}
