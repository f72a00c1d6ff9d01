import CShims

// One optimiser step over one stretch of a tensor. The formulas stand in include/moe.h.

@inline(never) func adamw(
  _ n: Int, _ f: UnsafePointer<moei_adamw>, _ parameter: Target, _ gradient: Source, _ m: Target, _ v: Target
) {
  let f = f.pointee
  var i = 0
  while i &+ 16 <= n {
    let next = adamwStep(f, load(parameter + i), load(gradient + i), load(m + i), load(v + i))
    store(parameter + i, next.parameter)
    store(m + i, next.m)
    store(v + i, next.v)
    i &+= 16
  }
  if i < n {
    let rest = n &- i
    let next = adamwStep(
      f, loadTail(parameter + i, rest), loadTail(gradient + i, rest), loadTail(m + i, rest), loadTail(v + i, rest))
    storeTail(parameter + i, rest, next.parameter)
    storeTail(m + i, rest, next.m)
    storeTail(v + i, rest, next.v)
  }
}

@inline(__always) private func adamwStep(
  _ f: moei_adamw, _ parameter: V, _ gradient: V, _ m: V, _ v: V
) -> (parameter: V, m: V, v: V) {
  let m = fma(gradient, V(repeating: f.one_minus_beta1), m * f.beta1)
  let v = fma(gradient * gradient, V(repeating: f.one_minus_beta2), v * f.beta2)
  let denominator = fma(moei_square_root(v), V(repeating: f.root_scale), V(repeating: f.epsilon))
  return (parameter * f.decay - m / denominator * f.step_size, m, v)
}

@inline(never) func sgd(
  _ n: Int, _ decay: Float, _ momentum: Float, _ learningRate: Float, _ parameter: Target, _ gradient: Source,
  _ velocity: Target
) {
  let mu = V(repeating: momentum)
  let rate = V(repeating: -learningRate)
  update(n, gradient, velocity) { gradient, velocity in fma(mu, velocity, gradient) }
  update(n, velocity, parameter) { velocity, parameter in fma(rate, velocity, parameter * decay) }
}
