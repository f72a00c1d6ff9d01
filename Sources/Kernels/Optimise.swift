import CShims

// One optimiser step over one stretch of a tensor, with moments in float32, or in bfloat16 that are rounded up or down by
// chance. The formulas stand in include/moe.h.

/// Sixteen elements, their moments in float32. `target` is what a step changes.
struct Elements {
  var target, first, second: V
}

/// A rule, for sixteen elements. No private protocol: see Activations.swift.
protocol MomentRule {
  /// Whether elements have two moments.
  static var hasSecond: Bool { get }
  func step(_ elements: inout Elements, _ gradient: V)
}

@inline(__always) private func run<R: MomentRule>(
  _ n: Int, _ rule: R, _ target: Target, _ gradient: Source, _ moments: moei_moments
) {
  if moments.by_chance != 0 { return runByChance(n, rule, target, gradient, moments) }
  let first = moments.first.assumingMemoryBound(to: Float.self)
  let second = moments.second.assumingMemoryBound(to: Float.self)
  let nothing = V(repeating: 0)
  var i = 0
  while i &+ 16 <= n {
    var own = Elements(
      target: load(target + i), first: load(first + i), second: R.hasSecond ? load(second + i) : nothing)
    rule.step(&own, load(gradient + i))
    store(target + i, own.target)
    store(first + i, own.first)
    if R.hasSecond { store(second + i, own.second) }
    i &+= 16
  }
  let left = n &- i
  if left == 0 { return }
  var own = Elements(
    target: load(target + i, left), first: load(first + i, left),
    second: R.hasSecond ? load(second + i, left) : nothing)
  rule.step(&own, load(gradient + i, left))
  store(target + i, left, own.target)
  store(first + i, left, own.first)
  if R.hasSecond { store(second + i, left, own.second) }
}

@inline(__always) private func runByChance<R: MomentRule>(
  _ n: Int, _ rule: R, _ target: Target, _ gradient: Source, _ moments: moei_moments
) {
  let first = moments.first.assumingMemoryBound(to: UInt16.self)
  let second = moments.second.assumingMemoryBound(to: UInt16.self)
  let nothing = V(repeating: 0)
  var i = 0
  while i < n {
    var chance = Chance(moments, i)
    let end = chance.left < n &- i ? i &+ chance.left : n
    while i &+ 16 <= end {
      var own = Elements(
        target: load(target + i), first: moei_from_bf16(first + i),
        second: R.hasSecond ? moei_from_bf16(second + i) : nothing)
      rule.step(&own, load(gradient + i))
      store(target + i, own.target)
      let words = chance.next()
      let (lower, upper) = (words & 0xFFFF, words &>> 16)
      // NaN is rare, and one test for both moments costs less than to make sure that each stays one.
      if moei_not_numbers(own.first, R.hasSecond ? own.second : own.first) == 0 {
        moei_store_upper_halves(unsafeBitCast(own.first, to: Words.self) &+ lower, first + i)
        if R.hasSecond { moei_store_upper_halves(unsafeBitCast(own.second, to: Words.self) &+ upper, second + i) }
      } else {
        moei_store_upper_halves(moei_round_to_bf16_by_chance(own.first, lower), first + i)
        if R.hasSecond { moei_store_upper_halves(moei_round_to_bf16_by_chance(own.second, upper), second + i) }
      }
      i &+= 16
    }
    let left = end &- i
    if left == 0 { continue }
    var own = Elements(
      target: load(target + i, left), first: loadHalves(first + i, left),
      second: R.hasSecond ? loadHalves(second + i, left) : nothing)
    rule.step(&own, load(gradient + i, left))
    store(target + i, left, own.target)
    let words = chance.next()
    storeHalves(first + i, left, moei_round_to_bf16_by_chance(own.first, words & 0xFFFF))
    if R.hasSecond { storeHalves(second + i, left, moei_round_to_bf16_by_chance(own.second, words &>> 16)) }
    i = end
  }
}

private struct AdamWRule: MomentRule {
  let f: moei_adamw

  static var hasSecond: Bool { true }
  @inline(__always) func step(_ own: inout Elements, _ gradient: V) {
    let g = gradient * f.clip
    own.first = fma(g, V(repeating: f.one_minus_beta1), own.first * f.beta1)
    own.second = fma(g * g, V(repeating: f.one_minus_beta2), own.second * f.beta2)
    let denominator = fma(moei_square_root(own.second), V(repeating: f.root_scale), V(repeating: f.epsilon))
    own.target = own.target * f.decay - own.first / denominator * f.step_size
  }
}

@inline(never) func adamw(
  _ n: Int, _ f: UnsafePointer<moei_adamw>, _ parameter: Target, _ gradient: Source,
  _ moments: UnsafePointer<moei_moments>
) {
  run(n, AdamWRule(f: f.pointee), parameter, gradient, moments.pointee)
}

private struct SGDRule: MomentRule {
  let clip, decay, momentum, rate: Float

  static var hasSecond: Bool { false }
  @inline(__always) func step(_ own: inout Elements, _ gradient: V) {
    own.first = fma(V(repeating: momentum), own.first, gradient * clip)
    own.target = fma(V(repeating: -rate), own.first, own.target * decay)
  }
}

@inline(never) func sgd(
  _ n: Int, _ clip: Float, _ decay: Float, _ momentum: Float, _ learningRate: Float, _ parameter: Target,
  _ gradient: Source, _ moments: UnsafePointer<moei_moments>
) {
  run(
    n, SGDRule(clip: clip, decay: decay, momentum: momentum, rate: learningRate), parameter, gradient, moments.pointee)
}

/// Without a velocity, which without momentum is the gradient.
@inline(never) func plain_sgd(
  _ n: Int, _ clip: Float, _ decay: Float, _ learningRate: Float, _ parameter: Target, _ gradient: Source
) {
  let rate = V(repeating: -learningRate)
  update(n, gradient, parameter) { gradient, parameter in fma(rate, gradient * clip, parameter * decay) }
}

/// v = momentum v + clip g;  update = clip g + momentum v
private struct NesterovRule: MomentRule {
  let clip, momentum: Float

  static var hasSecond: Bool { false }
  @inline(__always) func step(_ own: inout Elements, _ gradient: V) {
    let g = gradient * clip
    own.first = own.first * momentum + g
    own.target = fma(V(repeating: momentum), own.first, g)
  }
}

@inline(never) func nesterov(
  _ n: Int, _ clip: Float, _ momentum: Float, _ gradient: Source, _ moments: UnsafePointer<moei_moments>,
  _ update: Target
) {
  run(n, NesterovRule(clip: clip, momentum: momentum), update, gradient, moments.pointee)
}

/// Values rounded to bfloat16, up or down by chance: the first of `moments`, whose words' lower halves decide.
@inline(never) func round_by_chance(_ n: Int, _ values: Source, _ moments: UnsafePointer<moei_moments>) {
  let out = moments.pointee.first.assumingMemoryBound(to: UInt16.self)
  var i = 0
  while i < n {
    var chance = Chance(moments.pointee, i)
    let end = chance.left < n &- i ? i &+ chance.left : n
    while i < end {
      let left = end &- i
      storeHalves(out + i, left, moei_round_to_bf16_by_chance(load(values + i, left), chance.next() & 0xFFFF))
      i = left < 16 ? end : i &+ 16
    }
  }
}
