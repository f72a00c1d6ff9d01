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

/// With g = dy weight: the sums of g and of g n.
@inline(never) func normalizeSums(
  _ n: Int, _ mean: Float, _ scale: Float, _ x: Source, _ weight: Source, _ dy: Source, _ sumG: Target, _ sumGN: Target
) {
  @inline(__always) func g(_ i: Int, _ left: Int) -> V { load(dy + i, left) * load(weight + i, left) }
  sumG.pointee = total(n, g)
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

/// dweight = fma(dy, n, dweight)
@inline(never) func addNormalized(
  _ n: Int, _ mean: Float, _ scale: Float, _ x: Source, _ dy: Source, _ dweight: Target
) {
  var i = 0
  while i < n {
    let left = n &- i
    store(
      dweight + i, left,
      fma(load(dy + i, left), (load(x + i, left) - mean) * scale, load(dweight + i, left)))
    i &+= 16
  }
}
