/// A clipping threshold that follows the norms it has seen [ZClip, Kumar et al. 2025, arXiv:2504.02507]; the formulas stand in
/// include/moe.h. Two numbers are all it remembers, where a quantile wants a window; and it is square roots and
/// products alone, with the same bits everywhere.
public struct AdaptiveClip {
  let decay: Double
  let threshold: Double  // in standard deviations
  let warmupSteps: Int
  public private(set) var mean: Double
  public private(set) var variance: Double
  public private(set) var count: Int  // of norms, up to warmupSteps

  public init(decay: Double, threshold: Double, warmupSteps: Int, mean: Double, variance: Double, count: Int) {
    self.decay = decay
    self.threshold = threshold
    self.warmupSteps = warmupSteps
    self.mean = mean
    self.variance = variance
    self.count = count
  }

  /// What a norm may be at most, infinity where it may be as it is. Takes note of it.
  public mutating func limit(_ norm: Double) -> Double {
    if count < warmupSteps {
      // Mean and variance of all so far, in one pass [Welford 1962].
      count += 1
      let distance = norm - mean
      mean += distance / Double(count)
      variance += (distance * (norm - mean) - variance) / Double(count)
      return .infinity
    }
    let excess = norm - mean
    let deviation = variance.squareRoot()
    let furthest = threshold * deviation
    // Norms that have all been the same say nothing about how far is too far.
    let isSpike = deviation > 0 && excess > furthest
    let limit = isSpike ? mean + furthest * (furthest / excess) : .infinity
    // A spike counts as the furthest that is none. Counting as what it is brought back to, as in the paper, it would make the
    // variance smaller still: norms that rise to another level for good would be clipped ever after.
    let counted = isSpike ? mean + furthest : norm
    mean = decay * mean + (1 - decay) * counted
    variance = decay * variance + (1 - decay) * (counted - mean) * (counted - mean)
    return limit
  }
}
