import CShims

// IEEE 754 binary16 to and from floats.

typealias Halves = SIMD16<UInt16>

@inline(never) func fromF16(_ n: Int, _ x: UnsafePointer<UInt16>, _ y: Target) {
  var i = 0
  while i &+ 16 <= n {
    store(y + i, moei_from_f16(UnsafeRawPointer(x + i).loadUnaligned(as: Halves.self)))
    i &+= 16
  }
  if i == n { return }
  var rest = Halves(repeating: 0)
  var lane = 0
  while i &+ lane < n {
    rest[lane] = x[i &+ lane]
    lane &+= 1
  }
  store(y + i, n &- i, moei_from_f16(rest))
}

@inline(never) func toF16(_ n: Int, _ x: Source, _ y: UnsafeMutablePointer<UInt16>) {
  var i = 0
  while i &+ 16 <= n {
    UnsafeMutableRawPointer(y + i).storeBytes(of: moei_to_f16(load(x + i)), as: Halves.self)
    i &+= 16
  }
  let rest = moei_to_f16(load(x + i, n &- i))
  var lane = 0
  while i &+ lane < n {
    y[i &+ lane] = rest[lane]
    lane &+= 1
  }
}
