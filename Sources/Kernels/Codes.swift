import CShims

// Weights of few bits: 32 outputs times 32 contraction indices are a block of integers with a scale for each output, which
// decoded are floats, and multiply floats in the chains of `product`. Tokens may be integers too, 32 features under one
// scale: then sums within a block are exact, however a processor takes them, and the chain goes over blocks.

#if MOE_AVX512BF16
  /// Every processor with bfloat16 instructions has those for integers.
  typealias Sums = SIMD16<Int32>
  typealias SumFloats = SIMD16<Float>
#else
  typealias Sums = SIMD8<Int32>
  typealias SumFloats = SIMD8<Float>
#endif

/// One way to write weights down. Outputs are taken as many at once as `Sums` has lanes.
protocol Code {
  /// Sums of products of one block, as they are taken.
  associatedtype Partial
  static var bytes: Int { get }  // of a block
  /// Values of one output in a word of a block.
  static var perWord: Int { get }
  static var none: Partial { get }
  /// For a token's chunk: minus what `add` adds beyond the products.
  static func begin(_ token: UnsafeRawPointer) -> Partial
  /// Adds contraction indices 8 j ..< 8 j + 8 of the outputs that `block` begins with.
  static func add(_ j: Int, _ block: UnsafeRawPointer, _ token: UnsafeRawPointer, to sum: inout Partial)
  static func end(_ sum: Partial) -> Sums
  /// Number i of the values in words, without the scale.
  static func value(_ words: Sums, _ i: Int) -> Sums
}

extension Code {
  /// Scales are binary16.
  @inline(__always) static func scales(_ block: UnsafeRawPointer, _ output: Int) -> SumFloats {
    let p = block + (bytes &- 64 &+ output &* 2)
    #if MOE_AVX512BF16
      return moei_from_f16(p.loadUnaligned(as: Halves.self))
    #else
      let own = p.loadUnaligned(as: SIMD8<UInt16>.self)
      return moei_from_f16(Halves(lowHalf: own, highHalf: SIMD8(repeating: 0))).lowHalf
    #endif
  }
}

/// Four integers of a token's chunk, from number 4 i on.
@inline(__always) func fourOf(_ token: UnsafeRawPointer, _ i: Int) -> Int32 {
  (token + i &* 4).loadUnaligned(as: Int32.self)
}

/// The sum of a chunk's integers.
@inline(__always) func sumOf(_ token: UnsafeRawPointer) -> Int32 { (token + 36).loadUnaligned(as: Int32.self) }

/// As `fma`, but with one rounding where there is no instruction for it, too.
@inline(__always) private func chain(_ a: SumFloats, _ b: SumFloats, _ c: SumFloats) -> SumFloats {
  #if MOE_FMA
    return c.addingProduct(a, b)
  #else
    var sum = c
    var lane = 0
    while lane < 8 {
      sum[lane] = c[lane].addingProduct(a[lane], b[lane])
      lane &+= 1
    }
    return sum
  #endif
}

@inline(__always) private func floats(_ v: Sums) -> SumFloats {
  #if MOE_AVX512BF16
    moei_from_i32(v)
  #else
    moei_from_i32x8(v)
  #endif
}

// MARK: tiles in registers

/// What a tile's chains read next: a block of weights from the tile's first output on, and a chunk of its first token.
struct CodeStep {
  let block: UnsafeRawPointer
  let tokens: UnsafeRawPointer
  let tokenBytes: Int  // of a row's chunk
  let output: Int  // number of the first output

  @inline(__always) func from(row: Int) -> CodeStep {
    CodeStep(block: block, tokens: tokens + row &* tokenBytes, tokenBytes: tokenBytes, output: output)
  }
  @inline(__always) func from(output more: Int) -> CodeStep {
    CodeStep(block: block, tokens: tokens, tokenBytes: tokenBytes, output: output &+ more)
  }
  /// Where number i of the block's rows of words begins.
  @inline(__always) func words(_ i: Int) -> UnsafeRawPointer { block + (i &* 128 &+ output &* 4) }
}

/// Some rows and outputs of C in registers, put together at compile time.
protocol CodeTile {
  static var rows: Int { get }
  static var outputs: Int { get }
  init(_ start: Source, _ stride: Int)
  // A block of integers times integers.
  mutating func begin(_ step: CodeStep)
  mutating func add(_ step: CodeStep, _ j: Int)
  mutating func end(_ step: CodeStep)
  /// One contraction index of floats: value i in row `word` of the block's words.
  mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int)
  func write(_ c: Target, _ stride: Int)
}

