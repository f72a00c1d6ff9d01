import CShims

// Score functions of routers, beside the softmax.

/// 1 / (1 + exp(-z))
@inline(never) func sigmoid(_ n: Int, _ z: Source, _ s: Target) {
  @inline(__always) func score(_ z: V) -> V { 1 / (exponential(-z) + 1) }
  map(n, z, s, score)
}

/// sqrt(ln(1 + exp z)) = sqrt(max(z, 0) + ln(1 + exp(-|z|)))
@inline(never) func sqrtSoftplus(_ n: Int, _ z: Source, _ s: Target) {
  @inline(__always) func score(_ z: V) -> V {
    let e = exponential(-magnitude(z))
    // ln(1 + e): what is lost in the sum 1 + e is given back by the quotient.
    let u = e + 1
    let back = u - 1
    let log = (logarithm(u) * e / back).replacing(with: e, where: back .== V(repeating: 0))
    return moei_square_root(larger(z, V(repeating: 0)) + log)
  }
  map(n, z, s, score)
}

/// x^p for x >= 0 and p >= 0
@inline(never) func power(_ n: Int, _ p: Float, _ x: Source, _ y: Target) {
  @inline(__always) func raised(_ x: V) -> V {
    let zero = V(repeating: 0)
    let tiny = V(repeating: .leastNormalMagnitude)
    let value = exponential(logarithm(larger(x, tiny)) * p)
    return p == 0 ? V(repeating: 1) : value.replacing(with: zero, where: x .== zero)
  }
  map(n, x, y, raised)
}

/// chance = Phi(q), density = exp(-q^2 / 2) / sqrt(2 pi)
@inline(never) func normal(_ n: Int, _ q: Source, _ chance: Target, _ density: Target) {
  @inline(__always) func densityAt(_ q: V) -> V { exponential(q * q * -0.5) * 0.398942280 }
  @inline(__always) func chanceBelow(_ q: V) -> V { normalDistribution(q) }
  map(n, q, chance, chanceBelow)
  map(n, q, density, densityAt)
}
