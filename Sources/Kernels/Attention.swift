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

/// Of the queries so far, and what is to be scaled down by `factor`.
private struct RunningSums {
  let maximum, total, factor: Target  // [32]
}

/// The running softmax [Online softmax 2018] of 32 queries, one in each column, over some keys in rows:
///     m = max(maximum, z);  p = exp(z - m);  factor = exp(maximum - m);  total = total * factor + sum of p
/// The sum runs through the rows in ascending order. weights become p, times kept where given, as sums over keys read them;
/// maximum becomes m.
@inline(__always) private func attentionWeights<E: ChunkElements>(
  _: E.Type, _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ scores: Target,
  _ weights: UnsafeMutableRawPointer, _ sums: RunningSums
) {
  var column = 0
  while column < 32 {
    columnWeights(E.self, column, 32, keys, scale, bias, kept, scores, weights, sums)
    column &+= 16
  }
}

/// Of 16 columns; `width`: floats of a row of scores.
@inline(__always) private func columnWeights<E: ChunkElements>(
  _: E.Type, _ column: Int, _ width: Int, _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?,
  _ scores: Target, _ weights: UnsafeMutableRawPointer, _ sums: RunningSums
) {
  let before = load(sums.maximum + column)
  var top = before
  var key = 0
  while key < keys {
    let at = key &* width &+ column
    let z = biased(load(scores + at), scale, bias, key &* 32 &+ column)
    store(scores + at, z)
    top = larger(top, z)
    key &+= 1
  }
  // Where nothing has been seen yet, minus infinity less itself would be no number.
  let base = top.replacing(with: 0, where: top .== -.infinity)
  var sum = V(repeating: 0)
  key = 0
  while key < keys {
    let at = key &* width &+ column
    let p = weight(load(scores + at) - base)
    sum += p
    let first = kept.map { p * load($0 + (key &* 32 &+ column)) } ?? p
    if E.pairsRows {
      // The last one of an odd number stands beside 0.
      var second = V(repeating: 0)
      if key &+ 1 < keys {
        let p = weight(load(scores + (at &+ width)) - base)
        sum += p
        second = kept.map { p * load($0 + (key &* 32 &+ 32 &+ column)) } ?? p
      }
      E.storePair(E.rounded(first), E.rounded(second), weights, key, column)
      key &+= 2
    } else {
      E.store(first, weights, at)
      key &+= 1
    }
  }
  let change = weight(before - base)
  store(sums.maximum + column, top)
  store(sums.factor + column, change)
  store(sums.total + column, fma(load(sums.total + column), change, sum))
}

@inline(never) func attentionWeights(
  _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ scores: Target, _ maximum: Target, _ total: Target,
  _ factor: Target
) {
  attentionWeights(
    FloatChunk.self, keys, scale, bias, kept, scores, scores,
    RunningSums(maximum: maximum, total: total, factor: factor))
}

@inline(never) func attentionWeightsBF16(
  _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ scores: Target,
  _ weights: UnsafeMutablePointer<UInt32>, _ maximum: Target, _ total: Target, _ factor: Target
) {
  attentionWeights(
    HalfChunk.self, keys, scale, bias, kept, scores, weights,
    RunningSums(maximum: maximum, total: total, factor: factor))
}

