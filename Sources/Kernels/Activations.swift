import CShims

// The experts' inner functions and their slopes, written once per function and looped over once per use. They are @_transparent
// because @inline(__always) left some of them calls, which have their sixteen floats in four small registers.
// A private protocol would bring a weak symbol of one name for all instruction sets, so none is.

protocol Activation {
  func value(_ v: V) -> V
  /// d value / d v
  func slope(_ v: V) -> V
}

/// v Phi(v), Phi the normal distribution function [Hendrycks and Gimpel 2016].
struct GELU: Activation {
  @_transparent func value(_ v: V) -> V { v * normalDistribution(v) }
  @_transparent func slope(_ v: V) -> V {
    // Phi(v) + v phi(v), phi(v) = exp(-v^2 / 2) / sqrt(2 pi)
    fma(v * 0.398942280, exponential(v * v * -0.5), normalDistribution(v))
  }
}

/// v (1 + tanh u) / 2, u = sqrt(2/pi) (v + 0.044715 v^3).
struct TanhGELU: Activation {
  @_transparent func value(_ v: V) -> V { v * 0.5 * (hyperbolicTangent(inner(v)) + 1) }
  @_transparent func slope(_ v: V) -> V {
    // From about 10 on the slope is 0 or 1; its terms would go on to infinity, and cancel to NaN.
    let v = larger(smaller(v, V(repeating: 16)), V(repeating: -16))
    let t = hyperbolicTangent(inner(v))
    let du = fma(v * v, V(repeating: 0.107032226), V(repeating: 0.797884561))  // sqrt(2/pi) (1 + 3 * 0.044715 v^2)
    return fma(v * 0.5 * (1 - t * t), du, (t + 1) * 0.5)
  }
  @inline(__always) private func inner(_ v: V) -> V {
    v * fma(v * v, V(repeating: 0.0356774081), V(repeating: 0.797884561))
  }
}

/// v sigmoid(v).
struct SiLU: Activation {
  @_transparent func value(_ v: V) -> V { v / (exponential(-v) + 1) }
  @_transparent func slope(_ v: V) -> V {
    let s = 1 / (exponential(-v) + 1)
    return s * fma(v, 1 - s, V(repeating: 1))
  }
}

/// v sigmoid(alpha v).
struct ScaledSiLU: Activation {
  let alpha: Float

  @_transparent func value(_ v: V) -> V { v / (exponential(v * -alpha) + 1) }
  @_transparent func slope(_ v: V) -> V {
    // From about 104 on the slope is 0 or 1; an infinite product would go on to NaN.
    let x = larger(smaller(v * alpha, V(repeating: 128)), V(repeating: -128))
    let s = 1 / (exponential(-x) + 1)
    return s * fma(x, 1 - s, V(repeating: 1))
  }
}

struct ReLU: Activation {
  @_transparent func value(_ v: V) -> V { larger(v, V(repeating: 0)) }
  @_transparent func slope(_ v: V) -> V { V(repeating: 0).replacing(with: 1, where: v .> 0) }
}

/// max(v, 0)^2.
struct SquaredReLU: Activation {
  @_transparent func value(_ v: V) -> V {
    let positive = larger(v, V(repeating: 0))
    return positive * positive
  }
  @_transparent func slope(_ v: V) -> V { larger(v, V(repeating: 0)) * 2 }
}

/// What happens to the two projections of a gated expert before they meet, and to their gradients after.
protocol Clamps {
  func gate(_ g: V) -> V
  func up(_ u: V) -> V
  func gradient(_ dg: V, ofGate g: V) -> V
  func gradient(_ du: V, ofUp u: V) -> V
}

/// Nothing: the loops are those of plain gated experts.
private struct NoClamps: Clamps {
  @inline(__always) func gate(_ g: V) -> V { g }
  @inline(__always) func up(_ u: V) -> V { u }
  @inline(__always) func gradient(_ dg: V, ofGate g: V) -> V { dg }
  @inline(__always) func gradient(_ du: V, ofUp u: V) -> V { du }
}

/// The gate at most `limit`, up within it and then moved. At the limit itself gradients pass; a NaN comes through.
private struct Limits: Clamps {
  let limit: Float
  let offset: Float

  @_transparent func gate(_ g: V) -> V { smaller(g, V(repeating: limit)) }
  @_transparent func up(_ u: V) -> V { larger(smaller(u, V(repeating: limit)), V(repeating: -limit)) + offset }
  @_transparent func gradient(_ dg: V, ofGate g: V) -> V { dg.replacing(with: 0, where: g .> limit) }
  @_transparent func gradient(_ du: V, ofUp u: V) -> V { du.replacing(with: 0, where: magnitude(u) .> limit) }
}

