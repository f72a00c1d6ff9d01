import CShims

// The experts' inner functions and their slopes, written once per function and looped over once per use.

protocol Activation {
  static func value(_ v: V) -> V
  /// d value / d v
  static func slope(_ v: V) -> V
}

/// v Phi(v), Phi the normal distribution function [Hendrycks and Gimpel 2016].
enum GELU: Activation {
  @inline(__always) static func value(_ v: V) -> V { v * distribution(v) }
  @inline(__always) static func slope(_ v: V) -> V {
    // Phi(v) + v phi(v), phi(v) = exp(-v^2 / 2) / sqrt(2 pi)
    fma(v * 0.398942280, exponential(v * v * -0.5), distribution(v))
  }
  @_transparent private static func distribution(_ v: V) -> V {
    let half = V(repeating: 0.5)
    return fma(errorFunction(v * 0.707106781), half, half)
  }
}

/// v (1 + tanh u) / 2, u = sqrt(2/pi) (v + 0.044715 v^3).
enum TanhGELU: Activation {
  @inline(__always) static func value(_ v: V) -> V { v * 0.5 * (hyperbolicTangent(inner(v)) + 1) }
  @inline(__always) static func slope(_ v: V) -> V {
    // From about 10 on the slope is 0 or 1; its terms would go on to infinity, and cancel to NaN.
    let v = larger(smaller(v, V(repeating: 16)), V(repeating: -16))
    let t = hyperbolicTangent(inner(v))
    let du = fma(v * v, V(repeating: 0.107032226), V(repeating: 0.797884561))  // sqrt(2/pi) (1 + 3 * 0.044715 v^2)
    return fma(v * 0.5 * (1 - t * t), du, (t + 1) * 0.5)
  }
  @inline(__always) private static func inner(_ v: V) -> V {
    v * fma(v * v, V(repeating: 0.0356774081), V(repeating: 0.797884561))
  }
}

/// v sigmoid(v).
enum SiLU: Activation {
  @inline(__always) static func value(_ v: V) -> V { v / (exponential(-v) + 1) }
  @inline(__always) static func slope(_ v: V) -> V {
    let s = 1 / (exponential(-v) + 1)
    return s * fma(v, 1 - s, V(repeating: 1))
  }
}

enum ReLU: Activation {
  @inline(__always) static func value(_ v: V) -> V { larger(v, V(repeating: 0)) }
  @inline(__always) static func slope(_ v: V) -> V { V(repeating: 0).replacing(with: 1, where: v .> 0) }
}

// MARK: two-layer experts

@inline(__always) private func forward<A: Activation>(_: A.Type, _ n: Int, _ v: Source, _ a: Target) {
  map(n, v, a) { A.value($0) }
}

@inline(__always) private func backward<A: Activation>(_: A.Type, _ n: Int, _ v: Source, _ da: Target) {
  update(n, v, da) { v, da in da * A.slope(v) }
}

@inline(never) func activate(_ kind: Int32, _ n: Int, _ v: Source, _ a: Target) {
  switch kind {
  case Int32(MOEI_GELU): forward(GELU.self, n, v, a)
  case Int32(MOEI_GELU_TANH): forward(TanhGELU.self, n, v, a)
  case Int32(MOEI_SILU): forward(SiLU.self, n, v, a)
  default: forward(ReLU.self, n, v, a)
  }
}

@inline(never) func activateBackward(_ kind: Int32, _ n: Int, _ v: Source, _ da: Target) {
  switch kind {
  case Int32(MOEI_GELU): backward(GELU.self, n, v, da)
  case Int32(MOEI_GELU_TANH): backward(TanhGELU.self, n, v, da)
  case Int32(MOEI_SILU): backward(SiLU.self, n, v, da)
  default: backward(ReLU.self, n, v, da)
  }
}

// MARK: gated experts

@inline(__always) private func gatedForward<A: Activation>(
  _: A.Type, _ n: Int, _ gate: Source, _ up: Source, _ a: Target
) {
  var i = 0
  while i < n {
    let left = n &- i
    store(a + i, left, A.value(load(gate + i, left)) * load(up + i, left))
    i &+= 16
  }
}

@inline(__always) private func gatedBackward<A: Activation>(
  _: A.Type, _ n: Int, _ gate: Source, _ up: Source, _ da: Source, _ dgate: Target, _ dup: Target
) {
  var i = 0
  while i < n {
    let left = n &- i
    let g = load(gate + i, left)
    let d = load(da + i, left)
    store(dgate + i, left, d * load(up + i, left) * A.slope(g))
    store(dup + i, left, d * A.value(g))
    i &+= 16
  }
}

@inline(never) func activateGated(_ kind: Int32, _ n: Int, _ gate: Source, _ up: Source, _ a: Target) {
  switch kind {
  case Int32(MOEI_GELU): gatedForward(GELU.self, n, gate, up, a)
  case Int32(MOEI_GELU_TANH): gatedForward(TanhGELU.self, n, gate, up, a)
  case Int32(MOEI_SILU): gatedForward(SiLU.self, n, gate, up, a)
  default: gatedForward(ReLU.self, n, gate, up, a)
  }
}

@inline(never) func activateGatedBackward(
  _ kind: Int32, _ n: Int, _ gate: Source, _ up: Source, _ da: Source, _ dgate: Target, _ dup: Target
) {
  switch kind {
  case Int32(MOEI_GELU): gatedBackward(GELU.self, n, gate, up, da, dgate, dup)
  case Int32(MOEI_GELU_TANH): gatedBackward(TanhGELU.self, n, gate, up, da, dgate, dup)
  case Int32(MOEI_SILU): gatedBackward(SiLU.self, n, gate, up, da, dgate, dup)
  default: gatedBackward(ReLU.self, n, gate, up, da, dgate, dup)
  }
}