/// As many outputs of one row as `Sums` has lanes.
struct CodeOne<C: Code>: CodeTile {
  private var total: SumFloats
  private var partial: C.Partial
  static var rows: Int { 1 }
  static var outputs: Int { Sums.scalarCount }
  @inline(__always) init(_ start: Source, _ stride: Int) {
    total = UnsafeRawPointer(start).loadUnaligned(as: SumFloats.self)
    partial = C.none
  }
  @inline(__always) mutating func begin(_ step: CodeStep) { partial = C.begin(step.tokens) }
  @inline(__always) mutating func add(_ step: CodeStep, _ j: Int) {
    C.add(j, step.block + step.output &* 4, step.tokens, to: &partial)
  }
  @inline(__always) mutating func end(_ step: CodeStep) {
    let scale = (step.tokens + 32).loadUnaligned(as: Float.self)
    total = chain(C.scales(step.block, step.output) * scale, floats(C.end(partial)), total)
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int) {
    let words = step.words(word).loadUnaligned(as: Sums.self)
    let weights = floats(C.value(words, i)) * C.scales(step.block, step.output)
    let token = (step.tokens + feature &* 4).loadUnaligned(as: Float.self)
    total = chain(SumFloats(repeating: token), weights, total)
  }
  @inline(__always) func write(_ c: Target, _ stride: Int) {
    UnsafeMutableRawPointer(c).storeBytes(of: total, as: SumFloats.self)
  }
}

/// One above the other.
struct CodeRows<Upper: CodeTile, Lower: CodeTile>: CodeTile {
  private var upper: Upper
  private var lower: Lower
  static var rows: Int { Upper.rows &+ Lower.rows }
  static var outputs: Int { Upper.outputs }
  @inline(__always) init(_ start: Source, _ stride: Int) {
    upper = Upper(start, stride)
    lower = Lower(start + Upper.rows &* stride, stride)
  }
  @inline(__always) mutating func begin(_ step: CodeStep) {
    upper.begin(step)
    lower.begin(step.from(row: Upper.rows))
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ j: Int) {
    upper.add(step, j)
    lower.add(step.from(row: Upper.rows), j)
  }
  @inline(__always) mutating func end(_ step: CodeStep) {
    upper.end(step)
    lower.end(step.from(row: Upper.rows))
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int) {
    upper.add(step, word, i, feature: feature)
    lower.add(step.from(row: Upper.rows), word, i, feature: feature)
  }
  @inline(__always) func write(_ c: Target, _ stride: Int) {
    upper.write(c, stride)
    lower.write(c + Upper.rows &* stride, stride)
  }
}

/// One beside the other.
struct CodeColumns<Left: CodeTile, Right: CodeTile>: CodeTile {
  private var left: Left
  private var right: Right
  static var rows: Int { Left.rows }
  static var outputs: Int { Left.outputs &+ Right.outputs }
  @inline(__always) init(_ start: Source, _ stride: Int) {
    left = Left(start, stride)
    right = Right(start + Left.outputs, stride)
  }
  @inline(__always) mutating func begin(_ step: CodeStep) {
    left.begin(step)
    right.begin(step.from(output: Left.outputs))
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ j: Int) {
    left.add(step, j)
    right.add(step.from(output: Left.outputs), j)
  }
  @inline(__always) mutating func end(_ step: CodeStep) {
    left.end(step)
    right.end(step.from(output: Left.outputs))
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int) {
    left.add(step, word, i, feature: feature)
    right.add(step.from(output: Left.outputs), word, i, feature: feature)
  }
  @inline(__always) func write(_ c: Target, _ stride: Int) {
    left.write(c, stride)
    right.write(c + Left.outputs, stride)
  }
}

// MARK: tiles of a call

/// C[m,32] = start + A B, without its edges.
private struct CodeCall {
  let m: Int
  let length: Int  // blocks of integers, or contraction indices of floats
  let a: UnsafeRawPointer
  let b: UnsafeRawPointer
  let start: Source
  let startStride: Int
  let c: Target
  let cStride: Int

  /// All outputs of some rows.
  @inline(__always) func integers<C: Code, T: CodeTile>(_: C.Type, _: T.Type, _ row: Int) {
    let tokenBytes = 64  // MOEI_TOKEN_BLOCK
    var output = 0
    while output < 32 {
      var tile = T(start + (row &* startStride &+ output), startStride)
      var (a, b, left) = (a + row &* tokenBytes, b, length)
      while left > 0 {
        let step = CodeStep(block: b, tokens: a, tokenBytes: tokenBytes, output: output)
        tile.begin(step)
        tile.add(step, 0)
        tile.add(step, 1)
        tile.add(step, 2)
        tile.add(step, 3)
        tile.end(step)
        a += m &* tokenBytes
        b += C.bytes
        left &-= 1
      }
      tile.write(c + (row &* cStride &+ output), cStride)
      output &+= T.outputs
    }
  }

