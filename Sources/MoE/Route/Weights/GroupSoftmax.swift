import CShims

/// The weights of a hierarchy by its two gates apart: with z the joined logits, M_g the share of group g in their softmax,
/// which is the coarse gate's weight of g, and q the softmax over the chosen of g alone,
///     v_k = M_g q_k
struct GroupSoftmax {
  private let experts: Int
  private let size: Int  // experts of a group
  private let choices: Int
  private let kernels: UnsafePointer<moei_kernels>
  private let shares: UnsafeMutablePointer<Float>  // [lanes, E] softmax of z
  private let ofGroup: UnsafeMutablePointer<Float>  // [lanes, 2, choices] logits of one group's choices, their softmax

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer) {
    experts = c.experts
    size = c.experts / (c.choice.groups?.count ?? 1)
    choices = c.choices
    kernels = context.kernels
    shares = arena.take(Float.self, context.lanes, c.experts)
    ofGroup = arena.take(Float.self, 2 * context.lanes, c.choices)
  }

  func fill(
    _ v: UnsafeMutablePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int, _ lane: Int
  ) {
    forGroups(z, indices, k, lane) { group, mass, q in
      var place = 0
      for slot in 0..<k where self.group(indices[slot]) == group {
        v[slot] = mass * q[place]
        place += 1
      }
    }
  }

  private func group(_ expert: Int32) -> Int { Int(expert) / size }

  /// Every group of which some expert is chosen, with M and q [its choices, in slot order].
  private func forGroups(
    _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int, _ lane: Int,
    _ body: (_ group: Int, _ mass: Float, _ q: UnsafePointer<Float>) -> Void
  ) {
    let (p, own) = (shares + lane * experts, ofGroup + 2 * lane * choices)
    var unused: (lse: Float, entropy: Float) = (0, 0)
    kernels.pointee.softmax(Int64(experts), z, p, &unused.lse, &unused.entropy)
    for slot in 0..<k {
      let group = group(indices[slot])
      var isNew = true
      for before in 0..<slot where self.group(indices[before]) == group { isNew = false }
      if !isNew { continue }
      var count = 0
      for other in slot..<k where self.group(indices[other]) == group {
        own[count] = z[Int(indices[other])]
        count += 1
      }
      kernels.pointee.softmax(Int64(count), own, own + choices, &unused.lse, &unused.entropy)
      var mass: Float = 0
      for e in group * size..<(group + 1) * size { mass += p[e] }
      body(group, mass, own + choices)
    }
  }

  // MARK: backward

  /// With a = the sum over the choices of g of dv q:  dz_k += M q_k (dv_k - a) for these, and through M
  /// dz_e += p_e (a of e's group - the sum over groups of a M) for all experts.
  func backward(
    _ dv: UnsafePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int,
    addTo dz: UnsafeMutablePointer<Float>, _ lane: Int
  ) {
    let p = shares + lane * experts
    var all: Float = 0
    forGroups(z, indices, k, lane) { group, mass, q in
      var (place, mean) = (0, Float(0))
      for slot in 0..<k where self.group(indices[slot]) == group {
        mean += dv[slot] * q[place]
        place += 1
      }
      place = 0
      for slot in 0..<k where self.group(indices[slot]) == group {
        dz[Int(indices[slot])] += mass * q[place] * (dv[slot] - mean)
        place += 1
      }
      for e in group * size..<(group + 1) * size { dz[e] += p[e] * mean }
      all += mean * mass
    }
    kernels.pointee.add_scaled(Int64(experts), -all, p, dz)
  }
}
