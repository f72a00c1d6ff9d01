import CShims

// Weights and tokens put in the order in which the tiles read them: panels [k][32] of weights, chunks [k / 32][m][32] of
// tokens.

/// panel[p][j] = w[j][p] for `columns` <= 32 rows j of w; the other columns are 0.
@inline(never) func packTransposed(_ columns: Int, _ k: Int, _ w: Source, _ wRow: Int, _ panel: Target) {
  packWordsTransposed(columns, k, UnsafeRawPointer(w), wRow &* 4, panel)
}

/// The same with rows `wRow` bytes apart.
@inline(__always) func packWordsTransposed(
  _ columns: Int, _ k: Int, _ w: UnsafeRawPointer, _ wRow: Int, _ panel: Target
) {
  var half = 0
  while half < 32 {
    let count = columns &- half
    var p = 0
    if count >= 16 {
      while p &+ 16 <= k {
        transpose16(w + (half &* wRow &+ p &* 4), wRow, panel + (p &* 32 &+ half))
        p &+= 16
      }
    }
    while p < k {
      let out = panel + (p &* 32 &+ half)
      var j = 0
      while j < 16 {
        out[j] = j < count ? (w + ((half &+ j) &* wRow &+ p &* 4)).loadUnaligned(as: Float.self) : 0
        j &+= 1
      }
      p &+= 1
    }
    half &+= 16
  }
}

/// out[32 p + j] = element p of row j for 16 x 16 elements. Whole rows are loaded at once: with rows a power of two apart the
/// cache could not hold on to them until their next quarter is wanted.
@inline(__always) private func transpose16(_ w: UnsafeRawPointer, _ wRow: Int, _ out: Target) {
  let a = Quad(w, wRow)
  let b = Quad(w + 4 &* wRow, wRow)
  let c = Quad(w + 8 &* wRow, wRow)
  let d = Quad(w + 12 &* wRow, wRow)
  spread(a.column0, b.column0, c.column0, d.column0, out)
  spread(a.column1, b.column1, c.column1, d.column1, out + 32)
  spread(a.column2, b.column2, c.column2, d.column2, out + 64)
  spread(a.column3, b.column3, c.column3, d.column3, out + 96)
}

/// Four rows of 16; lanes 4 q ..< 4 q + 4 of column c hold element 4 q + c of each of them.
private struct Quad {
  let column0, column1, column2, column3: V

  @inline(__always) init(_ w: UnsafeRawPointer, _ wRow: Int) {
    func row(_ i: Int) -> V { (w + i &* wRow).loadUnaligned(as: V.self) }
    let (a, b, c, d) = (row(0), row(1), row(2), row(3))
    let (abLow, abHigh) = (moei_interleave_low(a, b), moei_interleave_high(a, b))
    let (cdLow, cdHigh) = (moei_interleave_low(c, d), moei_interleave_high(c, d))
    column0 = moei_pairs_low(abLow, cdLow)
    column1 = moei_pairs_high(abLow, cdLow)
    column2 = moei_pairs_low(abHigh, cdHigh)
    column3 = moei_pairs_high(abHigh, cdHigh)
  }
}

/// Quarter q of a, b, c and d side by side in row 4 q of the panel.
@inline(__always) private func spread(_ a: V, _ b: V, _ c: V, _ d: V, _ out: Target) {
  let (ab01, ab23) = (moei_quarters_low(a, b), moei_quarters_high(a, b))
  let (cd01, cd23) = (moei_quarters_low(c, d), moei_quarters_high(c, d))
  store(out, moei_quarters_even(ab01, cd01))
  store(out + 4 &* 32, moei_quarters_odd(ab01, cd01))
  store(out + 8 &* 32, moei_quarters_even(ab23, cd23))
  store(out + 12 &* 32, moei_quarters_odd(ab23, cd23))
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

/// Rows of x in chunks: out[c][r][:] = x[tokens[r]][32 c ...], times weights[r] where weights are given; without tokens
/// row r of x. The last chunk is filled up with 0.
@inline(never) func gather(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: Target
) {
  var r = 0
  while r < m {
    let row = Row(r, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      let to = out + (c &* m &+ r &* 32)
      store(to, row.part(c, columns))
      store(to + 16, row.part(c &+ 16, columns))
      c &+= 32
    }
    r &+= 1
  }
}

/// One gathered row.
struct Row {
  private let start: Source
  private let factor: Float

  @inline(__always) init(
    _ r: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?
  ) {
    start = x + (tokens.map { Int($0[r]) } ?? r) &* xRow
    factor = weights.map { $0[r] } ?? 1
  }

  /// 16 of `columns` floats from the c-th on; 0 beyond them.
  @inline(__always) func part(_ c: Int, _ columns: Int) -> V {
    c < columns ? load(start + c, columns &- c) * factor : V(repeating: 0)
  }
}
