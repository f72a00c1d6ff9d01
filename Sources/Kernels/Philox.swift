import CShims

// Random numbers by counter, Philox4x32-10 [Salmon et al., SC'11]: eight counters at a time give 32 words, as many as a
// row of a chunk of activations has elements.

/// The words of the eight counters from `first` on.
@inline(__always) func philox(_ random: moei_random, _ first: UInt64) -> (SIMD16<UInt32>, SIMD16<UInt32>) {
  // Lanes of 64 bits, of which the lower half counts: products are had in one instruction, and nothing is widened.
  typealias Words = SIMD8<UInt64>
  let half = Words(repeating: 0xFFFF_FFFF)
  let counter = Words(0, 4, 1, 5, 2, 6, 3, 7) &+ first  // in the order in which the words are put together below
  var (c0, c1) = (counter, counter &>> 32)
  var (c2, c3) = (Words(repeating: random.upper), Words(repeating: random.upper &>> 32))
  var (k0, k1) = (Words(repeating: random.key), Words(repeating: random.key &>> 32))
  var round = 0
  while round < 10 {
    let a = (c0 & half) &* 0xD251_1F53
    let b = (c2 & half) &* 0xCD9E_8D57
    (c0, c1, c2, c3) = ((b &>> 32) ^ c1 ^ k0, b, (a &>> 32) ^ c3 ^ k1, a)
    k0 &+= 0x9E37_79B9
    k1 &+= 0xBB67_AE85
    round &+= 1
  }
  let low = unsafeBitCast((c0 & half) | (c1 &<< 32), to: V.self)
  let high = unsafeBitCast((c2 & half) | (c3 &<< 32), to: V.self)
  return (
    unsafeBitCast(moei_pairs_low(low, high), to: SIMD16<UInt32>.self),
    unsafeBitCast(moei_pairs_high(low, high), to: SIMD16<UInt32>.self)
  )
}

/// use(i, words i ..< i + 16 of the counters from `first` on), for i = 0, 16, ... below n
@inline(__always) private func forEachSixteen(
  _ n: Int, _ random: moei_random, _ first: UInt64, _ use: (Int, SIMD16<UInt32>) -> Void
) {
  var i = 0
  var counter = first
  while i < n {
    let (low, high) = philox(random, counter)
    use(i, low)
    if i &+ 16 < n { use(i &+ 16, high) }
    i &+= 32
    counter &+= 8
  }
}

@inline(never) func randomWords(_ n: Int, _ random: moei_random, _ first: UInt64, _ out: UnsafeMutablePointer<UInt32>) {
  let out = UnsafeMutableRawPointer(out).assumingMemoryBound(to: Float.self)
  forEachSixteen(n, random, first) { i, words in store(out + i, n &- i, unsafeBitCast(words, to: V.self)) }
}

/// The middles of 2^23 equal steps from -bound to bound.
@inline(never) func uniform(_ n: Int, _ random: moei_random, _ first: UInt64, _ bound: Float, _ values: Target) {
  // As a function and not a closure, which stayed a call.
  @inline(__always) func set(_ i: Int, _ words: SIMD16<UInt32>) {
    // 23 bits behind the point of a number from 1 to 2; all but the last product is exact.
    let number = unsafeBitCast((words &>> 9) | 0x3F80_0000, to: V.self)
    store(values + i, n &- i, ((number * 2 - 3) + 0x1p-23) * bound)
  }
  forEachSixteen(n, random, first, set)
}

@inline(never) func dropout(
  _ n: Int, _ random: moei_random, _ first: UInt64, _ threshold: UInt32, _ scale: Float, _ values: Target
) {
  let least = SIMD16<UInt32>(repeating: threshold)
  forEachSixteen(n, random, first) { i, words in
    let scaled = load(values + i, n &- i) * scale
    store(values + i, n &- i, scaled.replacing(with: 0, where: words .< least))
  }
}
