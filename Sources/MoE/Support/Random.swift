/// Random numbers by counter: number `index` of `stream` at `step` is a function of (seed, step, stream, index) and
/// nothing else, so any thread can draw any of them, again and again. Philox4x32-10 [Salmon et al., SC'11].
struct Random {
  let seed: UInt64
  let stream: UInt8
  let step: UInt64  // below 2^56

  /// Four 32-bit words for one counter.
  func words(_ index: UInt64) -> (UInt32, UInt32, UInt32, UInt32) {
    var c0 = UInt32(truncatingIfNeeded: index)
    var c1 = UInt32(truncatingIfNeeded: index >> 32)
    var c2 = UInt32(truncatingIfNeeded: step)
    var c3 = UInt32(truncatingIfNeeded: step >> 32) << 8 | UInt32(stream)
    var k0 = UInt32(truncatingIfNeeded: seed)
    var k1 = UInt32(truncatingIfNeeded: seed >> 32)
    for _ in 0..<10 {
      let a = UInt64(c0) &* 0xD251_1F53
      let b = UInt64(c2) &* 0xCD9E_8D57
      (c0, c1, c2, c3) = (
        UInt32(truncatingIfNeeded: b >> 32) ^ c1 ^ k0, UInt32(truncatingIfNeeded: b),
        UInt32(truncatingIfNeeded: a >> 32) ^ c3 ^ k1, UInt32(truncatingIfNeeded: a)
      )
      k0 &+= 0x9E37_79B9
      k1 &+= 0xBB67_AE85
    }
    return (c0, c1, c2, c3)
  }

  /// values[i] = number `from` + i, uniform in (-bound, bound), symmetric: the middles of 2^23 equal steps. `from` is a
  /// multiple of 4.
  func fillUniform(_ values: UnsafeMutablePointer<Float>, from: Int, count: Int, bound: Float) {
    func uniform(_ word: UInt32) -> Float { (Float(word >> 9) + 0.5) * 0x1p-22 - 1 }
    var i = 0
    while i < count {
      let w = words(UInt64((from + i) / 4))
      values[i] = uniform(w.0) * bound
      if i + 1 < count { values[i + 1] = uniform(w.1) * bound }
      if i + 2 < count { values[i + 2] = uniform(w.2) * bound }
      if i + 3 < count { values[i + 3] = uniform(w.3) * bound }
      i += 4
    }
  }

  /// values[i] normal with mean 0. Marsaglia's polar method: a point in the unit disc, tried until one falls inside; the
  /// try takes the place of the step.
  func fillNormal(_ values: UnsafeMutablePointer<Float>, count: Int, deviation: Double) {
    func coordinate(_ word: UInt32) -> Double { (Double(word) + 0.5) * 0x1p-31 - 1 }
    for i in 0..<count {
      var attempt: UInt64 = 0
      while true {
        let w = Random(seed: seed, stream: stream, step: attempt).words(UInt64(i))
        let (u, v) = (coordinate(w.0), coordinate(w.1))
        let s = u * u + v * v
        if s < 1 {
          values[i] = Float(u * (-2 * naturalLogarithm(s) / s).squareRoot() * deviation)
          break
        }
        attempt += 1
      }
    }
  }
}

/// ln x for normal x > 0 with IEEE operations alone, so that initial parameters do not depend on a libm:
/// x = m 2^n, ln m = 2 atanh((m - 1) / (m + 1)).
private func naturalLogarithm(_ x: Double) -> Double {
  let m = x.significand
  let t = (m - 1) / (m + 1)  // below 1/3
  let square = t * t
  var sum = 0.0
  var odd = 37.0
  while odd >= 1 {
    sum = sum * square + 1 / odd
    odd -= 2
  }
  return 2 * t * sum + Double(x.exponent) * 0.693147180559945309
}
