import CShims

// Transposition in registers, of words whatever they hold.

/// 16 x 16 words, rows `wRow` bytes apart, seen column by column. Whole rows are loaded at once: with rows a power of two apart
/// the cache could not hold on to them until their next quarter is wanted.
struct Square {
  private let a, b, c, d: Quarters

  @inline(__always) init(_ w: UnsafeRawPointer, _ wRow: Int) {
    a = Quarters(w, wRow)
    b = Quarters(w + wRow, wRow)
    c = Quarters(w + 2 &* wRow, wRow)
    d = Quarters(w + 3 &* wRow, wRow)
  }

  /// With 0 in the place of all but the first `rows` rows.
  @inline(__always) init(_ w: UnsafeRawPointer, _ wRow: Int, rows: Int) {
    a = Quarters(w, wRow, rows: rows)
    b = Quarters(w + wRow, wRow, rows: rows &- 1)
    c = Quarters(w + 2 &* wRow, wRow, rows: rows &- 2)
    d = Quarters(w + 3 &* wRow, wRow, rows: rows &- 3)
  }

  // Columns 0 ... 3, 4 ... 7, and so on.
  var first: Columns { @inline(__always) get { Columns(a.first, b.first, c.first, d.first) } }
  var second: Columns { @inline(__always) get { Columns(a.second, b.second, c.second, d.second) } }
  var third: Columns { @inline(__always) get { Columns(a.third, b.third, c.third, d.third) } }
  var fourth: Columns { @inline(__always) get { Columns(a.fourth, b.fourth, c.fourth, d.fourth) } }

  /// All columns, as rows `stride` floats apart.
  @inline(__always) func write(_ out: Target, _ stride: Int) {
    write(out, stride, rows: 16)
  }

  /// The first columns alone.
  @inline(__always) func write(_ out: Target, _ stride: Int, rows: Int) {
    first.write(out, stride, rows)
    second.write(out + 4 &* stride, stride, rows &- 4)
    third.write(out + 8 &* stride, stride, rows &- 8)
    fourth.write(out + 12 &* stride, stride, rows &- 12)
  }
}

/// Rows 0, 4, 8 and 12: their first quarters side by side, and so on.
private struct Quarters {
  let first, second, third, fourth: V

  @inline(__always) init(_ w: UnsafeRawPointer, _ wRow: Int) {
    self.init(w, wRow, rows: 16)
  }

  /// With 0 in the place of rows from number `rows` on.
  @inline(__always) init(_ w: UnsafeRawPointer, _ wRow: Int, rows: Int) {
    func row(_ i: Int) -> V { i < rows ? (w + i &* wRow).loadUnaligned(as: V.self) : V(repeating: 0) }
    let (a, b, c, d) = (row(0), row(4), row(8), row(12))
    let (ab01, ab23) = (moei_quarters_low(a, b), moei_quarters_high(a, b))
    let (cd01, cd23) = (moei_quarters_low(c, d), moei_quarters_high(c, d))
    first = moei_quarters_even(ab01, cd01)
    second = moei_quarters_odd(ab01, cd01)
    third = moei_quarters_even(ab23, cd23)
    fourth = moei_quarters_odd(ab23, cd23)
  }
}

/// Four columns of 16 rows.
struct Columns {
  let column0, column1, column2, column3: V

  /// Within each quarter, four words of four rows become four rows of four words.
  @inline(__always) fileprivate init(_ a: V, _ b: V, _ c: V, _ d: V) {
    let (abLow, abHigh) = (moei_interleave_low(a, b), moei_interleave_high(a, b))
    let (cdLow, cdHigh) = (moei_interleave_low(c, d), moei_interleave_high(c, d))
    column0 = moei_opaque(moei_pairs_low(abLow, cdLow))
    column1 = moei_opaque(moei_pairs_high(abLow, cdLow))
    column2 = moei_opaque(moei_pairs_low(abHigh, cdHigh))
    column3 = moei_opaque(moei_pairs_high(abHigh, cdHigh))
  }

  /// The first `count` of them.
  @inline(__always) fileprivate func write(_ out: Target, _ stride: Int, _ count: Int) {
    if count > 0 { store(out, column0) }
    if count > 1 { store(out + stride, column1) }
    if count > 2 { store(out + 2 &* stride, column2) }
    if count > 3 { store(out + 3 &* stride, column3) }
  }
}

/// Words of each row in front of the first cache line, where all rows meet one at the same place; 0 where they begin with one, or
/// do not.
@inline(__always) func wordsBeforeLine(_ w: UnsafeRawPointer, _ wRow: Int) -> Int {
  let behind = Int(bitPattern: w) & 63
  return wRow & 63 == 0 && behind & 3 == 0 && behind != 0 ? (64 &- behind) / 4 : 0
}
