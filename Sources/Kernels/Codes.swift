import CShims

// Weights of few bits: 32 outputs times 32 contraction indices are a block of integers with a scale for each output, which
// decoded are floats, and multiply floats in the chains of `product`. Tokens may be integers too, 32 features under one
// scale: then sums within a block are exact, however a processor takes them, and the chain goes over blocks.

typealias Sums = moei_sums
typealias SumFloats = moei_sum_floats

/// One way to write weights down. Outputs are taken as many at once as `Sums` has lanes.
protocol Code {
  static var bytes: Int { get }  // of a block
  /// Values of one output in a word of a block.
  static var perWord: Int { get }
  /// Of products of integers, of the outputs that `block` begins with and a token's chunk.
  static func sums(_ block: UnsafeRawPointer, _ token: UnsafeRawPointer) -> Sums
  /// Number i of the values in words.
  static func value(_ words: Sums, _ i: Int, _ scales: SumFloats) -> SumFloats
}

extension Code {
  @inline(__always) static func scales(_ block: UnsafeRawPointer, _ output: Int) -> SumFloats {
    moei_load_scales(block + (bytes &- 64 &+ output &* 2))
  }
  /// Row i of a block's words, of the outputs that `block` begins with.
  @inline(__always) static func words(_ block: UnsafeRawPointer, _ i: Int) -> Sums {
    (block + i &* 128).loadUnaligned(as: Sums.self)
  }
}

/// Four integers of a token's chunk, from number 4 i on.
@inline(__always) func fourOf(_ token: UnsafeRawPointer, _ i: Int) -> Int32 {
  (token + i &* 4).loadUnaligned(as: Int32.self)
}

/// The sum of a chunk's integers.
@inline(__always) func sumOf(_ token: UnsafeRawPointer) -> Int32 { (token + 36).loadUnaligned(as: Int32.self) }

// MARK: tiles in registers

/// What a tile's chains read next: a block of weights, the tile's first output in it, and a chunk of its first token.
struct CodeStep {
  let block: UnsafeRawPointer
  let tokens: UnsafeRawPointer
  let tokenBytes: Int  // of a row's chunk
  let output: Int

  @inline(__always) func from(row: Int) -> CodeStep {
    CodeStep(block: block, tokens: tokens + row &* tokenBytes, tokenBytes: tokenBytes, output: output)
  }
  @inline(__always) func from(output more: Int) -> CodeStep {
    CodeStep(block: block, tokens: tokens, tokenBytes: tokenBytes, output: output &+ more)
  }
}

/// Some rows and outputs of C in registers, put together at compile time.
protocol CodeTile {
  static var rows: Int { get }
  static var outputs: Int { get }
  init(_ start: Source, _ stride: Int)
  /// A block of integers times integers.
  mutating func add(_ step: CodeStep)
  /// One contraction index of floats: value i in row `word` of the block's words.
  mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int)
  func write(_ c: Target, _ stride: Int)
}

