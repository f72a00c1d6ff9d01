/// Inverted dropout on the experts' inner activations: kept with probability 1 - rate and then scaled by
/// 1 / (1 - rate). No mask is stored: whether element i of a pair's activations is kept is a function of (seed, step,
/// pair, i), so backward draws the same mask again.
struct Dropout {
  private let random: Random
  private let threshold: UInt32  // dropped below
  private let scale: Float
  private let width: Int  // I

  private static let stream: UInt8 = 16  // after the streams of the parameters

  /// nil where nothing is dropped.
  init?(_ c: Configuration, step: UInt64, training: Bool) {
    guard training && c.dropout > 0 else { return nil }
    random = Random(seed: c.seed, stream: Self.stream, step: step)
    threshold = UInt32(Double(c.dropout) * 0x1p32)
    scale = Float(1 / (1 - Double(c.dropout)))
    width = c.intermediate
  }

  /// Forward on activations, and backward on their gradients: both are multiplied by the same mask.
  /// `values` are the pair's elements from `from` (a multiple of 4) on.
  func apply(_ values: UnsafeMutablePointer<Float>, pair: Int, from: Int, count: Int) {
    let wordsPerPair = (width + 3) / 4
    func masked(_ value: Float, _ word: UInt32) -> Float { word < threshold ? 0 : value * scale }
    for group in 0..<(count + 3) / 4 {
      let w = random.words(UInt64(pair) * UInt64(wordsPerPair) + UInt64(from / 4 + group))
      let i = group * 4
      values[i] = masked(values[i], w.0)
      if i + 1 < count { values[i + 1] = masked(values[i + 1], w.1) }
      if i + 2 < count { values[i + 2] = masked(values[i + 2], w.2) }
      if i + 3 < count { values[i + 3] = masked(values[i + 3], w.3) }
    }
  }
}
