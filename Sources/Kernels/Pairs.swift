import CShims

// bfloat16: the upper half of a float. Two of them make a word, since the processor multiplies two at a time and adds both
// products to a sum: pairs along the contraction index, which is a feature's or, in the weights' gradients, a token's.

/// As many words as a row of a tile has outputs.
#if MOE_AVX512BF16
  var hasPairs: Bool { true }
  struct PairLanes {
    fileprivate let low, high: Words
    @inline(__always) init(_ p: UnsafePointer<UInt32>) { (low, high) = (loadWords(p), loadWords(p + 16)) }
  }
  extension Lanes {
    @inline(__always) mutating func accumulate(_ factors: UInt32, _ b: PairLanes) {
      let a = Words(repeating: factors)
      low = moei_add_products(low, a, b.low)
      high = moei_add_products(high, a, b.high)
    }
  }
  @inline(__always) func addProducts(_ sum: inout V, _ a: UInt32, _ b: Words) {
    sum = moei_add_products(sum, Words(repeating: a), b)
  }
#else
  var hasPairs: Bool { false }
  /// Without an instruction for it: the lower halves as floats, then the upper ones.
  struct PairLanes {
    fileprivate let even, odd: Lanes
    @inline(__always) init(_ p: UnsafePointer<UInt32>) {
      even = Lanes { lowerHalves(loadWords(p + $0)) }
      odd = Lanes { upperHalves(loadWords(p + $0)) }
    }
  }
  extension Lanes {
    @inline(__always) mutating func accumulate(_ factors: UInt32, _ b: PairLanes) {
      accumulate(Float(bitPattern: factors << 16), b.even)
      accumulate(Float(bitPattern: factors & 0xFFFF_0000), b.odd)
    }
  }
  @inline(__always) func addProducts(_ sum: inout V, _ a: UInt32, _ b: Words) {
    sum = fma(V(repeating: Float(bitPattern: a << 16)), lowerHalves(b), sum)
    sum = fma(V(repeating: Float(bitPattern: a & 0xFFFF_0000)), upperHalves(b), sum)
  }
#endif

// MARK: to and from floats

@inline(never) func fromBF16(_ n: Int, _ x: UnsafePointer<UInt16>, _ y: Target) {
  var i = 0
  while i &+ 16 <= n {
    store(y + i, moei_from_bf16(x + i))
    i &+= 16
  }
  while i < n {
    y[i] = Float(bitPattern: UInt32(x[i]) << 16)
    i &+= 1
  }
}

@inline(never) func toBF16(_ n: Int, _ x: Source, _ y: UnsafeMutablePointer<UInt16>) {
  var i = 0
  while i &+ 16 <= n {
    moei_to_bf16(load(x + i), y + i)
    i &+= 16
  }
  let rest = moei_round_to_bf16(load(x + i, n &- i))
  var lane = 0
  while i < n {
    y[i] = UInt16(truncatingIfNeeded: rest[lane] >> 16)
    lane &+= 1
    i &+= 1
  }
}

/// y = x rounded, which x becomes too.
@inline(never) func roundToBF16(_ n: Int, _ x: Target, _ y: UnsafeMutablePointer<UInt16>) {
  var i = 0
  while i < n {
    let words = moei_round_to_bf16(load(x + i, n &- i)) & 0xFFFF_0000
    storeHalves(y + i, n &- i, words)
    store(x + i, n &- i, unsafeBitCast(words, to: V.self))
    i &+= 16
  }
}

/// As `load` and `store` of floats, which the words' upper halves are.
@inline(__always) func loadHalves(_ p: UnsafePointer<UInt16>, _ left: Int) -> V {
  if left >= 16 { return moei_from_bf16(p) }
  var words = Words(repeating: 0)
  var i = 0
  while i < left {
    words[i] = UInt32(p[i])
    i &+= 1
  }
  return unsafeBitCast(words &<< 16, to: V.self)
}

