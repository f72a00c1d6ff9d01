import CShims

/// What is multiplied: floats, or words of two bfloat16 each.
protocol Factors {
  associatedtype Word
  /// Words of a row's 32 features.
  static var perChunk: Int { get }
  /// Adds a[r * step] * b[32] to row r.
  static func accumulate<R: Rows>(_ rows: inout R, _ a: UnsafePointer<Word>, _ step: Int, _ b: UnsafePointer<Word>)
  /// The same for one row's word and 16 of B's, which are in a register.
  static func accumulate(_ sum: inout V, _ a: Word, _ b: V)

  /// C[m,32] += A B for few rows of A, `aRow` words apart, and k rows of B, `bRow` bytes apart. As much of as many rows of `next` is
  /// fetched.
  static func thirtyTwoSums(
    _ m: Int, _ k: Int, _ a: UnsafePointer<Word>, _ aRow: Int, _ b: UnsafeRawPointer, _ bRow: Int, _ c: Target,
    _ cRow: Int, _ next: UnsafeRawPointer, _ nextRow: Int)

  /// Whether steps are decoded before they are multiplied.
  static var decodes: Bool { get }
  /// Before the first of some steps of the contraction, at most 16, for a tile of `count` rows of A [m][perChunk], a step in each
  /// column, and B [steps][32]: what the steps want decoded goes to the memory.
  static func beginRows(
    _ count: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>)
  /// Adds the products of step p.
  static func addRows<R: Rows>(
    _ rows: inout R, _ p: Int, _ a: UnsafePointer<Word>, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>)

  /// The same of A [steps][32], of which the columns from `first` on are the tile's rows.
  static func beginTokens(
    _ first: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>)
  static func addTokens<R: Rows>(
    _ rows: inout R, _ p: Int, _ first: Int, _ a: UnsafePointer<Word>, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>)
}

// Where they lie.
extension Factors {
  static var decodes: Bool { false }
  @inline(__always) static func beginRows(
    _ count: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>
  ) {}
  @inline(__always) static func addRows<R: Rows>(
    _ rows: inout R, _ p: Int, _ a: UnsafePointer<Word>, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>
  ) {
    accumulate(&rows, a + p, perChunk, b + p &* 32)
  }
  @inline(__always) static func beginTokens(
    _ first: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>
  ) {}
  @inline(__always) static func addTokens<R: Rows>(
    _ rows: inout R, _ p: Int, _ first: Int, _ a: UnsafePointer<Word>, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<moei_decoded>
  ) {
    accumulate(&rows, a + (p &* 32 &+ first), 1, b + p &* 32)
  }
}

enum Floats: Factors {
  static var perChunk: Int { 32 }
  @inline(__always) static func accumulate<R: Rows>(_ rows: inout R, _ a: Source, _ step: Int, _ b: Source) {
    rows.accumulate(a, step, Lanes(b))
  }
  @inline(__always) static func accumulate(_ sum: inout V, _ a: Float, _ b: V) {
    sum = fma(V(repeating: a), b, sum)
  }
}

enum Pairs: Factors {
  typealias Pointer = UnsafePointer<UInt32>
  static var perChunk: Int { 16 }
  @inline(__always) static func accumulate<R: Rows>(_ rows: inout R, _ a: Pointer, _ step: Int, _ b: Pointer) {
    rows.accumulate(a, step, PairLanes(b))
  }
  @inline(__always) static func accumulate(_ sum: inout V, _ a: UInt32, _ b: V) {
    addProducts(&sum, a, unsafeBitCast(b, to: Words.self))
  }
  #if !MOE_AVX512BF16
    static var decodes: Bool { true }
    @inline(__always) static func beginRows(
      _ count: Int, _ a: Pointer, _ steps: Int, _ b: Pointer, _ memory: UnsafeMutablePointer<moei_decoded>
    ) {
      let decoded = DecodedPairs(memory)
      decoded.decode(rows: count, a, apart: perChunk)
      decoded.decode(columns: steps, b)
    }
    @inline(__always) static func addRows<R: Rows>(
      _ rows: inout R, _ p: Int, _ a: Pointer, _ b: Pointer, _ memory: UnsafeMutablePointer<moei_decoded>
    ) {
      DecodedPairs(memory).accumulate(&rows, p, first: p, row: 32)
    }
    @inline(__always) static func beginTokens(
      _ first: Int, _ a: Pointer, _ steps: Int, _ b: Pointer, _ memory: UnsafeMutablePointer<moei_decoded>
    ) {
      let decoded = DecodedPairs(memory)
      decoded.decode(rows: steps, a + begin(first), apart: 32)
      decoded.decode(columns: steps, b)
    }
    @inline(__always) static func addTokens<R: Rows>(
      _ rows: inout R, _ p: Int, _ first: Int, _ a: Pointer, _ b: Pointer,
      _ memory: UnsafeMutablePointer<moei_decoded>
    ) {
      DecodedPairs(memory).accumulate(&rows, p, first: p &* 32 &+ first &- begin(first), row: 1)
    }
    /// Of 16 columns with the tile's among them, the first.
    @inline(__always) private static func begin(_ first: Int) -> Int { first < 16 ? first : 16 }
  #endif
}

#if !MOE_AVX512BF16
  /// Pairs of bfloat16 as floats. A factor of A has to be in all lanes of a register: from memory that costs nothing, while a
  /// half of a word would come through two more registers; and B's halves beside the sums are more than AVX2 has registers for.
  struct DecodedPairs {
    private let a: Target  // [rows or steps][lower halves, upper halves][16]
    private let b: Target  // [steps][lower halves, upper halves][columns]

    @inline(__always) init(_ memory: UnsafeMutablePointer<moei_decoded>) {
      let floats = UnsafeMutableRawPointer(memory).alignedUp(toMultipleOf: 64).assumingMemoryBound(to: Float.self)
      (a, b) = (floats, floats + 32 &* 16)
    }

    @inline(__always) func decode(rows count: Int, _ words: UnsafePointer<UInt32>, apart: Int) {
      var i = 0
      while i < count {
        let pairs = loadWords(words + i &* apart)
        store(a + i &* 32, lowerHalves(pairs))
        store(a + (i &* 32 &+ 16), upperHalves(pairs))
        i &+= 1
      }
    }

    @inline(__always) func decode(columns count: Int, _ words: UnsafePointer<UInt32>) {
      var i = 0
      while i < count {
        let halves = b + i &* 2 &* Lanes.width
        var column = 0
        while column < Lanes.width {
          let pairs = loadWords(words + (i &* 32 &+ column))
          store(halves + column, lowerHalves(pairs))
          store(halves + (Lanes.width &+ column), upperHalves(pairs))
          column &+= 16
        }
        i &+= 1
      }
    }

    /// Adds the products of step p. A's factor of the tile's first row is number `first`, and each row's lies `row` further on.
    @inline(__always) func accumulate<R: Rows>(_ rows: inout R, _ p: Int, first: Int, row: Int) {
      let (a, b) = (Source(a + first), Source(b + p &* 2 &* Lanes.width))
      rows.accumulate(a, row, Lanes(b))
      rows.accumulate(a + 16, row, Lanes(b + Lanes.width))
    }
  }
#endif
