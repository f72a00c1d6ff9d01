import CShims

// Integers of 4 bits under scales of binary16, as GGUF's Q4_0 has them: (q - 8) d, q from 0 to 15.

/// A word of a block holds eight contraction indices of an output: four in its bytes' lower halves, the next in the upper ones.
enum Int4Code: Code {
  static var bytes: Int { 576 }
  static var perWord: Int { 8 }

  @inline(__always) static func sums(_ block: UnsafeRawPointer, _ token: UnsafeRawPointer) -> Sums {
    var sum = moei_no_nibbles()
    sum = moei_add_nibbles(sum, words(block, 0), fourOf(token, 0), fourOf(token, 1))
    sum = moei_add_nibbles(sum, words(block, 1), fourOf(token, 2), fourOf(token, 3))
    sum = moei_add_nibbles(sum, words(block, 2), fourOf(token, 4), fourOf(token, 5))
    sum = moei_add_nibbles(sum, words(block, 3), fourOf(token, 6), fourOf(token, 7))
    return moei_sum_nibbles(sum, sumOf(token) &* -8)
  }
  @inline(__always) static func value(_ words: Sums, _ i: Int, _ scales: SumFloats) -> SumFloats {
    moei_nibble(words, Int32(truncatingIfNeeded: i), scales)
  }
}

@inline(never) private func multiply(_ call: CodeCall) { call.multiply(Int4Code.self) }
@inline(never) private func multiplyIntegers(_ call: CodeCall) { call.multiplyIntegers(Int4Code.self) }

@inline(never) func int4Product(
  _ m: Int, _ columns: Int, _ k: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    multiply(CodeCall(m: m, length: k, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride))
  }
}

@inline(never) func int4ProductOfIntegers(
  _ m: Int, _ columns: Int, _ count: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    multiplyIntegers(
      CodeCall(m: m, length: count, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride))
  }
}

@inline(never) func int4Decode(_ k: Int, _ blocks: UnsafeRawPointer, _ panel: Target) {
  decode(Int4Code.self, k, blocks, panel)
}

/// Contraction indices under one scale, up to 128: the first of those with the largest magnitude is -8 of its steps.
@inline(never) func int4Encode(
  _ rows: Int, _ depth: Int, _ w: Source, _ wRow: Int, _ blocks: UnsafeMutableRawPointer
) -> Bool {
  var isFinite = true
  var row = 0
  while row < 32 {
    let own = w + row &* wRow
    let count = row < rows ? depth : 0
    let step = Step(outermost(own, count) / -8)
    let scale = half(step.size)
    isFinite = isFinite && scale.isFinite
    var p = 0
    while p < depth {
      let block = blocks + p / 32 &* 576
      let (low, high) = (nibbles(own + p, count &- p, step), nibbles(own + (p &+ 16), count &- p &- 16, step))
      // Two words of eight from each sixteen.
      store(low, block + row &* 4)
      store(high, block + (256 &+ row &* 4))
      (block + (512 &+ row &* 2)).storeBytes(of: scale.bits, as: UInt16.self)
      p &+= 32
    }
    row &+= 1
  }
  return isFinite
}

/// The first of the values with the largest magnitude; a NaN where there is one.
@inline(__always) private func outermost(_ w: Source, _ count: Int) -> Float {
  var largest = Largest()
  var i = 0
  while i < count {
    largest.see(load(w + i, count &- i))
    i &+= 16
  }
  let value = largest.value
  i = 0
  while i < count {
    if w[i].magnitude == value { return w[i] }
    i &+= 1
  }
  return value
}

/// Sixteen values as numbers of 0 ... 15, of which 8 stands for 0; those beyond `count` are 8.
@inline(__always) private func nibbles(_ w: Source, _ count: Int, _ step: Step) -> SIMD4<UInt32> {
  let values = count > 0 ? load(w, count) : V(repeating: 0)
  var numbers = moei_scale_in_double(values, step.inverse, 8.5)
  // What is no number is left to the scale.
  numbers = numbers.replacing(with: 15, where: .!(numbers .<= 15))
  numbers = numbers.replacing(with: 0, where: numbers .< V(repeating: 0))
  var bytes = SIMD16<UInt8>(repeating: 0)
  withUnsafeMutableBytes(of: &bytes) { moei_store_i8(moei_to_i32(numbers), $0.baseAddress!) }
  return unsafeBitCast(bytes, to: SIMD4<UInt32>.self)
}

/// Numbers 0 ... 7 become a word, 8 ... 15 the one below it.
@inline(__always) private func store(_ words: SIMD4<UInt32>, _ out: UnsafeMutableRawPointer) {
  out.storeBytes(of: words[0] | words[1] &<< 4, as: UInt32.self)
  (out + 128).storeBytes(of: words[2] | words[3] &<< 4, as: UInt32.self)
}
