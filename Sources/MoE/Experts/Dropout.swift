/// Dropout on the experts' inner activations.
struct Dropout {
  private let dropout: InvertedDropout
  private let countersPerPair: Int  // four elements each
  private let numbers: UnsafePointer<Int32>?

  /// nil where nothing is dropped. `numbers`: what pairs are called among those of all ranks.
  init?(_ c: ExpertGroup, _ draws: Draws, numbers: UnsafePointer<Int32>?) {
    guard draws.training && c.dropout > 0 else { return nil }
    self.numbers = numbers
    dropout = InvertedDropout(rate: c.dropout, draws.ofDropout(inGroup: c.index))
    countersPerPair = (c.intermediate + 3) / 4
  }

  /// `values` are the pair's elements from `from` (a multiple of 4) on.
  func apply(_ values: UnsafeMutablePointer<Float>, pair: Int, from: Int, count: Int) {
    let pair = numbers.map { Int($0[pair]) } ?? pair
    dropout.apply(values, count: count, first: UInt64(pair) * UInt64(countersPerPair) + UInt64(from / 4))
  }
}