/// Numbers as in moei_activation_kind, which the boundary has checked. An enum of Swift's, so that a switch over it has every
/// case or does not compile; one over C's would ask the runtime what to do about others.
private enum ActivationKind: UInt32 {
  case gelu = 0
  case tanhGELU = 1  // GELU_TANH
  case silu = 2
  case relu = 3
  case squaredReLU = 4  // RELU2
  case quickGELU = 5
}

/// What is done with an activation and clamps, once it is known which. A function for each, so that a call's stack holds what
/// one of them needs and not all.
protocol Loop {
  func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C)
}

@inline(__always) private func run<L: Loop, C: Clamps>(
  _ loop: L, with parameters: moei_activation, _ clamps: C
) {
  switch ActivationKind(rawValue: parameters.kind.rawValue).unsafelyUnwrapped {
  case .gelu: loop.run(GELU(), clamps)
  case .tanhGELU: loop.run(TanhGELU(), clamps)
  case .silu where parameters.alpha == 1: loop.run(SiLU(), clamps)
  case .silu: loop.run(ScaledSiLU(alpha: parameters.alpha), clamps)
  case .relu: loop.run(ReLU(), clamps)
  case .squaredReLU: loop.run(SquaredReLU(), clamps)
  case .quickGELU: loop.run(ScaledSiLU(alpha: 1.702), clamps)
  }
}

// MARK: MLP experts

private struct Forward: Loop {
  let n: Int
  let v: Source
  let a: Target

  @inline(never) func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C) {
    @inline(__always) func value(_ v: V) -> V { activation.value(v) }
    map(n, v, a, value)
  }
}

private struct Backward: Loop {
  let n: Int
  let v: Source
  let da: Target

  @inline(never) func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C) {
    @inline(__always) func gradient(_ v: V, _ da: V) -> V { da * activation.slope(v) }
    update(n, v, da, gradient)
  }
}

@inline(never) func activate(_ activation: moei_activation, _ n: Int, _ v: Source, _ a: Target) {
  run(Forward(n: n, v: v, a: a), with: activation, NoClamps())
}

@inline(never) func activateBackward(_ activation: moei_activation, _ n: Int, _ v: Source, _ da: Target) {
  run(Backward(n: n, v: v, da: da), with: activation, NoClamps())
}

// MARK: gated experts

private struct GatedForward: Loop {
  let n: Int
  let gate: Source
  let up: Source
  let a: Target

  @inline(never) func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C) {
    var i = 0
    while i < n {
      let left = n &- i
      let g = clamps.gate(load(gate + i, left))
      store(a + i, left, activation.value(g) * clamps.up(load(up + i, left)))
      i &+= 16
    }
  }
}

private struct GatedBackward: Loop {
  let n: Int
  let gate: Source
  let up: Source
  let da: Source
  let dgate: Target
  let dup: Target

  @inline(never) func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C) {
    var i = 0
    while i < n {
      let left = n &- i
      let (g, u, d) = (load(gate + i, left), load(up + i, left), load(da + i, left))
      let clamped = clamps.gate(g)
      store(dgate + i, left, clamps.gradient(d * clamps.up(u) * activation.slope(clamped), ofGate: g))
      store(dup + i, left, clamps.gradient(d * activation.value(clamped), ofUp: u))
      i &+= 16
    }
  }
}

extension moei_activation {
  @inline(__always) fileprivate var clamps: Limits? {
    limit < .infinity || offset != 0 ? Limits(limit: limit, offset: offset) : nil
  }
}

/// With the activation's own clamps.
@inline(__always) func runGated<L: Loop>(_ loop: L, with activation: moei_activation) {
  if let clamps = activation.clamps {
    run(loop, with: activation, clamps)
  } else {
    run(loop, with: activation, NoClamps())
  }
}

@inline(never) func activateGated(
  _ activation: moei_activation, _ n: Int, _ gate: Source, _ up: Source, _ a: Target
) {
  runGated(GatedForward(n: n, gate: gate, up: up, a: a), with: activation)
}

@inline(never) func activateGatedBackward(
  _ activation: moei_activation, _ n: Int, _ gate: Source, _ up: Source, _ da: Source, _ dgate: Target, _ dup: Target
) {
  runGated(GatedBackward(n: n, gate: gate, up: up, da: da, dgate: dgate, dup: dup), with: activation)
}
