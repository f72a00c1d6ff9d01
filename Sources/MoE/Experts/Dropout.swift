/// Dropout on the experts' inner activations.
struct Dropout {
  private let dropout: InvertedDropout
  private let countersPerPair: Int  // four elements each

  /// nil where nothing is dropped.
  init?(_ c: ExpertGroup, _ draws: Draws) {
    guard draws.training && c.dropout > 0 else { return nil }
    dropout = InvertedDropout(rate: c.dropout, draws.ofDropout(inGroup: c.index))
    countersPerPair = (c.intermediate + 3) / 4
  }

  /// `values` are the pair's elements from `from` (a multiple of 4) on.
  func apply(_ values: UnsafeMutablePointer<Float>, pair: Int, from: Int, count: Int) {
    dropout.apply(values, count: count, first: UInt64(pair) * UInt64(countersPerPair) + UInt64(from / 4))
  }
}
