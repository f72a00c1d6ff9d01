import CShims

/// One block of tokens, whose logits are known.
struct TokenBlock {
  let tokens: Range<Int>
  let logits: UnsafePointer<Float>  // [tokens, E]; unused without a gate
  let coarse: UnsafePointer<Float>?  // [tokens, G] of a hierarchy
  /// Where what tokens choose by is kept, [T,E] of all tokens, for those who find another expert later.
  let values: TokenRows?
  let lane: Int
}

/// Why a token cannot be routed.
struct RoutingFailure {
  enum Reason: Int32 { case logit, tooFewLeft, noWeight }
  var token = -1
  var expert = 0
  var reason = Reason.logit
}

/// Each token takes the K experts with the largest values, best first; in dynamic routing fewer of them.
struct TopKChoice {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let selection: Selection
  private let chosen: UnsafeMutablePointer<Float>  // [lanes, K]
  private let dynamic: DynamicChoice?

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, routing: Routing, selection: Selection,
    x: UnsafePointer<Float>
  ) {
    self.c = c
    kernels = context.kernels
    self.routing = routing
    self.selection = selection
    chosen = arena.take(Float.self, context.lanes, c.topK)
    dynamic = c.dynamicK.map { DynamicChoice(&arena, c, $0, context: context, routing: routing, x: x) }
  }

  func prepare(in context: ContextPointer) throws(Fault) { try dynamic?.prepare(in: context) }

  func choose(_ block: TokenBlock) -> RoutingFailure? {
    let (e, k) = (c.experts, c.topK)
    let chosen = chosen + block.lane * k
    for t in block.tokens where routing.isRouted(t) {
      let z = block.logits + (t - block.tokens.lowerBound) * e
      let p = routing.probabilities.of(t)
      let indices = routing.indices + t * routing.slots
      let values = selection.values(logits: z, probabilities: p, lane: block.lane)
      kernels.pointee.top_k(Int64(e), Int64(k), values, indices, chosen)
      block.values?.of(t).update(from: values, count: e)
      if chosen[k - 1] == -.infinity { return RoutingFailure(token: t, reason: .tooFewLeft) }
      dynamic?.shorten(indices, logits: z, probabilities: p, block.lane)
    }
    return nil
  }
}
