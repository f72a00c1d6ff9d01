extension Losses {
  /// (sum over t of lse[t]^2) / tokens [ST-MoE 2022];  d / d lse[t] = 2 lse[t] / tokens
  func squaredLogSumExp(_ coefficient: Double, tokens: Double) -> Double {
    slopes?.logSumExp.pointee += Float(coefficient * 2 / tokens)
    return squares / tokens
  }
}
