import CShims

// Sixteen floats at a time, whatever the processor's registers hold: the width is part of the numeric contract,
// since sums over lanes are taken in a fixed tree of sixteen.

typealias V = SIMD16<Float>
typealias Source = UnsafePointer<Float>
typealias Target = UnsafeMutablePointer<Float>

@inline(__always) func load(_ p: Source) -> V { UnsafeRawPointer(p).loadUnaligned(as: V.self) }

@inline(__always) func store(_ p: Target, _ v: V) { UnsafeMutableRawPointer(p).storeBytes(of: v, as: V.self) }

/// Sixteen words of two bfloat16 each, and their halves as floats.
typealias Words = SIMD16<UInt32>
@inline(__always) func loadWords(_ p: UnsafePointer<UInt32>) -> Words {
  UnsafeRawPointer(p).loadUnaligned(as: Words.self)
}
@inline(__always) func store(_ p: UnsafeMutablePointer<UInt32>, _ v: Words) {
  UnsafeMutableRawPointer(p).storeBytes(of: v, as: Words.self)
}
@inline(__always) func lowerHalves(_ v: Words) -> V { unsafeBitCast(v &<< 16, to: V.self) }
@inline(__always) func upperHalves(_ v: Words) -> V { unsafeBitCast(v & 0xFFFF_0000, to: V.self) }

/// The next 16 of the `left` floats that an array still has; where it ends before, the other lanes are 0.
@inline(__always) func load(_ p: Source, _ left: Int) -> V {
  if left >= 16 { return load(p) }
  var v = V(repeating: 0)
  var i = 0
  while i < left {
    v[i] = p[i]
    i &+= 1
  }
  return v
}

@inline(__always) func store(_ p: Target, _ left: Int, _ v: V) {
  if left >= 16 { return store(p, v) }
  var i = 0
  while i < left {
    p[i] = v[i]
    i &+= 1
  }
}

/// a * b + c: one rounding where the instruction set has FMA. The base set has none, and promises tolerances only.
@inline(__always) func fma(_ a: V, _ b: V, _ c: V) -> V {
  #if MOE_FMA
    c.addingProduct(a, b)
  #else
    c + a * b
  #endif
}

// The standard library's min, max and sum over SIMD types may stay calls to shared generic code; these do not.
@inline(__always) func smaller(_ a: V, _ b: V) -> V { a.replacing(with: b, where: b .< a) }
@inline(__always) func larger(_ a: V, _ b: V) -> V { a.replacing(with: b, where: b .> a) }
@inline(__always) func magnitude(_ a: V) -> V {
  unsafeBitCast(unsafeBitCast(a, to: SIMD16<UInt32>.self) & 0x7FFF_FFFF, to: V.self)
}
/// `magnitude` >= 0 with the sign of `sign`.
@inline(__always) func withSign(_ magnitude: V, of sign: V) -> V {
  let bits = unsafeBitCast(sign, to: SIMD16<UInt32>.self) & 0x8000_0000
  return unsafeBitCast(unsafeBitCast(magnitude, to: SIMD16<UInt32>.self) | bits, to: V.self)
}

/// Bit i tells whether lane i is set.
@inline(__always) func bits(_ mask: SIMDMask<SIMD16<Int32>>) -> UInt32 {
  moei_bits(unsafeBitCast(mask, to: SIMD16<Int32>.self))
}

/// Sum of the lanes: 16 -> 8 -> 4 -> 2 -> 1, halves added.
@inline(__always) func sum(_ v: V) -> Float {
  let a = v.lowHalf + v.highHalf
  let b = a.lowHalf + a.highHalf
  let c = b.lowHalf + b.highHalf
  return c[0] + c[1]
}

@inline(__always) func largest(_ v: V) -> Float {
  let a = v.lowHalf.replacing(with: v.highHalf, where: v.highHalf .> v.lowHalf)
  let b = a.lowHalf.replacing(with: a.highHalf, where: a.highHalf .> a.lowHalf)
  let c = b.lowHalf.replacing(with: b.highHalf, where: b.highHalf .> b.lowHalf)
  return c[1] > c[0] ? c[1] : c[0]
}

/// y[i] = f(x[i]); x and y may be the same array. f comes as a local function that is always put in place: a closure may stay a
/// call, with its sixteen floats in four small registers.
@inline(__always) func map(_ n: Int, _ x: Source, _ y: Target, _ f: (V) -> V) {
  var i = 0
  while i < n {
    store(y + i, n &- i, f(load(x + i, n &- i)))
    i &+= 16
  }
}

/// y[i] = f(x[i], y[i]).
@inline(__always) func update(_ n: Int, _ x: Source, _ y: Target, _ f: (V, V) -> V) {
  var i = 0
  while i < n {
    store(y + i, n &- i, f(load(x + i, n &- i), load(y + i, n &- i)))
    i &+= 16
  }
}
