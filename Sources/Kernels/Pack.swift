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
    if count >= 16 && k >= 16 {
      // Squares that lie across cache lines take longer: after the first one they begin with a line, where they can, and
      // the last one ends with the rows. What two of them have in common they write alike.
      let start = w + half &* wRow
      let line = wordsBeforeLine(start, wRow)
      transpose16(start, wRow, panel + half)
      p = line == 0 ? 16 : line
      while p < k {
        let begin = p &+ 16 < k ? p : k &- 16
        transpose16(start + begin &* 4, wRow, panel + (begin &* 32 &+ half))
        p = begin &+ 16
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

/// out[32 p + j] = element p of row j for 16 x 16 elements.
@inline(__always) private func transpose16(_ w: UnsafeRawPointer, _ wRow: Int, _ out: Target) {
  Square(w, wRow).write(out, 32)
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
    let row = Row(r, of: m, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      row.fetchAhead(c)
      let to = out + (c &* m &+ r &* 32)
      store(to, row.part(c, columns))
      store(to + 16, row.part(c &+ 16, columns))
      c &+= 32
    }
    r &+= 1
  }
}

/// One of m gathered rows.
struct Row {
  private let start: Source
  private let factor: Float
  private let ahead: Source

  @inline(__always) init(
    _ r: Int, of m: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?
  ) {
    @inline(__always) func start(_ r: Int) -> Source { x + (tokens.map { Int($0[r]) } ?? r) &* xRow }
    self.start = start(r)
    factor = weights.map { $0[r] } ?? 1
    ahead = r &+ 2 < m ? start(r &+ 2) : self.start
  }

  /// 32 floats of the row after the next one, from the c-th on: the processor does not foresee which tokens come.
  @inline(__always) func fetchAhead(_ c: Int) {
    moei_prefetch(ahead + c)
    moei_prefetch(ahead + (c &+ 16))
  }

  /// 16 of `columns` floats from the c-th on; 0 beyond them.
  @inline(__always) func part(_ c: Int, _ columns: Int) -> V {
    c < columns ? load(start + c, columns &- c) * factor : V(repeating: 0)
  }
}
