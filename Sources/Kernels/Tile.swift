import CShims

// The matrix products' inner loops. A tile is a few rows of outputs whose sums stay in registers while the contraction
// index runs. Each output is one chain of fused multiply-adds in ascending order, begun from what is in C, so how the
// rows are cut into tiles cannot change a bit.
// A product has more than ten parameters: matrices, where they begin and how far apart their rows are, as in BLAS. In a
// struct they would be written to memory and read again for every tile.

/// One row of a tile: as many outputs as let a tall tile fit into the registers.
#if MOE_AVX512
  struct Lanes {
    var low, high: V
    static var width: Int { 32 }
    @inline(__always) init(_ p: Source) { self.init { load(p + $0) } }
    /// `part`: 16 of them from a given one on.
    @inline(__always) init(_ part: (Int) -> V) { (low, high) = (part(0), part(16)) }
    @inline(__always) mutating func accumulate(_ factor: Float, _ b: Lanes) {
      let a = V(repeating: factor)
      low = fma(a, b.low, low)
      high = fma(a, b.high, high)
    }
    @inline(__always) func write(_ p: Target) {
      store(p, low)
      store(p + 16, high)
    }
  }
#else
  struct Lanes {
    private var all: V
    static var width: Int { 16 }
    @inline(__always) init(_ p: Source) { self.init { load(p + $0) } }
    @inline(__always) init(_ part: (Int) -> V) { all = part(0) }
    @inline(__always) mutating func accumulate(_ factor: Float, _ b: Lanes) {
      all = fma(V(repeating: factor), b.all, all)
    }
    @inline(__always) func write(_ p: Target) { store(p, all) }
  }
#endif

/// Rows whose sums the registers hold.
#if MOE_AVX512
  var tallestTile: Int { 14 }
#else
  var tallestTile: Int { 6 }
#endif

/// The most rows a caller may hand over at once. Where registers hold fewer there are several passes over some steps of the same panel.
#if MOE_AVX512
  var tileHeight: Int { 14 }
#else
  var tileHeight: Int { 24 }
#endif

/// Steps of the contraction that all rows pass over before the next ones come. The more passes, the more often the factors are read:
/// so many steps of a panel and of 24 rows stay in the first-level cache.
#if MOE_AVX512
  private var stepsAtOnce: Int { 1 << 48 }  // all
#else
  private var stepsAtOnce: Int { 64 }
#endif

/// See rows_unfetched in moei.h. With AVX-512 one row reads up to 27 % more in a second so; cores with AVX2 alone find less by themselves.
#if MOE_AVX512
  var rowsUnfetched: Int { 6 }
#else
  var rowsUnfetched: Int { 0 }
#endif

/// Whether the chains are fused multiply-adds: without them they would differ.
#if MOE_FMA
  var hasTiles: Bool { true }
#else
  var hasTiles: Bool { false }
#endif

/// Some rows of C in registers, put together at compile time: an array of rows would live in memory.
protocol Rows {
  static var count: Int { get }
  init(_ c: Source, _ stride: Int)
  /// Adds a[r * step] * b to row r.
  mutating func accumulate(_ a: Source, _ step: Int, _ b: Lanes)
  /// Adds both products of a[r * step] and b to row r.
  mutating func accumulate(_ a: UnsafePointer<UInt32>, _ step: Int, _ b: PairLanes)
  func write(_ c: Target, _ stride: Int)
}

struct One: Rows {
  private var row: Lanes
  static var count: Int { 1 }
  @inline(__always) init(_ c: Source, _ stride: Int) { row = Lanes(c) }
  @inline(__always) mutating func accumulate(_ a: Source, _ step: Int, _ b: Lanes) { row.accumulate(a[0], b) }
  @inline(__always) mutating func accumulate(_ a: UnsafePointer<UInt32>, _ step: Int, _ b: PairLanes) {
    row.accumulate(a[0], b)
  }
  @inline(__always) func write(_ c: Target, _ stride: Int) { row.write(c) }
}

struct Both<Upper: Rows, Lower: Rows>: Rows {
  private var upper: Upper
  private var lower: Lower
  static var count: Int { Upper.count &+ Lower.count }
  @inline(__always) init(_ c: Source, _ stride: Int) {
    upper = Upper(c, stride)
    lower = Lower(c + Upper.count &* stride, stride)
  }
  @inline(__always) mutating func accumulate(_ a: Source, _ step: Int, _ b: Lanes) {
    upper.accumulate(a, step, b)
    lower.accumulate(a + Upper.count &* step, step, b)
  }
  @inline(__always) mutating func accumulate(_ a: UnsafePointer<UInt32>, _ step: Int, _ b: PairLanes) {
    upper.accumulate(a, step, b)
    lower.accumulate(a + Upper.count &* step, step, b)
  }
  @inline(__always) func write(_ c: Target, _ stride: Int) {
    upper.write(c, stride)
    lower.write(c + Upper.count &* stride, stride)
  }
}

