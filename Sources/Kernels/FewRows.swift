import CShims

// Few rows times W^T, with W [outputs, inputs] as it lies in memory: what generation does, token by token. Each weight is
// used a few times only, so it does not stay in a panel: it goes through the registers, transposed on the way, straight
// into its chains, which are those of `product`.
// A product has more than ten parameters: matrices, where they begin and how far apart their rows are, as in BLAS. In a
// struct they would be written to memory and read again for every few outputs.

/// The most rows of one call. AVX2 has half the registers: what waits in them would go to memory and back.
#if MOE_AVX512
  var fewRows: Int { 8 }
  var fewRowsOfPairs: Int { 4 }  // to pack pairs is half the work
#else
  var fewRows: Int { 2 }
  var fewRowsOfPairs: Int { 2 }
#endif

/// The sums of up to eight rows for 16 outputs. `m` is a constant wherever these are inlined.
private struct FewSums {
  private var row0, row1, row2, row3, row4, row5, row6, row7: V

  @inline(__always) init(_ m: Int, _ start: Source, _ stride: Int) {
    row0 = load(start)
    row1 = m > 1 ? load(start + stride) : V(repeating: 0)
    row2 = m > 2 ? load(start + 2 &* stride) : V(repeating: 0)
    row3 = m > 3 ? load(start + 3 &* stride) : V(repeating: 0)
    row4 = m > 4 ? load(start + 4 &* stride) : V(repeating: 0)
    row5 = m > 5 ? load(start + 5 &* stride) : V(repeating: 0)
    row6 = m > 6 ? load(start + 6 &* stride) : V(repeating: 0)
    row7 = m > 7 ? load(start + 7 &* stride) : V(repeating: 0)
  }

  /// Adds four words of each row of A, `stride` words apart, times four columns.
  @inline(__always) mutating func add<F: Factors>(
    _: F.Type, _ m: Int, _ a: UnsafePointer<F.Word>, _ stride: Int, _ b: Columns
  ) {
    forEachRow(m) { row, sum in
      let a = a + row &* stride
      F.accumulate(&sum, a[0], b.column0)
      F.accumulate(&sum, a[1], b.column1)
      F.accumulate(&sum, a[2], b.column2)
      F.accumulate(&sum, a[3], b.column3)
    }
  }

  /// Adds one word of each row, times one column.
  @inline(__always) mutating func add<F: Factors>(
    _: F.Type, _ m: Int, _ a: UnsafePointer<F.Word>, _ stride: Int, _ b: V
  ) {
    forEachRow(m) { row, sum in F.accumulate(&sum, a[row &* stride], b) }
  }

  @inline(__always) mutating func write(_ m: Int, _ c: Target, _ stride: Int) {
    forEachRow(m) { row, sum in store(c + row &* stride, sum) }
  }

  @inline(__always) private mutating func forEachRow(_ m: Int, _ body: (Int, inout V) -> Void) {
    body(0, &row0)
    if m > 1 { body(1, &row1) }
    if m > 2 { body(2, &row2) }
    if m > 3 { body(3, &row3) }
    if m > 4 { body(4, &row4) }
    if m > 5 { body(5, &row5) }
    if m > 6 { body(6, &row6) }
    if m > 7 { body(7, &row7) }
  }
}

/// What is fetched into the cache while 16 rows of W are read: so many bytes of each further on, and behind its end those of `next`.
private struct RowsAhead {
  let bytes: Int
  let next: UnsafeRawPointer
}

/// Words of A, `chunks` chunks [m][perChunk], 16 of each row side by side.
private struct FewFactors<F: Factors> {
  let a: UnsafePointer<F.Word>
  let m: Int
  let memory: UnsafeMutablePointer<F.Word>  // [m][32]

  /// Words `word` ..< `word` + 16 of the first row, and how far the next row's are: where they lie or, if a chunk ends among
  /// them, in the memory.
  @inline(__always) func from(_ word: Int) -> (start: UnsafePointer<F.Word>, stride: Int) {
    let place = word % F.perChunk
    let lower = a + (word &- place) &* m + place
    if place &+ 16 <= F.perChunk { return (lower, F.perChunk) }
    let upper = a + (word &- place &+ F.perChunk) &* m
    var row = 0
    while row < m {
      copy(lower + row &* F.perChunk, row &* 32)
      copy(upper + row &* F.perChunk, row &* 32 &+ F.perChunk &- place)
      row &+= 1
    }
    return (UnsafePointer(memory), 32)
  }

  /// 16 words, of which those beyond a chunk's row are overwritten or not read.
  @inline(__always) private func copy(_ words: UnsafePointer<F.Word>, _ place: Int) {
    let words = UnsafeRawPointer(words).loadUnaligned(as: Words.self)
    UnsafeMutableRawPointer(memory + place).storeBytes(of: words, as: Words.self)
  }
}

