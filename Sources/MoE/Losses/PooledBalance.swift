/// The balance loss of L layers taken together, as transformers' load_balancing_loss_func pools them. With n_l the
/// valid tokens, c_le the counts and P_le the mean probabilities of layer l, and N the sum of n_l:
///
///     f_e = (sum over l of c_le) / N      P_e = (sum over l of n_l P_le) / N      loss = E * sum over e of f_e P_e
///     d loss / d P_le = E f_e n_l / N
///
/// K at perfect balance; loss and gradient are 0 where N = 0. Counts are constants, as in every loss of balance.
/// Of several sequences it is the mean of what each of them gives by itself, as transformers has it for Switch.
public struct PooledBalance {
  let layers: Int  // L
  let sequences: Int  // B
  let experts: Int  // E
  let counts: UnsafePointer<Int64>  // [L,B,E]
  let valid: UnsafePointer<Int64>  // [L,B]
  let probability: UnsafePointer<Float>  // [L,B,E]

  public init(
    layers: Int, sequences: Int = 1, experts: Int, counts: UnsafePointer<Int64>, valid: UnsafePointer<Int64>,
    probability: UnsafePointer<Float>
  ) {
    self.layers = layers
    self.sequences = sequences
    self.experts = experts
    self.counts = counts
    self.valid = valid
    self.probability = probability
  }

  /// The loss; writes its gradient [L,B,E] where there is room for it.
  public func loss(gradient: UnsafeMutablePointer<Float>?) -> Float {
    var sum = 0.0
    for s in 0..<sequences { sum += loss(ofSequence: s, gradient: gradient) }
    return Float(sum / Double(sequences))
  }

  private func loss(ofSequence s: Int, gradient: UnsafeMutablePointer<Float>?) -> Double {
    func row(_ l: Int) -> Int { l * sequences + s }
    var tokens = 0.0
    for l in 0..<layers { tokens += Double(valid[row(l)]) }
    if tokens == 0 {
      if let gradient { for l in 0..<layers { (gradient + row(l) * experts).update(repeating: 0, count: experts) } }
      return 0
    }
    var sum = 0.0
    for e in 0..<experts {
      var (chosen, probable) = (0.0, 0.0)
      for l in 0..<layers {
        chosen += Double(counts[row(l) * experts + e])
        probable += Double(valid[row(l)]) * Double(probability[row(l) * experts + e])
      }
      let share = chosen / tokens
      sum += share * (probable / tokens)
      guard let gradient else { continue }
      let factor = Double(experts) * share / tokens / Double(sequences)
      for l in 0..<layers { gradient[row(l) * experts + e] = Float(factor * Double(valid[row(l)])) }
    }
    return Double(experts) * sum
  }
}