typealias Two = Both<One, One>
typealias Three = Both<Two, One>
typealias Four = Both<Two, Two>
typealias Five = Both<Four, One>
typealias Six = Both<Four, Two>
typealias Seven = Both<Four, Three>
typealias Eight = Both<Four, Four>
typealias Nine = Both<Eight, One>
typealias Ten = Both<Eight, Two>
typealias Eleven = Both<Eight, Three>
typealias Twelve = Both<Eight, Four>
typealias Thirteen = Both<Eight, Five>
typealias Fourteen = Both<Eight, Six>

/// Rows of C, of which a copy is computed where it is asked for, or where they are narrower than 32 at the right edge of a matrix.
@inline(__always) func withColumns(
  _ columns: Int, _ m: Int, _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, copied: Bool,
  _ compute: (Source, Int, Target, Int) -> Void
) {
  if columns >= 32 && !copied { return compute(start, startStride, c, cStride) }
  var copy = moei_outputs_memory()
  withUnsafeMutablePointer(to: &copy) { copy in
    let copy = UnsafeMutableRawPointer(copy).assumingMemoryBound(to: Float.self)
    var r = 0
    while r < m {
      store(copy + r &* 32, load(start + r &* startStride, columns))
      store(
        copy + (r &* 32 &+ 16), columns > 16 ? load(start + (r &* startStride &+ 16), columns &- 16) : V(repeating: 0))
      r &+= 1
    }
    compute(copy, 32, copy, 32)
    r = 0
    while r < m {
      store(c + r &* cStride, columns, load(copy + r &* 32))
      if columns > 16 { store(c + (r &* cStride &+ 16), columns &- 16, load(copy + (r &* 32 &+ 16))) }
      r &+= 1
    }
  }
}

// MARK: tokens in rows: Y = X W^T, and dX = dY W

/// What a pass fetches of the lines that are wanted next.
private struct Fetching {
  let ahead: moei_ahead
  /// Those of each chunk's steps that are this pass's: others fetch the rest.
  let first: Int, end: Int

  /// A pass of few rows has no time for a line with each step: its loop is short of loads. It fetches its few at once.
  @inline(__always) func beforeChunk(_ chunk: Int) {
    #if !MOE_AVX512
      var step = first
      while step < end {
        fetch(chunk, step)
        step &+= 1
      }
    #endif
  }

  @inline(__always) func beforeStep(_ chunk: Int, _ step: Int) {
    #if MOE_AVX512
      fetch(chunk, step)
    #endif
  }

  @inline(__always) private func fetch(_ chunk: Int, _ step: Int) {
    let line = ahead.first + (chunk &* Int(ahead.chunk) &+ step &* Int(ahead.row))
    moei_prefetch(line)
    moei_prefetch(line + Int(ahead.beside))
  }
}

/// C[R.count, Lanes.width] += A B.  A: [chunk][m][perChunk], R.count rows of which are the tile's;  B: [k][32].
@inline(__always) private func tile<R: Rows, F: Factors>(
  _: R.Type, _: F.Type, _ k: Int, _ a: UnsafePointer<F.Word>, _ m: Int, _ b: UnsafePointer<F.Word>, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int, _ fetching: Fetching
) {
  var memory = moei_decoded_memory()
  withUnsafeMutablePointer(to: &memory) { memory in
    var rows = R(start, startStride)
    var (a, b, left, chunk) = (a, b, k, 0)
    while left > 0 {
      let count = left < F.perChunk ? left : F.perChunk
      F.beginRows(R.count, a, count, b, memory)
      fetching.beforeChunk(chunk)
      var p = 0
      while p < count {
        fetching.beforeStep(chunk, p)
        F.addRows(&rows, p, a, b, memory)
        p &+= 1
      }
      a += m &* F.perChunk
      b += F.perChunk &* 32
      left &-= F.perChunk
      chunk &+= 1
    }
    rows.write(c, cStride)
  }
}

#if !MOE_AVX512
  /// All 32 columns of one row or two: a panel of which few rows make use comes from memory, and is read line by line from one
  /// end to the other. The registers hold two tiles side by side.
  @inline(__always) private func wideTile<R: Rows, F: Factors>(
    _: R.Type, _: F.Type, _ k: Int, _ a: UnsafePointer<F.Word>, _ b: UnsafePointer<F.Word>, _ start: Source,
    _ startStride: Int, _ c: Target, _ cStride: Int, _ ahead: moei_ahead
  ) {
    var left = R(start, startStride)
    var right = R(start + 16, startStride)
    var (a, b, words, chunkAhead) = (a, b, k, ahead.first)
    while words > 0 {
      let count = words < F.perChunk ? words : F.perChunk
      var next = chunkAhead
      var p = 0
      while p < count {
        moei_prefetch(next)
        moei_prefetch(next + Int(ahead.beside))
        next += Int(ahead.row)
        F.accumulate(&left, a + p, F.perChunk, b)
        F.accumulate(&right, a + p, F.perChunk, b + 16)
        b += 32
        p &+= 1
      }
      a += R.count &* F.perChunk
      words &-= F.perChunk
      chunkAhead += Int(ahead.chunk)
    }
    left.write(c, cStride)
    right.write(c + 16, cStride)
  }
