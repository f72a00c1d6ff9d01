import CShims

// What attention does between its products, on tiles [rows][32].

/// exp x for x below 88; 0 below -87, where exact weights would be below 1e-37.
@_transparent private func weight(_ x: V) -> V {
  let least = V(repeating: -87)
  return exponentialOfModerate(larger(x, least)).replacing(with: 0, where: x .< least)
}

/// z = scale * score + bias. A bias of minus infinity hides any score, a NaN too.
@_transparent private func biased(_ score: V, _ scale: Float, _ bias: Source?, _ at: Int) -> V {
  guard let bias else { return score * scale }
  let b = load(bias + at)
  return fma(score, V(repeating: scale), b).replacing(with: b, where: b .== -.infinity)
}

/// The running softmax [Online softmax 2018] of 32 queries, one in each column, over some keys in rows:
///     m = max(maximum, z);  p = exp(z - m);  factor = exp(maximum - m);  total = total * factor + sum of p
/// The sum runs through the rows in ascending order. scores become p, times kept where given; maximum becomes m.
@inline(never) func attentionWeights(
  _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ scores: Target, _ maximum: Target, _ total: Target,
  _ factor: Target
) {
  var column = 0
  while column < 32 {
    let before = load(maximum + column)
    let end = keys &* 32 &+ column
    var top = before
    var at = column
    while at < end {
      let z = biased(load(scores + at), scale, bias, at)
      store(scores + at, z)
      top = larger(top, z)
      at &+= 32
    }
    // Where nothing has been seen yet, minus infinity less itself would be no number.
    let base = top.replacing(with: 0, where: top .== -.infinity)
    var sum = V(repeating: 0)
    at = column
    while at < end {
      let p = weight(load(scores + at) - base)
      sum += p
      store(scores + at, kept.map { p * load($0 + at) } ?? p)
      at &+= 32
    }
    let change = weight(before - base)
    store(maximum + column, top)
    store(factor + column, change)
    store(total + column, fma(load(total + column), change, sum))
    column &+= 16
  }
}

/// logSum = maximum + ln total and inverse = 1 / total of 32 queries; minus infinity and 0 for one that has seen no key.
@inline(never) func attentionSums(_ maximum: Source, _ total: Source, _ logSum: Target, _ inverse: Target) {
  var i = 0
  while i < 32 {
    let (top, sum) = (load(maximum + i), load(total + i))
    let none = sum .== 0
    store(logSum + i, (top + logarithm(sum)).replacing(with: -.infinity, where: none))
    store(inverse + i, (1 / sum).replacing(with: 0, where: none))
    i &+= 16
  }
}

/// Its gradient, with queries in rows and 32 keys in columns. scores: q . k, slopes: dout . v of each pair.
///     p = exp(z - logSum);  slopes = scale p (kept * slope - mean);  scores = p, times kept where given
@inline(never) func attentionGradients(
  _ rows: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ logSums: Source, _ means: Source, _ scores: Target,
  _ slopes: Target
) {
  var r = 0
  while r < rows {
    let (logSum, mean) = (logSums[r], means[r])
    var at = r &* 32
    let end = at &+ 32
    while at < end {
      let p = weight(biased(load(scores + at), scale, bias, at) - logSum)
      var slope = load(slopes + at)
      if let kept {
        slope *= load(kept + at)
        store(scores + at, p * load(kept + at))
      } else {
        store(scores + at, p)
      }
      var gradient = p * (slope - mean) * scale
      // Of a pair that is hidden dout . v may be no number, and 0 times that is none.
      if let bias { gradient = gradient.replacing(with: 0, where: load(bias + at) .== -.infinity) }
      store(slopes + at, gradient)
      at &+= 16
    }
    r &+= 1
  }
}

/// Rotary positions [RoPE 2021]: low, high = low cos - high sin, low sin + high cos.
@inline(never) func rotate(_ n: Int, _ cosines: Source, _ sines: Source, _ low: Target, _ high: Target) {
  var i = 0
  while i < n {
    let left = n &- i
    let (a, b) = (load(low + i, left), load(high + i, left))
    let (c, s) = (load(cosines + i, left), load(sines + i, left))
    store(low + i, left, fma(a, c, -(b * s)))
    store(high + i, left, fma(a, s, b * c))
    i &+= 16
  }
}
