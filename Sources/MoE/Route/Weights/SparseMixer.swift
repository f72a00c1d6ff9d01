import CShims

/// The weights of PhiMoE in evaluation (SparseMixer-2, Liu et al. 2024): choice k's share in a softmax over the experts
/// not chosen before it whose logits are near its own, z_k:
///     v_k = exp(z_k) / sum over e of exp(z_e),   (z_k - z_e) / max(|z_e|, z_k) <= 2 * threshold
struct SparseMixer {
  private let experts: Int
  private let threshold: Float
  private let kernels: UnsafePointer<moei_kernels>
  private let left: UnsafeMutablePointer<Float>  // [lanes, E] logits that count
  private let shares: UnsafeMutablePointer<Float>  // [lanes, E]

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer) {
    experts = c.experts
    threshold = c.choice.maskThreshold
    kernels = context.kernels
    left = arena.take(Float.self, context.lanes, c.experts)
    shares = arena.take(Float.self, context.lanes, c.experts)
  }

  /// v [k] from all logits z [E].
  func fill(
    _ v: UnsafeMutablePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int, _ lane: Int
  ) {
    for slot in 0..<k { v[slot] = self.shares(z, indices, slot, lane)[Int(indices[slot])] }
  }

  /// The softmax that choice number `slot` has its share of.
  private func shares(
    _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ slot: Int, _ lane: Int
  ) -> UnsafePointer<Float> {
    let (left, shares) = (left + lane * experts, shares + lane * experts)
    let best = z[Int(indices[slot])]
    for e in 0..<experts {
      let tooFar = (best - z[e]) / max(abs(z[e]), best) > 2 * threshold
      left[e] = tooFar ? -.infinity : z[e]
    }
    for before in 0..<slot { left[Int(indices[before])] = -.infinity }
    left[Int(indices[slot])] = best
    var unused: (lse: Float, entropy: Float) = (0, 0)
    kernels.pointee.softmax(Int64(experts), left, shares, &unused.lse, &unused.entropy)
    return UnsafePointer(shares)
  }

  // MARK: backward

  /// dz += the gradient through all shares.
  func backward(
    _ dv: UnsafePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int,
    addTo dz: UnsafeMutablePointer<Float>, _ lane: Int
  ) {
    for slot in 0..<k {
      let q = self.shares(z, indices, slot, lane)
      let own = Int(indices[slot])
      let factor = dv[slot] * q[own]
      kernels.pointee.add_scaled(Int64(experts), -factor, q, dz)
      dz[own] += factor
    }
  }
}
