import CShims

// Integers of 8 bits under scales of binary16: weights, as GGUF's Q8_0 has them, and tokens.

/// A word of a block holds four contraction indices of an output.
enum Int8Code: Code {
  static var bytes: Int { 1088 }
  static var perWord: Int { 4 }

  @inline(__always) static func sums(_ block: UnsafeRawPointer, _ token: UnsafeRawPointer) -> Sums {
    #if MOE_AVX512BF16
      // Weights count 128 more, since the instruction takes numbers without a sign.
      var sum = moei_repeat(sumOf(token) &* -128)
    #else
      var sum = moei_repeat(0)
    #endif
    sum = moei_add_bytes(sum, words(block, 0), fourOf(token, 0))
    sum = moei_add_bytes(sum, words(block, 1), fourOf(token, 1))
    sum = moei_add_bytes(sum, words(block, 2), fourOf(token, 2))
    sum = moei_add_bytes(sum, words(block, 3), fourOf(token, 3))
    sum = moei_add_bytes(sum, words(block, 4), fourOf(token, 4))
    sum = moei_add_bytes(sum, words(block, 5), fourOf(token, 5))
    sum = moei_add_bytes(sum, words(block, 6), fourOf(token, 6))
    return moei_add_bytes(sum, words(block, 7), fourOf(token, 7))
  }
  @inline(__always) static func value(_ words: Sums, _ i: Int, _ scales: SumFloats) -> SumFloats {
    moei_byte(words, Int32(truncatingIfNeeded: i), scales)
  }
}

@inline(never) private func multiply(_ call: CodeCall) { call.multiply(Int8Code.self) }
@inline(never) private func multiplyIntegers(_ call: CodeCall) { call.multiplyIntegers(Int8Code.self) }

@inline(never) func int8Product(
  _ m: Int, _ columns: Int, _ k: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    multiply(CodeCall(m: m, length: k, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride))
  }
}

@inline(never) func int8ProductOfIntegers(
  _ m: Int, _ columns: Int, _ count: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    multiplyIntegers(
      CodeCall(m: m, length: count, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride))
  }
}

@inline(never) func int8Decode(_ k: Int, _ blocks: UnsafeRawPointer, _ panel: Target) {
  decode(Int8Code.self, k, blocks, panel)
}

// MARK: from floats

/// The largest magnitude of some floats, or a NaN where one is.
struct Largest {
  private var bits = SIMD16<Int32>(repeating: 0)

  @inline(__always) mutating func see(_ v: V) {
    let own = unsafeBitCast(v, to: SIMD16<Int32>.self) & 0x7FFF_FFFF
    bits = bits.replacing(with: own, where: own .> bits)
  }

  @inline(__always) var value: Float {
    let a = bits.lowHalf.replacing(with: bits.highHalf, where: bits.highHalf .> bits.lowHalf)
    let b = a.lowHalf.replacing(with: a.highHalf, where: a.highHalf .> a.lowHalf)
    let c = b.lowHalf.replacing(with: b.highHalf, where: b.highHalf .> b.lowHalf)
    return Float(bitPattern: UInt32(bitPattern: c[1] > c[0] ? c[1] : c[0]))
  }
}

/// A step, of which values become multiples, and what they are multiplied by for that: 0 both where the step is too small to
/// be divided by.
struct Step {
  let size: Float
  let inverse: Float

  @inline(__always) init(_ size: Float) {
    let isNothing = size.magnitude < Float(bitPattern: 0x0080_0000)
    self.size = isNothing ? 0 : size
    inverse = isNothing ? 0 : 1 / size
  }

  /// The nearest multiples, those away from 0 in a tie, as numbers of -127 ... 127.
  @inline(__always) func multiples(_ v: V) -> SIMD16<Int32> {
    let product = v * inverse
    var size = magnitude(product)
    size = size.replacing(with: 127, where: .!(size .<= 127))
    let whole = moei_to_i32(size)
    let isHalf = (size - moei_from_i32(whole)) .>= V(repeating: 0.5)
    let rounded = whole.replacing(with: whole &+ 1, where: isHalf)
    return rounded.replacing(with: 0 &- rounded, where: product .< V(repeating: 0))
  }
}

/// A float as binary16, and whether it is finite there.
@inline(__always) func half(_ value: Float) -> (bits: UInt16, isFinite: Bool) {
  let bits = moei_to_f16(V(repeating: value))[0]
  return (bits, bits & 0x7C00 != 0x7C00)
}

/// One block of 32 contraction indices under its own scale.
@inline(never) func int8Encode(
  _ rows: Int, _ depth: Int, _ w: Source, _ wRow: Int, _ block: UnsafeMutableRawPointer
) -> Bool {
  var isFinite = true
  var row = 0
  while row < 32 {
    let low = row < rows ? load(w + row &* wRow, depth) : V(repeating: 0)
    let high = row < rows && depth > 16 ? load(w + (row &* wRow &+ 16), depth &- 16) : V(repeating: 0)
    var largest = Largest()
    largest.see(low)
    largest.see(high)
    let step = Step(largest.value / 127)
    var numbers = SIMD32<Int8>(repeating: 0)
    withUnsafeMutableBytes(of: &numbers) {
      moei_store_i8(step.multiples(low), $0.baseAddress!)
      moei_store_i8(step.multiples(high), $0.baseAddress! + 16)
    }
    let words = unsafeBitCast(numbers, to: SIMD8<UInt32>.self)
    var i = 0
    while i < 8 {
      (block + (i &* 128 &+ row &* 4)).storeBytes(of: words[i], as: UInt32.self)
      i &+= 1
    }
    let scale = half(step.size)
    (block + (1024 &+ row &* 2)).storeBytes(of: scale.bits, as: UInt16.self)
    isFinite = isFinite && scale.isFinite
    row &+= 1
  }
  return isFinite
}

/// `gather` as integers: for each 32 features of a row 64 bytes, with their step and their sum.
@inline(never) func gatherIntegers(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: UnsafeMutableRawPointer
) {
  var r = 0
  while r < m {
    let row = Row(r, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      writeIntegers(row.part(c, columns), row.part(c &+ 16, columns), out + (c / 32 &* m &+ r) &* 64)
      c &+= 32
    }
    r &+= 1
  }
}

@inline(__always) private func writeIntegers(_ low: V, _ high: V, _ out: UnsafeMutableRawPointer) {
  var largest = Largest()
  largest.see(low)
  largest.see(high)
  let step = Step(largest.value / 127)
  let (first, second) = (step.multiples(low), step.multiples(high))
  moei_store_i8(first, out)
  moei_store_i8(second, out + 16)
  (out + 32).storeBytes(of: step.size, as: Float.self)
  let a = first &+ second
  let b = a.lowHalf &+ a.highHalf
  let c = b.lowHalf &+ b.highHalf
  let d = c.lowHalf &+ c.highHalf
  (out + 36).storeBytes(of: d[0] &+ d[1], as: Int32.self)
}
