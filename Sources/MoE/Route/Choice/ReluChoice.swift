import CShims

/// Each token takes the experts with positive logits, largest first and K at most: relu(z) is 0 for all others, and the
/// weight of those [ReMoE, Wang et al. 2024].
struct ReluChoice {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  private let chosen: UnsafeMutablePointer<Float>  // [lanes, K]

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, routing: Routing) {
    self.c = c
    kernels = context.kernels
    self.routing = routing
    chosen = arena.take(Float.self, context.lanes, c.topK)
  }

  func choose(_ block: TokenBlock) -> RoutingFailure? {
    let (e, k) = (c.experts, c.topK)
    let chosen = chosen + block.lane * k
    for t in block.tokens where routing.isRouted(t) {
      let z = block.logits + (t - block.tokens.lowerBound) * e
      let indices = routing.indices + t * routing.slots
      kernels.pointee.top_k(Int64(e), Int64(k), z, indices, chosen)
      for slot in 0..<k where !(chosen[slot] > 0) { indices[slot] = .noExpert }
      // An expert that is next best has to be positive, too.
      if let values = block.values?.of(t) { for e in 0..<e { values[e] = z[e] > 0 ? z[e] : -.infinity } }
    }
    return nil
  }
}