/// C[m,16] = start + A W^T for 16 rows of W.
@inline(__always) private func sixteenOutputs<F: Factors>(
  _: F.Type, _ m: Int, _ chunks: Int, _ a: UnsafePointer<F.Word>, _ w: UnsafeRawPointer, _ wRow: Int,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ rowsAhead: RowsAhead
) {
  var memory = moei_few_memory()
  withUnsafeMutablePointer(to: &memory) { memory in
    let memory = UnsafeMutableRawPointer(memory)
    let columns = memory.assumingMemoryBound(to: Float.self)  // [16][16]
    let factors = FewFactors<F>(
      a: a, m: m, memory: (memory + 16 &* 16 &* 4).assumingMemoryBound(to: F.Word.self))
    var sums = FewSums(m, start, startStride)
    let words = chunks &* F.perChunk  // of a row of W
    // First those in front of a cache line, then line by line, then the rest of the last one: squares across lines would
    // take half as long again.
    var word = 0
    var end = wordsBeforeLine(w, wRow)
    if end == 0 { end = 16 }
    while word < words {
      let ahead = (word &* 4) &+ rowsAhead.bytes
      let coming = ahead < words &* 4 ? w + ahead : rowsAhead.next + (ahead &- words &* 4)
      var row = 0
      while row < 16 {
        moei_prefetch(coming + row &* wRow)
        row &+= 1
      }
      if end &- word == 16 {
        let square = Square(w + word &* 4, wRow)
        let (a, stride) = factors.from(word)
        sums.add(F.self, m, a, stride, square.first)
        sums.add(F.self, m, a + 4, stride, square.second)
        sums.add(F.self, m, a + 8, stride, square.third)
        sums.add(F.self, m, a + 12, stride, square.fourth)
      } else {
        let begin = word == 0 ? 0 : words &- 16
        Square(w + begin &* 4, wRow).write(columns, 16)
        let (a, stride) = factors.from(begin)
        var i = word
        while i < end {
          sums.add(F.self, m, a + (i &- begin), stride, load(columns + (i &- begin) &* 16))
          i &+= 1
        }
      }
      word = end
      end = word &+ 16 < words ? word &+ 16 : words
    }
    sums.write(m, c, cStride)
  }
}

