import CShims

// One optimiser step over one stretch of a tensor, with moments in float32, or in bfloat16 that are rounded up or down by
// chance. The formulas stand in include/moe.h.

/// A rule, for sixteen elements at a time.
private protocol MomentRule {
  /// Whether elements have two moments.
  static var hasSecond: Bool { get }
  /// Steps elements i ..< i + 16, of which `left` are there. Moments come and go in float32.
  func step(_ i: Int, _ left: Int, _ first: V, _ second: V) -> (first: V, second: V)
}

@inline(__always) private func run<R: MomentRule>(_ n: Int, _ rule: R, _ moments: moei_moments) {
  if moments.by_chance != 0 { return runByChance(n, rule, moments) }
  let first = moments.first.assumingMemoryBound(to: Float.self)
  let second = moments.second.assumingMemoryBound(to: Float.self)
  var i = 0
  while i < n {
    let left = n &- i
    let new = rule.step(i, left, load(first + i, left), R.hasSecond ? load(second + i, left) : V(repeating: 0))
    store(first + i, left, new.first)
    if R.hasSecond { store(second + i, left, new.second) }
    i &+= 16
  }
}

@inline(__always) private func runByChance<R: MomentRule>(_ n: Int, _ rule: R, _ moments: moei_moments) {
  let first = moments.first.assumingMemoryBound(to: UInt16.self)
  let second = moments.second.assumingMemoryBound(to: UInt16.self)
  var i = 0
  while i < n {
    var chance = Chance(moments, i)
    let end = chance.left < n &- i ? i &+ chance.left : n
    while i < end {
      let left = end &- i
      let new = rule.step(
        i, left, loadHalves(first + i, left), R.hasSecond ? loadHalves(second + i, left) : V(repeating: 0))
      let words = chance.next()
      let (lower, upper) = (words & 0xFFFF, words &>> 16)
      // NaN is rare, and a test of both moments costs less than to make sure that each stays one.
      if moei_not_numbers(new.first, R.hasSecond ? new.second : new.first) == 0 {
        storeHalves(first + i, left, unsafeBitCast(new.first, to: Words.self) &+ lower)
        if R.hasSecond { storeHalves(second + i, left, unsafeBitCast(new.second, to: Words.self) &+ upper) }
      } else {
        storeHalves(first + i, left, moei_round_to_bf16_by_chance(new.first, lower))
        if R.hasSecond { storeHalves(second + i, left, moei_round_to_bf16_by_chance(new.second, upper)) }
      }
      i &+= 16
    }
    i = end
  }
}

private struct AdamWRule: MomentRule {
  let f: moei_adamw
  let parameter: Target
  let gradient: Source

  static var hasSecond: Bool { true }
  @inline(__always) func step(_ i: Int, _ left: Int, _ m: V, _ v: V) -> (first: V, second: V) {
    let g = load(gradient + i, left) * f.clip
    let newM = fma(g, V(repeating: f.one_minus_beta1), m * f.beta1)
    let newV = fma(g * g, V(repeating: f.one_minus_beta2), v * f.beta2)
    let denominator = fma(moei_square_root(newV), V(repeating: f.root_scale), V(repeating: f.epsilon))
    store(parameter + i, left, load(parameter + i, left) * f.decay - newM / denominator * f.step_size)
    return (newM, newV)
  }
}

@inline(never) func adamw(
  _ n: Int, _ f: UnsafePointer<moei_adamw>, _ parameter: Target, _ gradient: Source,
  _ moments: UnsafePointer<moei_moments>
) {
  run(n, AdamWRule(f: f.pointee, parameter: parameter, gradient: gradient), moments.pointee)
}

private struct SGDRule: MomentRule {
  let clip, decay, momentum, rate: Float
  let parameter: Target
  let gradient: Source

  static var hasSecond: Bool { false }
  @inline(__always) func step(_ i: Int, _ left: Int, _ velocity: V, _: V) -> (first: V, second: V) {
    let new = fma(V(repeating: momentum), velocity, load(gradient + i, left) * clip)
    store(parameter + i, left, fma(V(repeating: -rate), new, load(parameter + i, left) * decay))
    return (new, new)
  }
}

@inline(never) func sgd(
  _ n: Int, _ clip: Float, _ decay: Float, _ momentum: Float, _ learningRate: Float, _ parameter: Target,
  _ gradient: Source, _ moments: UnsafePointer<moei_moments>
) {
  run(
    n,
    SGDRule(
      clip: clip, decay: decay, momentum: momentum, rate: learningRate, parameter: parameter, gradient: gradient),
    moments.pointee)
}

/// v = momentum v + clip g;  u = clip g + momentum v
private struct MomentumRule: MomentRule {
  let clip, momentum: Float
  let gradient: Source
  let update: Target

  static var hasSecond: Bool { false }
  @inline(__always) func step(_ i: Int, _ left: Int, _ velocity: V, _: V) -> (first: V, second: V) {
    let g = load(gradient + i, left) * clip
    let new = velocity * momentum + g
    store(update + i, left, fma(V(repeating: momentum), new, g))
    return (new, new)
  }
}

@inline(never) func nesterov(
  _ n: Int, _ clip: Float, _ momentum: Float, _ gradient: Source, _ moments: UnsafePointer<moei_moments>,
  _ update: Target
) {
  run(n, MomentumRule(clip: clip, momentum: momentum, gradient: gradient, update: update), moments.pointee)
}
