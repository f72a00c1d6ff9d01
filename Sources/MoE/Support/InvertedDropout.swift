/// Inverted dropout [Srivastava et al. 2014]: an element is kept with probability 1 - rate and then multiplied by
/// 1 / (1 - rate). No mask is stored: whether an element is kept is a function of the random numbers' key and the element's
/// number, so that backward, which multiplies the gradients by the same mask, draws it again.
struct InvertedDropout {
  private let random: Random
  private let threshold: UInt32  // dropped below
  private let scale: Float

  init(rate: Float, _ random: Random) {
    self.random = random
    threshold = UInt32(Double(rate) * 0x1p32)
    scale = Float(1 / (1 - Double(rate)))
  }

  /// `values` are the elements from number 4 * `first` on.
  func apply(_ values: UnsafeMutablePointer<Float>, count: Int, first: UInt64) {
    random.drop(values, count: count, first: first, threshold: threshold, scale: scale)
  }
}
