import CShims

/// Inverted dropout on the experts' inner activations: kept with probability 1 - rate and then scaled by
/// 1 / (1 - rate). No mask is stored: whether element i of a pair's activations is kept is a function of (seed, step,
/// pair, i), so backward draws the same mask again.
struct Dropout {
  private let random: Random
  private let threshold: UInt32  // dropped below
  private let scale: Float
  private let width: Int  // I

  /// nil where nothing is dropped.
  init?(_ c: ExpertGroup, _ draws: Draws) {
    guard draws.training && c.dropout > 0 else { return nil }
    random = draws.ofDropout(inGroup: c.index)
    threshold = UInt32(Double(c.dropout) * 0x1p32)
    scale = Float(1 / (1 - Double(c.dropout)))
    width = c.intermediate
  }

  /// Forward on activations, and backward on their gradients: both are multiplied by the same mask.
  /// `values` are the pair's elements from `from` (a multiple of 4) on.
  func apply(_ values: UnsafeMutablePointer<Float>, pair: Int, from: Int, count: Int) {
    let countersPerPair = (width + 3) / 4
    random.drop(
      values, count: count, first: UInt64(pair) * UInt64(countersPerPair) + UInt64(from / 4), threshold: threshold,
      scale: scale)
  }
}