@inline(__always) func storeHalves(_ p: UnsafeMutablePointer<UInt16>, _ left: Int, _ words: Words) {
  if left >= 16 { return moei_store_upper_halves(words, p) }
  var i = 0
  while i < left {
    p[i] = UInt16(truncatingIfNeeded: words[i] &>> 16)
    i &+= 1
  }
}

// MARK: weights

/// panel[p][j] = (w[j][2 p], w[j][2 p + 1]) for `columns` <= 32 rows j of w; the other columns are 0.
@inline(never) func packPairsTransposed(
  _ columns: Int, _ k: Int, _ w: UnsafePointer<UInt16>, _ wRow: Int, _ panel: UnsafeMutablePointer<UInt32>
) {
  // A word is moved as a float is: as it is.
  packWordsTransposed(
    columns, k / 2, UnsafeRawPointer(w), wRow &* 2, UnsafeMutableRawPointer(panel).assumingMemoryBound(to: Float.self))
  if k % 2 == 0 { return }
  var j = 0
  while j < 32 {
    panel[k / 2 &* 32 &+ j] = j < columns ? UInt32(w[j &* wRow &+ k &- 1]) : 0
    j &+= 1
  }
}

/// panel[p][j] = (w[2 p][j], w[2 p + 1][j]) for `columns` <= 32 columns; the others are 0.
@inline(never) func packPairs(
  _ columns: Int, _ k: Int, _ w: UnsafePointer<UInt16>, _ wRow: Int, _ panel: UnsafeMutablePointer<UInt32>
) {
  var p = 0
  while p < k {
    let (lower, out) = (w + p &* wRow, panel + p / 2 &* 32)
    let upper = p &+ 1 < k ? lower + wRow : nil
    if let upper, columns >= 32 {
      store(out, moei_pair(lower, upper))
      store(out + 16, moei_pair(lower + 16, upper + 16))
    } else {
      var j = 0
      while j < 32 {
        out[j] = j < columns ? UInt32(lower[j]) | UInt32(upper?[j] ?? 0) << 16 : 0
        j &+= 1
      }
    }
    p &+= 2
  }
}

// MARK: tokens

/// `gather` in bfloat16: chunks [columns / 32][m][32].
@inline(never) func gatherBF16(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: UnsafeMutablePointer<UInt16>
) {
  var r = 0
  while r < m {
    let row = Row(r, of: m, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      row.fetchAhead(c)
      let to = out + (c &* m &+ r &* 32)
      moei_to_bf16(row.part(c, columns), to)
      moei_to_bf16(row.part(c &+ 16, columns), to + 16)
      c &+= 32
    }
    r &+= 1
  }
}

/// `gather` in pairs of rows: chunks [columns / 32][m / 2][32], the last row of an odd m beside 0.
@inline(never) func gatherTokenPairs(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: UnsafeMutablePointer<UInt32>
) {
  let count = (m &+ 1) / 2
  var r = 0
  while r < m {
    let lower = Row(r, of: m, tokens, x, xRow, weights)
    let single = r &+ 1 == m
    let upper = single ? lower : Row(r &+ 1, of: m, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      lower.fetchAhead(c)
      upper.fetchAhead(c)
      let to = out + (c &* count &+ r / 2 &* 32)
      var half = 0
      while half < 32 {
        let low = moei_round_to_bf16(lower.part(c &+ half, columns)) &>> 16
        let high = moei_round_to_bf16(upper.part(c &+ half, columns)) & 0xFFFF_0000
        store(to + half, single ? low : low | high)
        half &+= 16
      }
      c &+= 32
    }
    r &+= 2
  }
}

/// y = y + the lower halves of x, then + the upper ones.
@inline(never) func addTokenPairs(_ n: Int, _ x: UnsafePointer<UInt32>, _ y: Target) {
  var i = 0
  while i < n {
    // All 32 words of a chunk are there.
    let words = loadWords(x + i)
    store(y + i, n &- i, load(y + i, n &- i) + lowerHalves(words) + upperHalves(words))
    i &+= 16
  }
}
