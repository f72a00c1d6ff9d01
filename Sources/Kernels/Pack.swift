import CShims

// Weights and tokens put in the order in which the tiles read them: panels [k][32] of weights, chunks [k / 32][m][32] of
// tokens.

/// panel[p][j] = w[j][p] for `columns` <= 32 rows j of w; the other columns are 0.
@inline(never) func packTransposed(_ columns: Int, _ k: Int, _ w: Source, _ wRow: Int, _ panel: Target) {
  var half = 0
  while half < 32 {
    let count = columns &- half
    var p = 0
    if count >= 16 {
      while p &+ 4 <= k {
        // Four columns of sixteen rows: quarters of rows r, r + 4, r + 8, r + 12 side by side, then 4 x 4 each.
        let q = w + (half &* wRow &+ p)
        let a = quarters(q, wRow)
        let b = quarters(q + wRow, wRow)
        let c = quarters(q + 2 &* wRow, wRow)
        let d = quarters(q + 3 &* wRow, wRow)
        let (ab, AB) = (moei_interleave_low(a, b), moei_interleave_high(a, b))
        let (cd, CD) = (moei_interleave_low(c, d), moei_interleave_high(c, d))
        let out = panel + (p &* 32 &+ half)
        store(out, moei_pairs_low(ab, cd))
        store(out + 32, moei_pairs_high(ab, cd))
        store(out + 64, moei_pairs_low(AB, CD))
        store(out + 96, moei_pairs_high(AB, CD))
        p &+= 4
      }
    }
    while p < k {
      let out = panel + (p &* 32 &+ half)
      var j = 0
      while j < 16 {
        out[j] = j < count ? w[(half &+ j) &* wRow &+ p] : 0
        j &+= 1
      }
      p &+= 1
    }
    half &+= 16
  }
}

/// Four floats of each of the rows 0, 4, 8 and 12.
@inline(__always) private func quarters(_ p: Source, _ row: Int) -> V {
  @inline(__always) func four(_ r: Int) -> SIMD4<Float> {
    UnsafeRawPointer(p + r &* row).loadUnaligned(as: SIMD4<Float>.self)
  }
  return V(lowHalf: SIMD8(lowHalf: four(0), highHalf: four(4)), highHalf: SIMD8(lowHalf: four(8), highHalf: four(12)))
}

/// panel[p][j] = w[p][j] for `columns` <= 32 columns; the others are 0.
@inline(never) func pack(_ columns: Int, _ k: Int, _ w: Source, _ wRow: Int, _ panel: Target) {
  var p = 0
  while p < k {
    copy32(columns, w + p &* wRow, panel + p &* 32)
    p &+= 1
  }
}

@inline(__always) private func copy32(_ columns: Int, _ from: Source, _ to: Target) {
  store(to, load(from, columns))
  store(to + 16, columns > 16 ? load(from + 16, columns &- 16) : V(repeating: 0))
}

/// Rows of x in chunks: out[c][r][:] = x[pairs[r] / topK][32 c ...], times the pair's weight where weights are given;
/// without pairs row r of x. The last chunk is filled up with 0.
@inline(never) func gather(
  _ m: Int, _ columns: Int, _ pairs: UnsafePointer<Int32>?, _ topK: Int, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: Target
) {
  var r = 0
  while r < m {
    let pair = pairs.map { Int($0[r]) } ?? r
    let row = x + (pairs == nil ? r : pair / topK) &* xRow
    let factor = weights.map { $0[pair] } ?? 1
    var c = 0
    while c < columns {
      let to = out + (c &* m &+ r &* 32)
      let left = columns &- c
      store(to, load(row + c, left) * factor)
      store(to + 16, left > 16 ? load(row + c + 16, left &- 16) * factor : V(repeating: 0))
      c &+= 32
    }
    r &+= 1
  }
}
