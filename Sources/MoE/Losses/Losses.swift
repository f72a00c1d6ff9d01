// Losses that keep the router healthy, and the statistics that show whether it is. Sums over tokens run in ascending
// order and in double, so that they do not depend on how the tokens were divided.

/// Losses and statistics of one call.
public struct Report {
  public var balanceLoss: Float = 0
  public var zLoss: Float = 0
  public var auxLoss: Float = 0
  public var entropy: Float = 0
}

extension Report {
  /// Balance loss over all K choices, E * sum of f_e P_e [Switch 2021]; z-loss, mean of logsumexp^2 [ST-MoE 2022].
  /// `mean` [E] is where P_e is summed.
  init(
    _ c: Configuration, routing: Routing, dispatch: Dispatch, entropy: UnsafePointer<Float>,
    mean: UnsafeMutablePointer<Double>
  ) {
    let (tokens, experts) = (routing.tokens, c.experts)
    mean.initialize(repeating: 0, count: experts)
    if tokens == 0 { return }
    var squares = 0.0
    var entropies = 0.0
    for t in 0..<tokens {
      let p = routing.probabilities + t * experts
      for e in 0..<experts { mean[e] += Double(p[e]) }
      squares += Double(routing.logSumExp[t]) * Double(routing.logSumExp[t])
      entropies += Double(entropy[t])
    }
    let perToken = 1 / Double(tokens)
    var balance = 0.0
    for e in 0..<experts {
      mean[e] *= perToken
      balance += Double(dispatch.count(ofExpert: e)) * perToken * mean[e]
    }
    balanceLoss = Float(balance * Double(experts))
    zLoss = Float(squares * perToken)
    auxLoss = c.balanceCoefficient * balanceLoss + c.zCoefficient * zLoss
    self.entropy = Float(entropies * perToken)
  }
}

// MARK: backward

/// Gradient of d_aux_loss * aux_loss. Counts are constants; the balance loss is reached through P alone.
struct LossGradient {
  /// d / d p[t,e] of the balance loss: the same for every token.
  let probability: UnsafeMutablePointer<Float>  // [E]
  private let zFactor: Float

  init(_ arena: inout Arena, _ c: Configuration, tokens: Int, dAuxLoss: Float) {
    probability = arena.take(Float.self, c.experts)
    zFactor = tokens == 0 ? 0 : Float(Double(dAuxLoss) * Double(c.zCoefficient) * 2 / Double(tokens))
  }

  /// balance = E * sum of (count_e / T) * (sum over t of p[t,e] / T)
  func prepare(_ c: Configuration, dispatch: Dispatch, tokens: Int, dAuxLoss: Float) {
    let factor = Double(dAuxLoss) * Double(c.balanceCoefficient) * Double(c.experts) / Double(tokens) / Double(tokens)
    for e in 0..<c.experts { probability[e] = Float(factor * Double(dispatch.count(ofExpert: e))) }
  }

  func setProbabilityGradient(_ dp: UnsafeMutablePointer<Float>, count: Int) {
    dp.update(from: probability, count: count)
  }

  /// d z-loss / d lse[t]; lse's own gradient with respect to the logits is p.
  func logSumExpGradient(_ logSumExp: Float) -> Float { zFactor * logSumExp }
}