/// As many outputs of one row as `Sums` has lanes.
struct CodeOne<C: Code>: CodeTile {
  private var total: SumFloats
  static var rows: Int { 1 }
  static var outputs: Int { Sums.scalarCount }
  @inline(__always) init(_ start: Source, _ stride: Int) {
    total = UnsafeRawPointer(start).loadUnaligned(as: SumFloats.self)
  }
  @inline(__always) mutating func add(_ step: CodeStep) {
    let sums = C.sums(step.block + step.output &* 4, step.tokens)
    let scale = (step.tokens + 32).loadUnaligned(as: Float.self)
    total = moei_add_scaled(total, C.scales(step.block, step.output), scale, sums)
  }
  @inline(__always) mutating func add(_ step: CodeStep, _ word: Int, _ i: Int, feature: Int) {
    let weights = C.value(C.words(step.block + step.output &* 4, word), i, C.scales(step.block, step.output))
    total = moei_add_product(total, (step.tokens + feature &* 4).loadUnaligned(as: Float.self), weights)
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
  @inline(__always) mutating func add(_ step: CodeStep) {
    upper.add(step)
    lower.add(step.from(row: Upper.rows))
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

/// One beside the other: all rows of one before those of the other, so that its weights stay in registers for them.
struct CodeColumns<Left: CodeTile, Right: CodeTile>: CodeTile {
  private var left: Left
  private var right: Right
  static var rows: Int { Left.rows }
  static var outputs: Int { Left.outputs &+ Right.outputs }
  @inline(__always) init(_ start: Source, _ stride: Int) {
    left = Left(start, stride)
    right = Right(start + Left.outputs, stride)
  }
  @inline(__always) mutating func add(_ step: CodeStep) {
    left.add(step)
    right.add(step.from(output: Left.outputs))
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

typealias CodeTwo<C: Code> = CodeRows<CodeOne<C>, CodeOne<C>>
typealias CodeThree<C: Code> = CodeRows<CodeTwo<C>, CodeOne<C>>
typealias CodeFour<C: Code> = CodeRows<CodeTwo<C>, CodeTwo<C>>
typealias CodeSeven<C: Code> = CodeRows<CodeFour<C>, CodeThree<C>>
typealias Wide<T: CodeTile> = CodeColumns<T, T>

// MARK: tiles of a call

/// C[m,32] = start + A B, without its edges. Few rows take many outputs at once, so that blocks are read from end to end and
/// chains do not wait for each other.
struct CodeCall {
  let m: Int
  let length: Int  // blocks of integers, or contraction indices of floats
  let a: UnsafeRawPointer
  let b: UnsafeRawPointer
  let start: Source
  let startStride: Int
  let c: Target
  let cStride: Int

  @inline(__always) func multiplyIntegers<C: Code>(_: C.Type) {
    var row = 0
    while row < m {
      switch m &- row {
      #if MOE_AVX512BF16
        case 1: integers(C.self, Wide<CodeOne<C>>.self, &row)
        case 2: integers(C.self, Wide<CodeTwo<C>>.self, &row)
        case 3: integers(C.self, Wide<CodeThree<C>>.self, &row)
        case 4, 5, 6: integers(C.self, Wide<CodeFour<C>>.self, &row)
        default: integers(C.self, Wide<CodeSeven<C>>.self, &row)
      #else
        case 1: integers(C.self, Wide<Wide<CodeOne<C>>>.self, &row)
        case 2: integers(C.self, Wide<CodeTwo<C>>.self, &row)
        case 3: integers(C.self, CodeThree<C>.self, &row)
        default: integers(C.self, CodeFour<C>.self, &row)
      #endif
      }
    }
  }

  /// Of more rows blocks are better decoded once.
  @inline(__always) func multiply<C: Code>(_: C.Type) {
    var row = 0
    while row < m {
      if m &- row > 1 {
        floats(C.self, Wide<CodeTwo<C>>.self, &row)
      } else {
        #if MOE_AVX512BF16
          floats(C.self, Wide<CodeOne<C>>.self, &row)
        #else
          floats(C.self, Wide<Wide<CodeOne<C>>>.self, &row)
        #endif
      }
    }
  }

  /// All outputs of some rows.
  @inline(__always) private func integers<C: Code, T: CodeTile>(_: C.Type, _: T.Type, _ row: inout Int) {
    let tokenBytes = 64  // MOEI_TOKEN_BLOCK
    var output = 0
    while output < 32 {
      var tile = T(start + (row &* startStride &+ output), startStride)
      var (a, b, left) = (a + row &* tokenBytes, b, length)
      while left > 0 {
        tile.add(CodeStep(block: b, tokens: a, tokenBytes: tokenBytes, output: output))
        a += m &* tokenBytes
        b += C.bytes
        left &-= 1
      }
      tile.write(c + (row &* cStride &+ output), cStride)
      output &+= T.outputs
    }
    row &+= T.rows
  }

  @inline(__always) private func floats<C: Code, T: CodeTile>(_: C.Type, _: T.Type, _ row: inout Int) {
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
    row &+= T.rows
  }
}

/// panel [k][32]
@inline(__always) func decode<C: Code>(_: C.Type, _ k: Int, _ blocks: UnsafeRawPointer, _ panel: Target) {
  var (block, out, left) = (blocks, panel, k)
  while left > 0 {
    let count = left < 32 ? left : 32
    var output = 0
    while output < 32 {
      let scales = C.scales(block, output)
      var (word, feature) = (0, 0)
      while feature < count {
        let words = C.words(block + output &* 4, word)
        var i = 0
        while i < C.perWord && feature < count {
          let values = C.value(words, i, scales)
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
