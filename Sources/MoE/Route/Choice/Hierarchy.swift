import CShims

// Two gates, one over the other: a coarse one with logits u [G] over groups of experts, a fine one with z [E]. Together
//     l_e = u_g + z_e - logsumexp of the z in g,      e in group g,
// for then softmax(l)_e = softmax(u)_g * softmax(z in g)_e, and all that follows works on l as on any logits.
struct Hierarchy {
  let groups: Int
  let size: Int  // experts of a group
  let kernels: UnsafePointer<moei_kernels>

  init(_ c: Configuration, _ groups: TokenChoice.Groups, _ kernels: UnsafePointer<moei_kernels>) {
    self.groups = groups.count
    size = c.experts / groups.count
    self.kernels = kernels
  }

  /// From z [E] to l, in place; `p` [E] is written over.
  func join(_ z: UnsafeMutablePointer<Float>, coarse u: UnsafePointer<Float>, _ p: UnsafeMutablePointer<Float>) {
    for g in 0..<groups {
      let own = z + g * size
      var statistics: (lse: Float, entropy: Float) = (0, 0)
      kernels.pointee.softmax(Int64(size), own, p, &statistics.lse, &statistics.entropy)
      for e in 0..<size { own[e] = own[e] == -.infinity ? -.infinity : u[g] + (own[e] - statistics.lse) }
    }
  }

  // MARK: backward

  /// From dl [E] to dz, in place, and du [G]; p = softmax(l).
  func split(_ dl: UnsafeMutablePointer<Float>, probabilities p: UnsafePointer<Float>, du: UnsafeMutablePointer<Float>)
  {
    for g in 0..<groups {
      let (own, p) = (dl + g * size, p + g * size)
      var (sum, mass): (Float, Float) = (0, 0)
      for e in 0..<size {
        sum += own[e]
        mass += p[e]
      }
      du[g] = sum
      if mass == 0 { continue }  // a group that is never chosen, whose gradients are 0
      for e in 0..<size { own[e] -= p[e] / mass * sum }
    }
  }
}

/// Each token takes its best groups by the coarse gate, then in each of them its best experts.
struct HierarchicalChoice {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let hierarchy: Hierarchy
  private let chosenGroups: Int
  private let groups: UnsafeMutablePointer<Int32>  // [lanes, G]
  private let best: UnsafeMutablePointer<Float>  // [lanes, E]

  init(
    _ arena: inout Arena, _ c: Configuration, _ plan: TokenChoice.Groups, context: ContextPointer, routing: Routing,
    hierarchy: Hierarchy
  ) {
    self.c = c
    kernels = context.kernels
    self.routing = routing
    self.hierarchy = hierarchy
    chosenGroups = plan.chosen
    groups = arena.take(Int32.self, context.lanes, plan.count)
    best = arena.take(Float.self, context.lanes, c.experts)
  }

  func choose(_ block: TokenBlock) -> RoutingFailure? {
    let groups = groups + block.lane * hierarchy.groups
    let best = best + block.lane * c.experts
    let perGroup = c.topK / chosenGroups
    for t in block.tokens where routing.isRouted(t) {
      let row = t - block.tokens.lowerBound
      let kept = block.values?.of(t)
      kept?.update(repeating: -.infinity, count: c.experts)
      kernels.pointee.top_k(
        Int64(hierarchy.groups), Int64(chosenGroups), block.coarse! + row * hierarchy.groups, groups, best)
      for i in 0..<chosenGroups {
        let first = Int(groups[i]) * hierarchy.size
        let indices = routing.indices + t * routing.slots + i * perGroup
        kernels.pointee.top_k(
          Int64(hierarchy.size), Int64(perGroup), block.logits + row * c.experts + first, indices, best)
        if best[perGroup - 1] == -.infinity { return RoutingFailure(token: t, reason: .tooFewLeft) }
        for k in 0..<perGroup { indices[k] += Int32(truncatingIfNeeded: first) }
        if let kept { (kept + first).update(from: block.logits + row * c.experts + first, count: hierarchy.size) }
      }
    }
    return nil
  }
}