/// The same of up to 16 queries in rows [keys / 32][queries][32], which become the weights; behind the last key there are 0. `scores`: room
/// for [keys, a multiple of 32][16]. Columns, since a query's sum runs through its keys one by one.
@inline(never) func attentionWeightsOfFew(
  _ queries: Int, _ keys: Int, _ scale: Float, _ bias: Source?, _ kept: Source?, _ rows: Target, _ scores: Target,
  _ maximum: Target, _ total: Target, _ factor: Target
) {
  let end = (keys &+ 31) & ~31
  var key = 0
  while key < end {
    let own = rows + ((key & ~31) &* queries &+ (key & 31))
    Square(own, 32 &* 4, rows: queries).write(scores + key &* 16, 16)
    key &+= 16
  }
  columnWeights(
    FloatChunk.self, 0, 16, keys, scale, bias, kept, scores, scores,
    RunningSums(maximum: maximum, total: total, factor: factor))
  key = keys
  while key < end {
    store(scores + key &* 16, V(repeating: 0))
    key &+= 1
  }
  key = 0
  while key < end {
    let own = rows + ((key & ~31) &* queries &+ (key & 31))
    Square(scores + key &* 16, 16 &* 4).write(own, 32, rows: queries)
    key &+= 16
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
///     p = exp(z - logSum);  dscores = scale p (kept * slope - mean);  weights = p, times kept where given
struct AttentionSlopes<E: ChunkElements> {
  let call: UnsafePointer<moei_attention_slopes>

  @inline(__always) func run() {
    let rows = Int(call.pointee.rows)
    let zero = V(repeating: 0)
    var r = 0
    while r < rows {
      let isPair = E.pairsRows && r &+ 1 < rows
      var column = 0
      while column < 32 {
        let first = values(r, column)
        if E.pairsRows {
          // The last row of an odd number stands beside 0.
          let second = values(isPair ? r &+ 1 : r, column)
          E.storePair(first.weight, isPair ? second.weight : zero, call.pointee.weights, r, column)
          E.storePair(first.slope, isPair ? second.slope : zero, call.pointee.dscores_tokens, r, column)
          if isPair { E.store(second.slope, call.pointee.dscores, (r &+ 1) &* 32 &+ column) }
        } else {
          E.store(first.weight, call.pointee.weights, r &* 32 &+ column)
        }
        E.store(first.slope, call.pointee.dscores, r &* 32 &+ column)
        column &+= 16
      }
      r &+= E.pairsRows ? 2 : 1
    }
  }

  private struct Values {
    var weight: V
    var slope: V
  }

  /// Rounded values of row r from a column on.
  @_transparent private func values(_ r: Int, _ column: Int) -> Values {
    let (at, scale, bias) = (r &* 32 &+ column, call.pointee.scale, call.pointee.bias)
    let p = weight(biased(load(call.pointee.scores + at), scale, bias, at) - call.pointee.log_sums[r])
    var (kept, slope) = (p, load(call.pointee.slopes + at))
    if let factors = call.pointee.kept {
      kept = p * load(factors + at)
      slope *= load(factors + at)
    }
    var gradient = p * (slope - call.pointee.means[r]) * scale
    // Of a pair that is hidden dout . v may be no number, and 0 times that is none.
    if let bias { gradient = gradient.replacing(with: 0, where: load(bias + at) .== -.infinity) }
    return Values(weight: E.rounded(kept), slope: E.rounded(gradient))
  }
}

@inline(never) func attentionGradients(_ call: UnsafePointer<moei_attention_slopes>) {
  AttentionSlopes<FloatChunk>(call: call).run()
}

@inline(never) func attentionGradientsBF16(_ call: UnsafePointer<moei_attention_slopes>) {
  AttentionSlopes<HalfChunk>(call: call).run()
}

/// Rotary positions [RoPE 2021]: low, high = low cos - high sin, low sin + high cos, of the heads of one token; those of the next one, at
/// `next`, are fetched.
@inline(never) func rotate(
  _ heads: Int, _ stride: Int, _ n: Int, _ cosines: Source, _ sines: Source, _ x: Target, _ next: Source
) {
  var head = 0
  while head < heads {
    let (low, ahead) = (x + head &* stride, next + head &* stride)
    let high = low + n
    var i = 0
    while i < n {
      let left = n &- i
      moei_prefetch(ahead + i)
      moei_prefetch(ahead + (n &+ i))
      let (a, b) = (load(low + i, left), load(high + i, left))
      let (c, s) = (load(cosines + i, left), load(sines + i, left))
      store(low + i, left, fma(a, c, -(b * s)))
      store(high + i, left, fma(a, s, b * c))
      i &+= 16
    }
    head &+= 1
  }
}
