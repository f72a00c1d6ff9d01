/// Numbers in the blocks of GGUF files, as float32: each product and each sum is rounded by itself, as the package gguf does it.
struct BlockValues {
  private let type: StoredType
  private let bytes: UnsafePointer<UInt8>
  private let block: (numbers: Int, bytes: Int)

  private static var largest: Int { 256 }

  /// nil where the type has no blocks.
  init?(_ type: StoredType, _ bytes: UnsafePointer<UInt8>) {
    guard let block = type.block else { return nil }
    (self.type, self.bytes, self.block) = (type, bytes, block)
  }

  /// Elements first, first + stride, ... to `out`.
  func read(_ first: Int, stride: Int, count: Int, to out: UnsafeMutablePointer<Float>) {
    withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.largest) { memory in
      let some = memory.baseAddress!
      var (done, decoded) = (0, -1)
      while done < count {
        let (number, within) = (first + done * stride).quotientAndRemainder(dividingBy: block.numbers)
        if stride == 1 && within == 0 && count - done >= block.numbers {
          decode(number, to: out + done)
          done += block.numbers
          continue
        }
        if decoded != number { decode(number, to: some) }
        decoded = number
        let run = stride == 1 ? min(block.numbers - within, count - done) : 1
        (out + done).update(from: some + within, count: run)
        done += run
      }
    }
  }

  /// All numbers of one block.
  private func decode(_ number: Int, to out: UnsafeMutablePointer<Float>) {
    let b = Block(bytes: bytes + number * block.bytes, out: out)
    switch type {
    case .q4_0: b.q4_0()
    case .q4_1: b.q4_1()
    case .q5_0: b.q5_0()
    case .q5_1: b.q5_1()
    case .q8_0: b.q8_0()
    case .q2K: b.q2K()
    case .q3K: b.q3K()
    case .q4K: b.q4K()
    case .q5K: b.q5K()
    case .q6K: b.q6K()
    case .iq4NL: b.iq4NL()
    case .iq4XS: b.iq4XS()
    case .mxfp4: b.mxfp4()
    case .nvfp4: b.nvfp4()
    default: break
    }
  }
}

/// One block, on its way to `out`.
struct Block {
  let bytes: UnsafePointer<UInt8>
  let out: UnsafeMutablePointer<Float>

  /// The float16 that begins at byte `place`.
  func half(_ place: Int) -> Float { float(half: UInt16(bytes[place]) | UInt16(bytes[place + 1]) << 8) }

  /// Hands over `count` numbers of 4 bits from byte `place` on: lower halves are the first of them, upper ones the others.
  @inline(__always)
  func forEachHalf(_ place: Int, of count: Int, _ body: (Int, Int) -> Void) {
    for i in 0..<count / 2 {
      let byte = bytes[place + i]
      body(i, Int(byte & 15))
      body(count / 2 + i, Int(byte >> 4))
    }
  }

  func bit(_ place: Int, _ index: Int) -> Int { Int(bytes[place + index / 8] >> UInt8(index % 8) & 1) }
}

// Blocks of 32 with a scale d, some with a least value m, both float16.

extension Block {
  fileprivate func q4_0() {
    let d = half(0)
    forEachHalf(2, of: 32) { out[$0] = d * Float($1 - 8) }
  }

  fileprivate func q4_1() {
    let (d, m) = (half(0), half(2))
    forEachHalf(4, of: 32) { out[$0] = d * Float($1) + m }
  }

  fileprivate func q5_0() {
    let d = half(0)
    forEachHalf(6, of: 32) { out[$0] = d * Float(($1 | bit(2, $0) << 4) - 16) }
  }

  fileprivate func q5_1() {
    let (d, m) = (half(0), half(2))
    forEachHalf(8, of: 32) { out[$0] = d * Float($1 | bit(4, $0) << 4) + m }
  }

  fileprivate func q8_0() {
    let d = half(0)
    for i in 0..<32 { out[i] = Float(Int8(bitPattern: bytes[2 + i])) * d }
  }

  /// 4 bits choose one of 16 values that are not evenly spaced.
  fileprivate func iq4NL() {
    let d = half(0)
    forEachHalf(2, of: 32) { out[$0] = d * Self.unevenValue($1) }
  }

  static func unevenValue(_ code: Int) -> Float {
    let values: (UInt64, UInt64) = (0xF6EA_DDCF_BFAD_9881, 0x7159_4535_2619_0D01)
    let word = code < 8 ? values.0 : values.1
    return Float(Int8(truncatingIfNeeded: word >> UInt64(8 * (code & 7))))
  }

  // FP4 numbers doubled, and half of a scale in 8 bits.

  fileprivate func mxfp4() {
    let e = UInt32(bytes[0])
    let d = Float(bitPattern: e < 2 ? 0x0020_0000 << e : (e - 1) << 23)
    forEachHalf(1, of: 32) { out[$0] = d * Self.doubled($1) }
  }

  /// 64 numbers; 16 of them have a scale of 4 exponent and 3 fraction bits.
  fileprivate func nvfp4() {
    for part in 0..<4 {
      let scale = bytes[part]
      let d = scale == 0x7F ? 0 : 0.5 * Self.magnitude(scale)
      forEachHalf(4 + 8 * part, of: 16) { out[16 * part + $0] = d * Self.doubled($1) }
    }
  }

  /// A whole number, so that 0 has no sign.
  private static func doubled(_ code: Int) -> Float {
    let values: (UInt64, UInt64) = (0x0C08_0604_0302_0100, 0xF4F8_FAFC_FDFE_FF00)
    return Float(Int8(truncatingIfNeeded: (code < 8 ? values.0 : values.1) >> UInt64(8 * (code & 7))))
  }

  private static func magnitude(_ byte: UInt8) -> Float {
    let (exponent, fraction) = (UInt32(byte >> 3 & 15), UInt32(byte & 7))
    return exponent == 0 ? Float(fraction) * 0x1p-9 : Float(bitPattern: (exponent + 120) << 23 | fraction << 20)
  }
}
