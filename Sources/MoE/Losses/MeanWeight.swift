extension Losses {
  /// sum over e of g_e W_e,  W_e the mean over tokens of the weight of e,  g_e = 1, or by demand E times the share of e in
  /// all choices that weigh something, a constant [ReMoE, Wang et al. 2024]. So d / d w_te = g_e / tokens.
  func meanWeight(_ coefficient: Double, byDemand: Bool) -> Double {
    let counts = statistics.sums.of(.weighed)
    var all = 0.0
    for e in 0..<c.experts { all += counts[e] }
    var value = 0.0
    for e in 0..<c.experts {
      let factor = byDemand ? Double(c.experts) * counts[e] / max(all, 1) : 1
      value += factor * statistics.sums.weights[e] / valid
      if let slope = slopes?.weight { slope[e] += Float(coefficient * factor / valid) }
    }
    return value
  }
}