#endif

/// C[m,32] = start + A B, of which `columns` are stored; m is 1 to `tileHeight`. With startStride 0 every row starts
/// from the same bias. On the way what lies `ahead` is fetched into the cache.
@inline(__always) private func productOf<F: Factors>(
  _: F.Type, _ m: Int, _ columns: Int, _ k: Int, _ a: UnsafePointer<F.Word>, _ b: UnsafePointer<F.Word>,
  _ start: Source, _ startStride: Int, _ c: Target, _ cStride: Int, _ ahead: moei_ahead
) {
  // Rows of C may lie a multiple of 4 KiB apart, where they share a few places of the first-level cache. What is read several times
  // lies side by side meanwhile.
  withColumns(columns, m, start, startStride, c, cStride, copied: m > 2 && k > stepsAtOnce && cStride > 32) {
    start, ss, c, cs in
    #if !MOE_AVX512
      if m == 1 { return wideTile(One.self, F.self, k, a, b, start, ss, c, cs, ahead) }
      if m == 2 { return wideTile(Two.self, F.self, k, a, b, start, ss, c, cs, ahead) }
    #endif
    var (done, start, ss) = (0, start, ss)
    repeat {
      let left = k &- done
      let coming = ahead.first + done / F.perChunk &* Int(ahead.chunk)
      passes(
        F.self, left < stepsAtOnce ? left : stepsAtOnce, m, a + done &* m, b + done &* 32, start, ss, c, cs,
        moei_ahead(first: coming, row: ahead.row, chunk: ahead.chunk, beside: ahead.beside))
      (start, ss) = (Source(c), cs)
      done &+= stepsAtOnce
    } while done < k
  }
}

/// C[m,32] = start + A B, a tile of about equally many rows in each pass.
@inline(__always) private func passes<F: Factors>(
  _: F.Type, _ k: Int, _ m: Int, _ a: UnsafePointer<F.Word>, _ b: UnsafePointer<F.Word>, _ start: Source, _ ss: Int,
  _ c: Target, _ cs: Int, _ ahead: moei_ahead
) {
  let count = (m &+ tallestTile &- 1) / tallestTile
  let (height, taller) = (m / count, m % count)
  let lines = (F.perChunk &* Lanes.width / 32 &+ count &- 1) / count
  var (column, first) = (0, 0)
  while column < 32 {
    var (r, pass) = (0, 0)
    while pass < count {
      let rows = height &+ (pass < taller ? 1 : 0)
      let end = first &+ lines
      let fetching = Fetching(ahead: ahead, first: first, end: end < F.perChunk ? end : F.perChunk)
      let (a, b) = (a + r &* F.perChunk, b + column)
      let (s, c) = (start + (r &* ss &+ column), c + (r &* cs &+ column))
      switch rows {
      case 1: tile(One.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      case 2: tile(Two.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      case 3: tile(Three.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      case 4: tile(Four.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      case 5: tile(Five.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      #if MOE_AVX512
        case 6: tile(Six.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 7: tile(Seven.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 8: tile(Eight.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 9: tile(Nine.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 10: tile(Ten.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 11: tile(Eleven.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 12: tile(Twelve.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        case 13: tile(Thirteen.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
        default: tile(Fourteen.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      #else
        default: tile(Six.self, F.self, k, a, m, b, s, ss, c, cs, fetching)
      #endif
      }
      r &+= rows
      first = end
      pass &+= 1
    }
    column &+= Lanes.width
  }
}

@inline(never) func product(
  _ m: Int, _ columns: Int, _ k: Int, _ a: Source, _ b: Source, _ start: Source, _ startStride: Int, _ c: Target,
  _ cStride: Int, _ ahead: moei_ahead
) {
  productOf(Floats.self, m, columns, k, a, b, start, startStride, c, cStride, ahead)
}

@inline(never) func productOfPairs(
  _ m: Int, _ columns: Int, _ k: Int, _ a: UnsafePointer<UInt32>, _ b: UnsafePointer<UInt32>, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int, _ ahead: moei_ahead
) {
  productOf(Pairs.self, m, columns, k, a, b, start, startStride, c, cStride, ahead)
}