/// C[m,32] = start + A W^T for 32 rows of W, `wRow` bytes apart, and m <= `fewRows` rows of A in `chunks` chunks. `next`: what is
/// fetched behind the first 16 rows, and behind the others.
@inline(__always) private func productOfFewRows<F: Factors>(
  _: F.Type, _ m: Int, _ chunks: Int, _ a: UnsafePointer<F.Word>, _ w: UnsafeRawPointer, _ wRow: Int,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ bytesAhead: Int,
  _ next: (UnsafeRawPointer, UnsafeRawPointer)
) {
  var column = 0
  while column < 32 {
    let (s, c, w) = (start + column, c + column, w + column &* wRow)
    let next = RowsAhead(bytes: bytesAhead, next: column == 0 ? next.0 : next.1)
    switch m {
    case 1: sixteenOutputs(F.self, 1, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #if MOE_AVX512
      case 2: sixteenOutputs(F.self, 2, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 3: sixteenOutputs(F.self, 3, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 4: sixteenOutputs(F.self, 4, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 5: sixteenOutputs(F.self, 5, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 6: sixteenOutputs(F.self, 6, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 7: sixteenOutputs(F.self, 7, chunks, a, w, wRow, s, startStride, c, cStride, next)
      default: sixteenOutputs(F.self, 8, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #else
      default: sixteenOutputs(F.self, 2, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #endif
    }
    column &+= 16
  }
}

@inline(never) func productOfFewRows(
  _ m: Int, _ chunks: Int, _ a: Source, _ w: Source, _ wRow: Int, _ start: Source, _ startStride: Int, _ c: Target,
  _ cStride: Int, _ bytesAhead: Int, _ next: (UnsafeRawPointer, UnsafeRawPointer)
) {
  productOfFewRows(
    Floats.self, m, chunks, a, UnsafeRawPointer(w), wRow &* 4, start, startStride, c, cStride, bytesAhead, next)
}

@inline(never) func productOfFewRowsOfPairs(
  _ m: Int, _ chunks: Int, _ a: UnsafePointer<UInt32>, _ w: UnsafePointer<UInt16>, _ wRow: Int, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int, _ bytesAhead: Int, _ next: (UnsafeRawPointer, UnsafeRawPointer)
) {
  productOfFewRows(
    Pairs.self, m, chunks, a, UnsafeRawPointer(w), wRow &* 2, start, startStride, c, cStride, bytesAhead, next)
}

// MARK: rows over which a sum runs

extension Floats {
  @inline(__always) static func thirtyTwoSums(
    _ m: Int, _ k: Int, _ a: Source, _ aRow: Int, _ b: UnsafeRawPointer, _ bRow: Int, _ c: Target, _ cRow: Int,
    _ next: UnsafeRawPointer, _ nextRow: Int
  ) {
    var (left, right) = (FewSums(m, Source(c), cRow), FewSums(m, Source(c) + 16, cRow))
    var p = 0
    while p < k {
      let (row, next) = (b + p &* bRow, next + p &* nextRow)
      moei_prefetch(next)
      moei_prefetch(next + 64)
      left.add(Floats.self, m, a + p, aRow, row.loadUnaligned(as: V.self))
      right.add(Floats.self, m, a + p, aRow, (row + 64).loadUnaligned(as: V.self))
      p &+= 1
    }
    left.write(m, c, cRow)
    right.write(m, c + 16, cRow)
  }
}

extension Pairs {
  /// Two rows at a time. C's even columns stand in front of the odd ones.
  @inline(__always) static func thirtyTwoSums(
    _ m: Int, _ k: Int, _ a: Pointer, _ aRow: Int, _ b: UnsafeRawPointer, _ bRow: Int, _ c: Target, _ cRow: Int,
    _ next: UnsafeRawPointer, _ nextRow: Int
  ) {
    var (even, odd) = (FewSums(m, Source(c), cRow), FewSums(m, Source(c) + 16, cRow))
    var p = 0
    while p < k {
      let (row, coming) = (b + p &* bRow, next + p &* nextRow)
      let first = row.loadUnaligned(as: Words.self)
      // The last row of an odd number stands beside 0.
      var second = Words(repeating: 0)
      moei_prefetch(coming)
      if p &+ 1 < k {
        second = (row + bRow).loadUnaligned(as: Words.self)
        moei_prefetch(coming + nextRow)
      }
      let (evens, odds) = (first & 0xFFFF | second &<< 16, first &>> 16 | second & 0xFFFF_0000)
      even.add(Pairs.self, m, a + p / 2, aRow, unsafeBitCast(evens, to: V.self))
      odd.add(Pairs.self, m, a + p / 2, aRow, unsafeBitCast(odds, to: V.self))
      p &+= 2
    }
    even.write(m, c, cRow)
    odd.write(m, c + 16, cRow)
  }
}

/// C[m,n] += A B for few rows of A and k rows of B where they lie, `bRow` bytes apart; n is a multiple of 32. On the way k rows of `next`
/// are fetched.
@inline(__always) private func addFewRows<F: Factors>(
  _: F.Type, _ m: Int, _ n: Int, _ k: Int, _ a: UnsafePointer<F.Word>, _ aRow: Int, _ b: UnsafeRawPointer,
  _ bRow: Int, _ c: Target, _ cRow: Int, _ next: UnsafeRawPointer, _ nextRow: Int
) {
  var (first, next, nextRow) = (0, next, nextRow)
  while first < m {
    let count = m &- first < fewRows ? m &- first : fewRows
    let (a, c) = (a + first &* aRow, c + first &* cRow)
    var column = 0
    while column < n {
      let bytes = column / 32 &* F.perChunk &* 4
      let (b, c, next) = (b + bytes, c + column, next + bytes)
      switch count {
      case 1: F.thirtyTwoSums(1, k, a, aRow, b, bRow, c, cRow, next, nextRow)
      #if MOE_AVX512
        case 2: F.thirtyTwoSums(2, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        case 3: F.thirtyTwoSums(3, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        case 4: F.thirtyTwoSums(4, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        case 5: F.thirtyTwoSums(5, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        case 6: F.thirtyTwoSums(6, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        case 7: F.thirtyTwoSums(7, k, a, aRow, b, bRow, c, cRow, next, nextRow)
        default: F.thirtyTwoSums(8, k, a, aRow, b, bRow, c, cRow, next, nextRow)
      #else
        default: F.thirtyTwoSums(2, k, a, aRow, b, bRow, c, cRow, next, nextRow)
      #endif
      }
      column &+= 32
    }
    first &+= count
    (next, nextRow) = (b, bRow)  // which are here
  }
}

@inline(never) func addFewRows(
  _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ aRow: Int, _ b: Source, _ bRow: Int, _ c: Target, _ cRow: Int,
  _ next: Source, _ nextRow: Int
) {
  addFewRows(
    Floats.self, m, n, k, a, aRow, UnsafeRawPointer(b), bRow &* 4, c, cRow, UnsafeRawPointer(next), nextRow &* 4)
}

@inline(never) func addFewRowsOfPairs(
  _ m: Int, _ n: Int, _ k: Int, _ a: UnsafePointer<UInt32>, _ aRow: Int, _ b: UnsafePointer<UInt16>, _ bRow: Int,
  _ c: Target, _ cRow: Int, _ next: UnsafePointer<UInt16>, _ nextRow: Int
) {
  addFewRows(
    Pairs.self, m, n, k, a, aRow, UnsafeRawPointer(b), bRow &* 2, c, cRow, UnsafeRawPointer(next), nextRow &* 2)
}
