/// How evenly work lies on the experts, from how many tokens n_e each one computes; mean = (sum of n) / E.
/// Sums run in ascending order and in double.
public struct Load {
  /// Largest n / mean: 1 at perfect balance, E when one expert has all. 0 without tokens.
  public let maxOverMean: Float
  /// sqrt(mean of (n - mean)^2) / mean: the population's standard deviation over its mean. 0 without tokens.
  public let variation: Float
  /// Share of the experts with n = 0.
  public let deadShare: Float

  /// `counts` [E], none negative.
  public init(_ counts: UnsafePointer<Int64>, experts: Int) {
    var sum = 0.0
    var largest: Int64 = 0
    var dead = 0
    for e in 0..<experts {
      sum += Double(counts[e])
      largest = max(largest, counts[e])
      if counts[e] == 0 { dead += 1 }
    }
    let mean = sum / Double(experts)
    var squares = 0.0
    for e in 0..<experts {
      let difference = Double(counts[e]) - mean
      squares += difference * difference
    }
    maxOverMean = sum == 0 ? 0 : Float(Double(largest) / mean)
    variation = sum == 0 ? 0 : Float((squares / Double(experts)).squareRoot() / mean)
    deadShare = Float(Double(dead) / Double(experts))
  }
}
