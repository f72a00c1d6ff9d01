import CShims

// Few rows times W^T, with W [outputs, inputs] as it lies in memory: what generation does, token by token. Each weight is
// used a few times only, so it does not stay in a panel: it goes through the registers, transposed on the way, straight
// into its chains, which are those of `product`.
// A product has more than ten parameters: matrices, where they begin and how far apart their rows are, as in BLAS. In a
// struct they would be written to memory and read again for every few outputs.

/// The most rows of one call. AVX2 has half the registers: what waits in them would go to memory and back.
#if MOE_AVX512
  var fewRows: Int { 4 }
#else
  var fewRows: Int { 2 }
#endif

/// The sums of up to four rows for 16 outputs.
private struct FewSums {
  private var row0, row1, row2, row3: V

  /// `m` is a constant wherever this is inlined.
  @inline(__always) init(_ m: Int, _ start: Source, _ stride: Int) {
    row0 = load(start)
    row1 = m > 1 ? load(start + stride) : V(repeating: 0)
    row2 = m > 2 ? load(start + 2 &* stride) : V(repeating: 0)
    row3 = m > 3 ? load(start + 3 &* stride) : V(repeating: 0)
  }

  /// Adds four words of each row of A, `stride` words apart, times four columns.
  @inline(__always) mutating func add<F: Factors>(
    _: F.Type, _ m: Int, _ a: UnsafePointer<F.Word>, _ stride: Int, _ b: Columns
  ) {
    Self.add(F.self, &row0, a, b)
    if m > 1 { Self.add(F.self, &row1, a + stride, b) }
    if m > 2 { Self.add(F.self, &row2, a + 2 &* stride, b) }
    if m > 3 { Self.add(F.self, &row3, a + 3 &* stride, b) }
  }

  /// Adds one word of each row, times one column.
  @inline(__always) mutating func add<F: Factors>(
    _: F.Type, _ m: Int, _ a: UnsafePointer<F.Word>, _ stride: Int, _ b: V
  ) {
    F.accumulate(&row0, a[0], b)
    if m > 1 { F.accumulate(&row1, a[stride], b) }
    if m > 2 { F.accumulate(&row2, a[2 &* stride], b) }
    if m > 3 { F.accumulate(&row3, a[3 &* stride], b) }
  }

  @inline(__always) private static func add<F: Factors>(
    _: F.Type, _ sum: inout V, _ a: UnsafePointer<F.Word>, _ b: Columns
  ) {
    F.accumulate(&sum, a[0], b.column0)
    F.accumulate(&sum, a[1], b.column1)
    F.accumulate(&sum, a[2], b.column2)
    F.accumulate(&sum, a[3], b.column3)
  }

  @inline(__always) func write(_ m: Int, _ c: Target, _ stride: Int) {
    store(c, row0)
    if m > 1 { store(c + stride, row1) }
    if m > 2 { store(c + 2 &* stride, row2) }
    if m > 3 { store(c + 3 &* stride, row3) }
  }
}

/// So many bytes of each of 16 rows are fetched into the cache before they are read.
private var bytesAhead: Int { 512 }

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

/// C[m,16] = start + A W^T for 16 rows of W; `next` are those that will be read after them.
@inline(__always) private func sixteenOutputs<F: Factors>(
  _: F.Type, _ m: Int, _ chunks: Int, _ a: UnsafePointer<F.Word>, _ w: UnsafeRawPointer, _ wRow: Int,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ next: UnsafeRawPointer
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
      let ahead = (word &* 4) &+ bytesAhead
      let coming = ahead < words &* 4 ? w + ahead : next + (ahead &- words &* 4)
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

/// C[m,32] = start + A W^T for 32 rows of W, `wRow` bytes apart, and m <= `fewRows` rows of A in `chunks` chunks.
@inline(__always) private func productOfFewRows<F: Factors>(
  _: F.Type, _ m: Int, _ chunks: Int, _ a: UnsafePointer<F.Word>, _ w: UnsafeRawPointer, _ wRow: Int,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ next: UnsafeRawPointer
) {
  var column = 0
  while column < 32 {
    let (s, c, w) = (start + column, c + column, w + column &* wRow)
    let next = column == 0 ? w + 16 &* wRow : next
    switch m {
    case 1: sixteenOutputs(F.self, 1, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #if MOE_AVX512
      case 2: sixteenOutputs(F.self, 2, chunks, a, w, wRow, s, startStride, c, cStride, next)
      case 3: sixteenOutputs(F.self, 3, chunks, a, w, wRow, s, startStride, c, cStride, next)
      default: sixteenOutputs(F.self, 4, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #else
      default: sixteenOutputs(F.self, 2, chunks, a, w, wRow, s, startStride, c, cStride, next)
    #endif
    }
    column &+= 16
  }
}

@inline(never) func productOfFewRows(
  _ m: Int, _ chunks: Int, _ a: Source, _ w: Source, _ wRow: Int, _ start: Source, _ startStride: Int, _ c: Target,
  _ cStride: Int, _ next: UnsafeRawPointer
) {
  productOfFewRows(
    Floats.self, m, chunks, a, UnsafeRawPointer(w), wRow &* 4, start, startStride, c, cStride, next)
}

@inline(never) func productOfFewRowsOfPairs(
  _ m: Int, _ chunks: Int, _ a: UnsafePointer<UInt32>, _ w: UnsafePointer<UInt16>, _ wRow: Int, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int, _ next: UnsafeRawPointer
) {
  productOfFewRows(Pairs.self, m, chunks, a, UnsafeRawPointer(w), wRow &* 2, start, startStride, c, cStride, next)
}

// MARK: rows over which a sum runs

/// C[m,32] += A B for rows of A, `aRow` floats apart, and k rows of B.
@inline(__always) private func thirtyTwoSums(
  _ m: Int, _ k: Int, _ a: Source, _ aRow: Int, _ b: Source, _ bRow: Int, _ c: Target, _ cRow: Int
) {
  var (left, right) = (FewSums(m, Source(c), cRow), FewSums(m, Source(c) + 16, cRow))
  var p = 0
  while p < k {
    let row = b + p &* bRow
    left.add(Floats.self, m, a + p, aRow, load(row))
    right.add(Floats.self, m, a + p, aRow, load(row + 16))
    p &+= 1
  }
  left.write(m, c, cRow)
  right.write(m, c + 16, cRow)
}

/// C[m,n] += A B for few rows of A and k rows of B where they lie; n is a multiple of 32.
@inline(never) func addFewRows(
  _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ aRow: Int, _ b: Source, _ bRow: Int, _ c: Target, _ cRow: Int
) {
  var first = 0
  while first < m {
    let count = m &- first < fewRows ? m &- first : fewRows
    let (a, c) = (a + first &* aRow, c + first &* cRow)
    var column = 0
    while column < n {
      let (b, c) = (b + column, c + column)
      switch count {
      case 1: thirtyTwoSums(1, k, a, aRow, b, bRow, c, cRow)
      #if MOE_AVX512
        case 2: thirtyTwoSums(2, k, a, aRow, b, bRow, c, cRow)
        case 3: thirtyTwoSums(3, k, a, aRow, b, bRow, c, cRow)
        default: thirtyTwoSums(4, k, a, aRow, b, bRow, c, cRow)
      #else
        default: thirtyTwoSums(2, k, a, aRow, b, bRow, c, cRow)
      #endif
      }
      column &+= 32
    }
    first &+= count
  }
}
