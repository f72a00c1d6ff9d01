import CShims

// One optimiser step over one stretch of a tensor. The formulas stand in include/moe.h.

@inline(never) func adamw(
  _ n: Int, _ f: UnsafePointer<moei_adamw>, _ parameter: Target, _ gradient: Source, _ m: Target, _ v: Target
) {
  let f = f.pointee
  var i = 0
  while i < n {
    let left = n &- i
    let g = load(gradient + i, left) * f.clip
    let newM = fma(g, V(repeating: f.one_minus_beta1), load(m + i, left) * f.beta1)
    let newV = fma(g * g, V(repeating: f.one_minus_beta2), load(v + i, left) * f.beta2)
    let denominator = fma(moei_square_root(newV), V(repeating: f.root_scale), V(repeating: f.epsilon))
    store(parameter + i, left, load(parameter + i, left) * f.decay - newM / denominator * f.step_size)
    store(m + i, left, newM)
    store(v + i, left, newV)
    i &+= 16
  }
}

@inline(never) func sgd(
  _ n: Int, _ clip: Float, _ decay: Float, _ momentum: Float, _ learningRate: Float, _ parameter: Target,
  _ gradient: Source, _ velocity: Target
) {
  let mu = V(repeating: momentum)
  let rate = V(repeating: -learningRate)
  update(n, gradient, velocity) { gradient, velocity in fma(mu, velocity, gradient * clip) }
  update(n, velocity, parameter) { velocity, parameter in fma(rate, velocity, parameter * decay) }
}
