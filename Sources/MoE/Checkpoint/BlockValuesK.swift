// Blocks of 256 in parts of 16 or 32, each of which has a scale of 4 to 8 bits, some a least value too; d scales the scales, and another
// float16 the least values.

extension Block {
  /// Bytes 0 to 15 scales and least values, then 64 of 2 bits, d and that of the least values.
  func q2K() {
    let (d, least) = (half(80), half(82))
    for part in 0..<16 {
      let (scale, m) = (d * Float(bytes[part] & 15), least * Float(bytes[part] >> 4))
      for i in 0..<16 { out[16 * part + i] = scale * Float(pair(16, 16 * part + i)) - m }
    }
  }

  /// Bytes 0 to 31 upper bits, 64 of the lower two, 12 with scales of 6 bits, d.
  func q3K() {
    let d = half(108)
    for part in 0..<16 {
      let low = bytes[96 + part % 8] >> UInt8(4 * (part / 8)) & 15
      let high = bytes[104 + part % 4] >> UInt8(2 * (part / 4)) & 3
      let scale = d * Float(Int(low | high << 4) - 32)
      for i in 16 * part..<16 * part + 16 {
        let isWhole = bytes[i % 32] >> UInt8(i / 32) & 1 == 1
        out[i] = scale * Float(pair(32, i) - (isWhole ? 0 : 4))
      }
    }
  }

  /// d, that of the least values, 12 bytes with scales and least values of 6 bits, 128 of 4 bits.
  func q4K() {
    for part in 0..<8 {
      let (scale, m) = sixBits(part)
      for i in 0..<32 { out[32 * part + i] = scale * Float(half32(16, part, i)) - m }
    }
  }

  /// The same, and 32 bytes of fifth bits before the 4 others.
  func q5K() {
    for part in 0..<8 {
      let (scale, m) = sixBits(part)
      for i in 0..<32 {
        let fifth = Int(bytes[16 + i] >> UInt8(part) & 1)
        out[32 * part + i] = scale * Float(half32(48, part, i) | fifth << 4) - m
      }
    }
  }

  /// 128 bytes of lower 4 bits, 64 of upper 2, 16 scales, d.
  func q6K() {
    let d = half(208)
    for part in 0..<16 {
      let scale = d * Float(Int8(bitPattern: bytes[192 + part]))
      for i in 16 * part..<16 * part + 16 {
        let low = bytes[64 * (i / 128) + i % 64] >> UInt8(i % 128 < 64 ? 0 : 4) & 15
        out[i] = scale * Float((Int(low) | pair(128, i) << 4) - 32)
      }
    }
  }

  /// d, the upper 2 bits of 8 scales, their lower 4, and 128 bytes of codes.
  func iq4XS() {
    let d = half(0)
    let upper = UInt16(bytes[2]) | UInt16(bytes[3]) << 8
    for part in 0..<8 {
      let low = Int(bytes[4 + part / 2] >> UInt8(4 * (part % 2)) & 15)
      let scale = d * Float((low | Int(upper >> UInt16(2 * part) & 3) << 4) - 32)
      forEachHalf(8 + 16 * part, of: 32) { out[32 * part + $0] = scale * Self.unevenValue($1) }
    }
  }

  /// 2 bits of number i: 32 bytes hold 128 numbers, the lowest bits the first 32.
  private func pair(_ place: Int, _ i: Int) -> Int {
    Int(bytes[place + 32 * (i / 128) + i % 32] >> UInt8(2 * (i % 128 / 32)) & 3)
  }

  /// 4 bits of number i of a part: two parts share 32 bytes.
  private func half32(_ place: Int, _ part: Int, _ i: Int) -> Int {
    Int(bytes[place + 32 * (part / 2) + i] >> UInt8(4 * (part % 2)) & 15)
  }

  /// Scale and least value of a part of Q4_K and Q5_K.
  private func sixBits(_ part: Int) -> (scale: Float, least: Float) {
    let s = bytes + 4
    let (scale, m): (UInt8, UInt8)
    if part < 4 {
      (scale, m) = (s[part] & 63, s[part + 4] & 63)
    } else {
      scale = s[part + 4] & 15 | (s[part - 4] >> 6) << 4
      m = s[part + 4] >> 4 | (s[part] >> 6) << 4
    }
    return (half(0) * Float(scale), half(2) * Float(m))
  }
}
