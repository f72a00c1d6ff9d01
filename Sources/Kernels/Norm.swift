// Norms of one row: n = (x - mean) * scale.

/// The terms' sum in the tree of `dot`: chunks of 32, lane by lane, then chunk after chunk. Terms beyond the row are 0.
@inline(__always) private func total(_ n: Int, _ term: (Int, Int) -> V) -> Float {
  var total: Float = 0
  var i = 0
  while i < n {
    let left = n &- i
    var lanes = term(i, left)
    if left > 16 { lanes += term(i &+ 16, left &- 16) }
    total += sum(lanes)
    i &+= 32
  }
  return total
}

@inline(never) func sumOfRow(_ n: Int, _ x: Source) -> Float {
  total(n) { i, left in load(x + i, left) }
}

/// Of x - mean.
@inline(never) func sumOfSquares(_ n: Int, _ mean: Float, _ x: Source) -> Float {
  // As functions and not closures, which stayed calls.
  @inline(__always) func square(_ i: Int, _ left: Int) -> V {
    var v = load(x + i, left) - mean
    // The lanes beyond the row were 0 before the mean was subtracted.
    var lane = left
    while lane < 16 {
      v[lane] = 0
      lane &+= 1
    }
    return v * v
  }
  return total(n, square)
}

/// y = n weight + bias
@inline(never) func normalize(
  _ n: Int, _ mean: Float, _ scale: Float, _ x: Source, _ weight: Source, _ bias: Source?, _ y: Target
) {
  var i = 0
  while i < n {
    let left = n &- i
    let normalized = (load(x + i, left) - mean) * scale
    let w = load(weight + i, left)
    store(y + i, left, bias.map { fma(normalized, w, load($0 + i, left)) } ?? normalized * w)
    i &+= 16
  }
}

/// With g = dy weight: the sums of g, where it is asked for, and of g n.
@inline(never) func normalizeSums(
  _ n: Int, _ mean: Float, _ scale: Float, _ x: Source, _ weight: Source, _ dy: Source, _ sumG: Target?,
  _ sumGN: Target
) {
  @inline(__always) func g(_ i: Int, _ left: Int) -> V { load(dy + i, left) * load(weight + i, left) }
  if let sumG { sumG.pointee = total(n, g) }
  @inline(__always) func gn(_ i: Int, _ left: Int) -> V { g(i, left) * ((load(x + i, left) - mean) * scale) }
  sumGN.pointee = total(n, gn)
}

/// dx = (g - meanG - n meanGN) scale; dx may be dy.
@inline(never) func normalizeBackward(
  _ n: Int, _ mean: Float, _ scale: Float, _ x: Source, _ weight: Source, _ dy: Source, _ meanG: Float,
  _ meanGN: Float, _ dx: Target
) {
  let factor = V(repeating: -meanGN)
  var i = 0
  while i < n {
    let left = n &- i
    let g = load(dy + i, left) * load(weight + i, left)
    store(dx + i, left, fma((load(x + i, left) - mean) * scale, factor, g - meanG) * scale)
    i &+= 16
  }
}

/// dweight = fma(dy, n, dweight), row after row; 64 sums stay in registers.
@inline(never) func addNormalized(
  _ rows: Int, _ n: Int, _ statistics: Source, _ x: Source, _ xRow: Int, _ dy: Source, _ dyRow: Int, _ dweight: Target
) {
  var i = 0
  while i &+ 64 <= n {
    let sums = dweight + i
    var (first, second, third, fourth) = (load(sums), load(sums + 16), load(sums + 32), load(sums + 48))
    var row = 0
    while row < rows {
      let (mean, scale) = (statistics[2 &* row], statistics[2 &* row &+ 1])
      let (x, dy) = (x + (row &* xRow &+ i), dy + (row &* dyRow &+ i))
      first = fma(load(dy), (load(x) - mean) * scale, first)
      second = fma(load(dy + 16), (load(x + 16) - mean) * scale, second)
      third = fma(load(dy + 32), (load(x + 32) - mean) * scale, third)
      fourth = fma(load(dy + 48), (load(x + 48) - mean) * scale, fourth)
      row &+= 1
    }
    store(sums, first)
    store(sums + 16, second)
    store(sums + 32, third)
    store(sums + 48, fourth)
    i &+= 64
  }
  while i < n {
    let left = n &- i
    var sum = load(dweight + i, left)
    var row = 0
    while row < rows {
      let (mean, scale) = (statistics[2 &* row], statistics[2 &* row &+ 1])
      sum = fma(load(dy + (row &* dyRow &+ i), left), (load(x + (row &* xRow &+ i), left) - mean) * scale, sum)
      row &+= 1
    }
    store(dweight + i, left, sum)
    i &+= 16
  }
}
