import CShims

// Tokens as integers of 8 bits, which weights of few bits are multiplied by (codes/kernels.h in CShims).

/// The largest magnitude of some floats, or a NaN where one is.
struct Largest {
  private var bits = SIMD16<Int32>(repeating: 0)

  @inline(__always) mutating func see(_ v: V) {
    let own = unsafeBitCast(v, to: SIMD16<Int32>.self) & 0x7FFF_FFFF
    bits = bits.replacing(with: own, where: own .> bits)
  }

  @inline(__always) var value: Float {
    let a = bits.lowHalf.replacing(with: bits.highHalf, where: bits.highHalf .> bits.lowHalf)
    let b = a.lowHalf.replacing(with: a.highHalf, where: a.highHalf .> a.lowHalf)
    let c = b.lowHalf.replacing(with: b.highHalf, where: b.highHalf .> b.lowHalf)
    return Float(bitPattern: UInt32(bitPattern: c[1] > c[0] ? c[1] : c[0]))
  }
}

/// A step, of which values become multiples, and what they are multiplied by for that: 0 both where the step is too small to
/// be divided by.
struct Step {
  let size: Float
  let inverse: Float

  @inline(__always) init(_ size: Float) {
    let isNothing = size.magnitude < Float(bitPattern: 0x0080_0000)
    self.size = isNothing ? 0 : size
    inverse = isNothing ? 0 : 1 / size
  }

  /// The nearest multiples, those away from 0 in a tie, as numbers of -127 ... 127. With the float below 1/2 a sum reaches the next
  /// whole number from halves on, and not from the float below them.
  @inline(__always) func multiples(_ v: V) -> SIMD16<Int32> {
    let product = v * inverse
    var size = magnitude(product)
    size = size.replacing(with: 127, where: .!(size .<= 127))
    let rounded = moei_to_i32(size + V(repeating: Float(0.5).nextDown))
    return rounded.replacing(with: 0 &- rounded, where: product .< V(repeating: 0))
  }
}

/// `gather` as integers: for each 32 features of a row 64 bytes, with their step and their sums.
@inline(never) func gatherIntegers(
  _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Source, _ xRow: Int, _ weights: Source?,
  _ out: UnsafeMutableRawPointer
) {
  var r = 0
  while r < m {
    let row = Row(r, tokens, x, xRow, weights)
    var c = 0
    while c < columns {
      writeIntegers(row.part(c, columns), row.part(c &+ 16, columns), out + (c / 32 &* m &+ r) &* 64)
      c &+= 32
    }
    r &+= 1
  }
}

@inline(__always) private func writeIntegers(_ low: V, _ high: V, _ out: UnsafeMutableRawPointer) {
  var largest = Largest()
  largest.see(low)
  largest.see(high)
  let step = Step(largest.value / 127)
  let (first, second) = (step.multiples(low), step.multiples(high))
  moei_store_i8(first, out)
  moei_store_i8(second, out + 16)
  let (a, b) = (total(first), total(second))
  (out + 32).storeBytes(of: step.size, as: Float.self)
  (out + 36).storeBytes(of: a &+ b, as: Int32.self)
  (out + 40).storeBytes(of: step.size * Float(a &+ b), as: Float.self)
  (out + 44).storeBytes(of: Int16(truncatingIfNeeded: a), as: Int16.self)
  (out + 46).storeBytes(of: Int16(truncatingIfNeeded: b), as: Int16.self)
  (out + 48).storeBytes(of: (a &+ b) &* -128, as: Int32.self)
  (out + 52).storeBytes(of: (a &+ b) &* -8, as: Int32.self)
}

@inline(__always) private func total(_ v: SIMD16<Int32>) -> Int32 {
  let a = v.lowHalf &+ v.highHalf
  let b = a.lowHalf &+ a.highHalf
  let c = b.lowHalf &+ b.highHalf
  return c[0] &+ c[1]
}