  @inline(__always) func floats<C: Code, T: CodeTile>(_: C.Type, _: T.Type, _ row: Int) {
    let tokenBytes = 128
    var output = 0
    while output < 32 {
      var tile = T(start + (row &* startStride &+ output), startStride)
      var (a, b, left) = (a + row &* tokenBytes, b, length)
      while left > 0 {
        let step = CodeStep(block: b, tokens: a, tokenBytes: tokenBytes, output: output)
        let count = left < 32 ? left : 32
        var (word, feature) = (0, 0)
        while feature &+ C.perWord <= count {
          tile.add(step, word, 0, feature: feature)
          tile.add(step, word, 1, feature: feature &+ 1)
          tile.add(step, word, 2, feature: feature &+ 2)
          tile.add(step, word, 3, feature: feature &+ 3)
          if C.perWord == 8 {
            tile.add(step, word, 4, feature: feature &+ 4)
            tile.add(step, word, 5, feature: feature &+ 5)
            tile.add(step, word, 6, feature: feature &+ 6)
            tile.add(step, word, 7, feature: feature &+ 7)
          }
          feature &+= C.perWord
          word &+= 1
        }
        var i = 0
        while feature < count {
          tile.add(step, word, i, feature: feature)
          feature &+= 1
          i &+= 1
        }
        a += m &* tokenBytes
        b += C.bytes
        left &-= 32
      }
      tile.write(c + (row &* cStride &+ output), cStride)
      output &+= T.outputs
    }
  }
}

typealias CodeTwo<C: Code> = CodeRows<CodeOne<C>, CodeOne<C>>
typealias CodeThree<C: Code> = CodeRows<CodeTwo<C>, CodeOne<C>>
typealias CodeFour<C: Code> = CodeRows<CodeTwo<C>, CodeTwo<C>>
typealias CodeFive<C: Code> = CodeRows<CodeFour<C>, CodeOne<C>>
typealias CodeSix<C: Code> = CodeRows<CodeFour<C>, CodeTwo<C>>
typealias Wide<T: CodeTile> = CodeColumns<T, T>

/// Few rows take many outputs at once, so that blocks are read from end to end and chains do not wait for each other.
@inline(__always) func integersTimes<C: Code>(
  _: C.Type, _ m: Int, _ columns: Int, _ count: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    let call = CodeCall(
      m: m, length: count, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride)
    var row = 0
    while row < m {
      switch m &- row {
      #if MOE_AVX512BF16
        case 1: call.integers(C.self, Wide<CodeOne<C>>.self, row)
        case 2: call.integers(C.self, Wide<CodeTwo<C>>.self, row)
        case 3: call.integers(C.self, Wide<CodeThree<C>>.self, row)
        case 4: call.integers(C.self, Wide<CodeFour<C>>.self, row)
        case 5: call.integers(C.self, Wide<CodeFive<C>>.self, row)
        default: call.integers(C.self, Wide<CodeSix<C>>.self, row)
      #else
        case 1: call.integers(C.self, Wide<Wide<CodeOne<C>>>.self, row)
        case 2: call.integers(C.self, Wide<CodeTwo<C>>.self, row)
        case 3: call.integers(C.self, CodeThree<C>.self, row)
        default: call.integers(C.self, CodeFour<C>.self, row)
      #endif
      }
      #if MOE_AVX512BF16
        row &+= 6
      #else
        row &+= 4
      #endif
    }
  }
}

@inline(__always) func floatsTimes<C: Code>(
  _: C.Type, _ m: Int, _ columns: Int, _ k: Int, _ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ start: Source,
  _ startStride: Int, _ c: Target, _ cStride: Int
) {
  withColumns(columns, m, start, startStride, c, cStride) { start, startStride, c, cStride in
    let call = CodeCall(
      m: m, length: k, a: a, b: b, start: start, startStride: startStride, c: c, cStride: cStride)
    var row = 0
    while row < m {
      switch m &- row {
      #if MOE_AVX512BF16
        case 1: call.floats(C.self, Wide<CodeOne<C>>.self, row)
      #else
        case 1: call.floats(C.self, Wide<Wide<CodeOne<C>>>.self, row)
      #endif
      case 2: call.floats(C.self, Wide<CodeTwo<C>>.self, row)
      case 3: call.floats(C.self, Wide<CodeThree<C>>.self, row)
      default: call.floats(C.self, Wide<CodeFour<C>>.self, row)
      }
      row &+= 4
    }
  }
}

/// panel [k][32]
@inline(__always) func decode<C: Code>(_: C.Type, _ k: Int, _ blocks: UnsafeRawPointer, _ panel: Target) {
  var (block, out, left) = (blocks, panel, k)
  while left > 0 {
    let count = left < 32 ? left : 32
    var output = 0
    while output < 32 {
      let step = CodeStep(block: block, tokens: block, tokenBytes: 0, output: output)
      let scales = C.scales(block, output)
      var (word, feature) = (0, 0)
      while feature < count {
        let words = step.words(word).loadUnaligned(as: Sums.self)
        var i = 0
        while i < C.perWord && feature < count {
          let values = floats(C.value(words, i)) * scales
          UnsafeMutableRawPointer(out + (feature &* 32 &+ output)).storeBytes(of: values, as: SumFloats.self)
          feature &+= 1
          i &+= 1
        }
        word &+= 1
      }
      output &+= Sums.scalarCount
    }
    block += C.bytes
    out += 32 &* 32
    left &-= 32
  }
}
