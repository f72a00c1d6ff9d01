// Losses of how much numbers v_e differ from expert to expert [Shazeer 2017]:
//
//     CV^2(v) = var(v) / (mean(v)^2 + 1e-10)      var the unbiased variance, 0 for E = 1

extension Losses {
  /// CV^2 of v [E] in statistics.means, which become its slopes.
  private func variation() -> Double {
    let (v, experts) = (statistics.means, Double(c.experts))
    let (mean, variance) = meanAndVariance(v)
    let size = mean * mean + 1e-10
    for e in 0..<c.experts {
      let ofVariance = c.experts == 1 ? 0 : 2 * (v[e] - mean) / (experts - 1)
      v[e] = ofVariance / size - variance / (size * size) * 2 * mean / experts
    }
    return variance / size
  }

  private func meanAndVariance(_ v: UnsafePointer<Double>) -> (mean: Double, variance: Double) {
    let experts = Double(c.experts)
    var sum = 0.0
    for e in 0..<c.experts { sum += v[e] }
    let mean = sum / experts
    var squares = 0.0
    for e in 0..<c.experts { squares += (v[e] - mean) * (v[e] - mean) }
    return (mean, c.experts == 1 ? 0 : squares / (experts - 1))
  }

  /// var(counts) / (T K / E)^2, every choice counted; constants have no gradient.
  func variance() -> Double {
    let even = valid * Double(c.topK) / Double(c.experts)
    return meanAndVariance(statistics.sums.of(.every)).variance / (even * even)
  }

  /// Of the sums of weights in use.
  func importance(_ coefficient: Double) -> Double {
    let sums = statistics.means
    sums.update(from: statistics.sums.weights, count: c.experts)
    let value = variation()
    if let slope = slopes?.weight { for e in 0..<c.experts { slope[e] += Float(coefficient * sums[e]) } }
    return value
  }

  /// Of the sums of probabilities, as Tutel has it.
  func importanceOfProbabilities(_ coefficient: Double) -> Double {
    let sums = statistics.means
    for e in 0..<c.experts { sums[e] = valid * statistics.meanProbability[e] }
    let value = variation()
    for e in 0..<c.experts { slopes?.add(coefficient * sums[e], toShares: false, e, sequence: nil) }
    return value
  }

  /// Of the smooth loads, see SmoothLoad.
  func load(_ coefficient: Double) -> Double {
    guard let loads = self.sums.loads else { return 0 }  // every expert has all tokens
    let sums = statistics.means
    sums.update(from: loads, count: c.experts)
    let value = variation()
    if let slope = slopes?.load { for e in 0..<c.experts { slope[e] += Float(coefficient * sums[e]) } }
    return value
  }
}
