import CShims

// Score functions of routers, beside the softmax.

/// 1 / (1 + exp(-z))
@inline(never) func sigmoid(_ n: Int, _ z: Source, _ s: Target) {
  map(n, z, s) { 1 / (exponential(-$0) + 1) }
}

/// sqrt(ln(1 + exp z)) = sqrt(max(z, 0) + ln(1 + exp(-|z|)))
@inline(never) func sqrtSoftplus(_ n: Int, _ z: Source, _ s: Target) {
  map(n, z, s) { z in
    let e = exponential(-magnitude(z))
    // ln(1 + e): what is lost in the sum 1 + e is given back by the quotient.
    let u = e + 1
    let back = u - 1
    let log = (logarithm(u) * e / back).replacing(with: e, where: back .== V(repeating: 0))
    return moei_square_root(larger(z, V(repeating: 0)) + log)
  }
}

/// x^p for x >= 0 and p >= 0
@inline(never) func power(_ n: Int, _ p: Float, _ x: Source, _ y: Target) {
  map(n, x, y) { x in
    let zero = V(repeating: 0)
    let tiny = V(repeating: .leastNormalMagnitude)
    let value = exponential(logarithm(larger(x, tiny)) * p)
    return p == 0 ? V(repeating: 1) : value.replacing(with: zero, where: x .== zero)
  }
}

/// chance = Phi(q), density = exp(-q^2 / 2) / sqrt(2 pi)
@inline(never) func normal(_ n: Int, _ q: Source, _ chance: Target, _ density: Target) {
  map(n, q, chance) { normalDistribution($0) }
  map(n, q, density) { exponential($0 * $0 * -0.5) * 0.398942280 }
}
