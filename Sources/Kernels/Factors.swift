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

  /// Some steps of the contraction for a tile of rows and columns, at most 16, in which it has as many factors.
  associatedtype Steps: TileSteps
  /// A: [count][perChunk], a step in each column.  B: [steps][32].
  static func stepsOfRows(
    _ count: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<Steps.Memory>
  ) -> Steps
  /// A: [steps][32], of which the columns from `first` on are the tile's rows.  B: [steps][32].
  static func stepsOfTokens(
    _ first: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<Steps.Memory>
  ) -> Steps
}

protocol TileSteps {
  associatedtype Memory
  static func memory() -> Memory
  /// Adds the products of step p.
  func accumulate<R: Rows>(_ rows: inout R, _ p: Int)
}

/// Factors where they lie.
struct PlainSteps<F: Factors>: TileSteps {
  struct Memory {}
  let a: UnsafePointer<F.Word>
  let row: Int  // words of A from one of the tile's rows to the next
  let step: Int  // and from one step to the next
  let b: UnsafePointer<F.Word>

  @inline(__always) static func memory() -> Memory { Memory() }
  @inline(__always) func accumulate<R: Rows>(_ rows: inout R, _ p: Int) {
    F.accumulate(&rows, a + p &* step, row, b + p &* 32)
  }
}

extension Factors where Steps == PlainSteps<Self> {
  @inline(__always) static func stepsOfRows(
    _ count: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<Steps.Memory>
  ) -> Steps { Steps(a: a, row: perChunk, step: 1, b: b) }
  @inline(__always) static func stepsOfTokens(
    _ first: Int, _ a: UnsafePointer<Word>, _ steps: Int, _ b: UnsafePointer<Word>,
    _ memory: UnsafeMutablePointer<Steps.Memory>
  ) -> Steps { Steps(a: a + first, row: 1, step: 32, b: b) }
}

enum Floats: Factors {
  typealias Steps = PlainSteps<Floats>
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
  #if MOE_AVX512BF16
    typealias Steps = PlainSteps<Pairs>
  #else
    typealias Steps = DecodedSteps
    @inline(__always) static func stepsOfRows(
      _ count: Int, _ a: Pointer, _ steps: Int, _ b: Pointer, _ memory: UnsafeMutablePointer<moei_decoded>
    ) -> Steps {
      let decoded = Steps(memory, row: 32, step: 1)
      decoded.decode(rows: count, a, apart: perChunk)
      decoded.decode(columns: steps, b)
      return decoded
    }
    @inline(__always) static func stepsOfTokens(
      _ first: Int, _ a: Pointer, _ steps: Int, _ b: Pointer, _ memory: UnsafeMutablePointer<moei_decoded>
    ) -> Steps {
      // 16 columns with the tile's among them.
      let begin = first < 16 ? first : 16
      let decoded = Steps(memory, row: 1, step: 32, first: first &- begin)
      decoded.decode(rows: steps, a + begin, apart: 32)
      decoded.decode(columns: steps, b)
      return decoded
    }
  #endif
}

#if !MOE_AVX512BF16
  /// Pairs of bfloat16 as floats. A factor of A has to be in all lanes of a register: from memory that costs nothing, while a
  /// half of a word would come through two more registers; and B's halves beside the sums are more than AVX2 has registers for.
  struct DecodedSteps: TileSteps {
    private let a: Target  // [rows or steps][lower halves, upper halves][16]
    private let b: Target  // [steps][lower halves, upper halves][columns]
    private let row: Int
    private let step: Int
    private let first: Int  // of the decoded ones, the tile's first row

    @inline(__always) static func memory() -> moei_decoded { moei_decoded_memory() }

    @inline(__always) init(_ memory: UnsafeMutablePointer<moei_decoded>, row: Int, step: Int, first: Int = 0) {
      let floats = UnsafeMutableRawPointer(memory).alignedUp(toMultipleOf: 64).assumingMemoryBound(to: Float.self)
      (a, b, self.row, self.step, self.first) = (floats, floats + 32 &* 16, row, step, first)
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

    @inline(__always) func accumulate<R: Rows>(_ rows: inout R, _ p: Int) {
      let (a, b) = (Source(a + (p &* step &+ first)), Source(b + p &* 2 &* Lanes.width))
      rows.accumulate(a, row, Lanes(b))
      rows.accumulate(a + 16, row, Lanes(b + Lanes.width))
    }
  }
#endif
