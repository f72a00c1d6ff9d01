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

  /// `values` are the elements from number `element` on, any number.
  func apply(_ values: UnsafeMutablePointer<Float>, count: Int, from element: Int) {
    let (place, head) = (element % 4, min(-element & 3, count))  // what is left of the first counter
    if head > 0 {
      withUnsafeTemporaryAllocation(of: Float.self, capacity: 4) { four in
        four.initialize(repeating: 0)
        (four.baseAddress! + place).update(from: values, count: head)
        apply(four.baseAddress!, count: 4, first: UInt64(element / 4))
        values.update(from: four.baseAddress! + place, count: head)
      }
    }
    apply(values + head, count: count - head, first: UInt64((element + head) / 4))
  }
}
