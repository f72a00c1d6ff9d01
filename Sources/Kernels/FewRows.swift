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

  /// Adds four words of each row of A, times four columns.
  @inline(__always) mutating func add<F: Factors>(
    _: F.Type, _ m: Int, _ a: UnsafePointer<F.Word>, _ b: Columns
  ) {
    Self.add(F.self, &row0, a, b)
    if m > 1 { Self.add(F.self, &row1, a + F.perChunk, b) }
    if m > 2 { Self.add(F.self, &row2, a + 2 &* F.perChunk, b) }
    if m > 3 { Self.add(F.self, &row3, a + 3 &* F.perChunk, b) }
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

/// C[m,16] = start + A W^T for 16 rows of W; `next` are those that will be read after them.
@inline(__always) private func sixteenOutputs<F: Factors>(
  _: F.Type, _ m: Int, _ chunks: Int, _ a: UnsafePointer<F.Word>, _ w: UnsafeRawPointer, _ wRow: Int,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ next: UnsafeRawPointer
) {
  var sums = FewSums(m, start, startStride)
  let size = chunks &* F.perChunk &* 4  // bytes of a row of W
  var (a, byte, word) = (a, 0, 0)
  while byte < size {
    let ahead = byte &+ bytesAhead
    let coming = ahead < size ? w + ahead : next + (ahead &- size)
    var row = 0
    while row < 16 {
      moei_prefetch(coming + row &* wRow)
      row &+= 1
    }
    let square = Square(w + byte, wRow)
    sums.add(F.self, m, a + word, square.first)
    sums.add(F.self, m, a + (word &+ 4), square.second)
    sums.add(F.self, m, a + (word &+ 8), square.third)
    sums.add(F.self, m, a + (word &+ 12), square.fourth)
    byte &+= 64
    word &+= 16
    if word == F.perChunk {
      a += m &* F.perChunk
      word = 0
    }
  }
  sums.write(m, c, cStride)
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
