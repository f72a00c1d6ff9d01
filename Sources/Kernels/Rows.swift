// Sums, scalings and the softmax of one row.

/// In chunks of 32, as the tiles of the matrix products have them: lane by lane, then the tree, then chunk after chunk.
@inline(never) func dot(_ n: Int, _ x: Source, _ y: Source) -> Float {
  var total: Float = 0
  var i = 0
  while i < n {
    let left = n &- i
    var lanes = load(x + i, left) * load(y + i, left)
    if left > 16 { lanes = fma(load(x + i + 16, left &- 16), load(y + i + 16, left &- 16), lanes) }
    total += sum(lanes)
    i &+= 32
  }
  return total
}

@inline(never) func scale(_ n: Int, _ s: Float, _ x: Source, _ y: Target) {
  @inline(__always) func scaled(_ x: V) -> V { x * s }
  map(n, x, y, scaled)
}

@inline(never) func addScaled(_ n: Int, _ s: Float, _ x: Source, _ y: Target) {
  let factor = V(repeating: s)
  update(n, x, y) { x, y in fma(factor, x, y) }
}

@inline(never) func add(_ n: Int, _ x: Source, _ y: Target) {
  update(n, x, y) { x, y in y + x }
}

/// y = w[0] x[r[0]] + w[1] x[r[1]] ... for `count` rows r of x, a chain of fused multiply-adds in this order, which goes on from y where
/// `goesOn`; without weights the plain sum. Rows come side by side, so that a core fetches them all at once.
@inline(never) func addRows(
  _ n: Int, _ count: Int, _ rows: UnsafePointer<Int32>, _ weights: Source?, _ x: Source, _ xRow: Int, _ goesOn: Bool,
  _ y: Target
) {
  if let weights {
    addRows(n, count, rows, WeightedTerms(weights: weights), x, xRow, goesOn, y)
  } else {
    addRows(n, count, rows, PlainTerms(), x, xRow, goesOn, y)
  }
}

/// What row number i of a sum adds.
protocol RowTerms {
  func first(_ i: Int, _ x: V) -> V
  func next(_ i: Int, _ x: V, _ sum: V) -> V
}

struct PlainTerms: RowTerms {
  @_transparent func first(_ i: Int, _ x: V) -> V { x }
  @_transparent func next(_ i: Int, _ x: V, _ sum: V) -> V { sum + x }
}

struct WeightedTerms: RowTerms {
  let weights: Source
  @_transparent func first(_ i: Int, _ x: V) -> V { x * weights[i] }
  @_transparent func next(_ i: Int, _ x: V, _ sum: V) -> V { fma(V(repeating: weights[i]), x, sum) }
}

@inline(__always) private func addRows<T: RowTerms>(
  _ n: Int, _ count: Int, _ rows: UnsafePointer<Int32>, _ terms: T, _ x: Source, _ xRow: Int, _ goesOn: Bool,
  _ y: Target
) {
  /// Row number i from column j on.
  @inline(__always) func row(_ i: Int, _ j: Int) -> Source { x + (Int(rows[i]) &* xRow &+ j) }
  let begun = goesOn ? 0 : 1  // terms that the chain begins with
  var j = 0
  while j &+ 64 <= n {
    let own = goesOn ? Source(y + j) : row(0, j)
    var (a, b, c, d) = (load(own), load(own + 16), load(own + 32), load(own + 48))
    if !goesOn { (a, b, c, d) = (terms.first(0, a), terms.first(0, b), terms.first(0, c), terms.first(0, d)) }
    var i = begun
    while i < count {
      let own = row(i, j)
      a = terms.next(i, load(own), a)
      b = terms.next(i, load(own + 16), b)
      c = terms.next(i, load(own + 32), c)
      d = terms.next(i, load(own + 48), d)
      i &+= 1
    }
    store(y + j, a)
    store(y + j + 16, b)
    store(y + j + 32, c)
    store(y + j + 48, d)
    j &+= 64
  }
  while j < n {
    let left = n &- j
    var a = goesOn ? load(y + j, left) : terms.first(0, load(row(0, j), left))
    var i = begun
    while i < count {
      a = terms.next(i, load(row(i, j), left), a)
      i &+= 1
    }
    store(y + j, left, a)
    j &+= 16
  }
}

/// Index of the first element that is NaN or plus infinity, or n.
@inline(never) func firstNotFinite(_ n: Int, _ z: Source) -> Int {
  var i = 0
  while i < n {
    let good = bits(load(z + i, n &- i) .< Float.infinity)
    if good != 0xFFFF { return i &+ (~good).trailingZeroBitCount }
    i &+= 16
  }
  return n
}

/// p = exp(z - max) / sum; lse = max + ln sum; entropy = ln sum - sum of p (z - max), a term with p = 0 being 0.
@inline(never) func softmax(_ n: Int, _ z: Source, _ p: Target, _ lse: Target, _ entropy: Target) {
  var top = V(repeating: -.infinity)
  var i = 0
  while i &+ 16 <= n {
    top = larger(top, load(z + i))
    i &+= 16
  }
  var maximum = largest(top)
  while i < n {
    if z[i] > maximum { maximum = z[i] }
    i &+= 1
  }

  var lanes = V(repeating: 0)
  i = 0
  while i < n {
    store(p + i, n &- i, exponential(load(z + i, n &- i) - maximum))
    lanes += load(p + i, n &- i)
    i &+= 16
  }
  let total = sum(lanes)
  let logTotal = logarithm(V(repeating: total))[0]

  var terms = V(repeating: 0)
  i = 0
  while i < n {
    let probability = load(p + i, n &- i) / total
    let below = load(z + i, n &- i) - maximum
    terms += (probability * below).replacing(with: 0, where: probability .== 0)
    store(p + i, n &- i, probability)
    i &+= 16
  }
  lse.pointee = maximum + logTotal
  entropy.pointee = logTotal - sum(terms)
}

/// dz = p (dp - sum of dp p + dlse), with dp in dz.
@inline(never) func softmaxBackward(_ n: Int, _ p: Source, _ dlse: Float, _ dz: Target) {
  var lanes = V(repeating: 0)
  var i = 0
  while i < n {
    lanes = fma(load(dz + i, n &- i), load(p + i, n &- i), lanes)
    i &+= 16
  }
  let mean = sum(lanes)
  i = 0
  while i < n {
    store(dz + i, n &- i, load(p + i, n &- i) * ((load(dz + i, n &- i) - mean) + dlse))
    i &+= 16
  }
}
