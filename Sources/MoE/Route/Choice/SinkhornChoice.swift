import CShims

/// Sinkhorn's iteration scales rows and columns of p = softmax(z) until all experts have equal loads; a token then takes
/// its K largest. As Megatron-Core has it, which starts from exp(z): p differs by a factor for each row, which the row's
/// own scale takes back. Within a row the order is that of p times the columns' scales.
struct SinkhornChoice {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  private let rowScales: UnsafeMutablePointer<Double>  // [T]
  private let columnScales: UnsafeMutablePointer<Double>  // [E]
  private let sums: UnsafeMutablePointer<Double>  // [E]
  /// p, or minus infinity where the logit is; then times the columns' scales. Of all tokens: each iteration reads them,
  /// and there may be a hundred.
  private let values: TokenRows
  private let best: UnsafeMutablePointer<Float>  // [lanes, K]

  private static var tolerance: Double { 1e-4 }
  private static var epsilon: Double { 1e-8 }
  private static var most: Int { 100 }  // iterations

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, routing: Routing,
    values: TokenRows
  ) {
    self.c = c
    kernels = context.kernels
    self.routing = routing
    rowScales = arena.take(Double.self, routing.tokens)
    columnScales = arena.take(Double.self, c.experts)
    sums = arena.take(Double.self, c.experts)
    self.values = values
    best = arena.take(Float.self, context.lanes, c.topK)
  }

  func note(_ t: Int, logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>) {
    let values = values.of(t)
    for e in 0..<c.experts { values[e] = z[e] == -.infinity ? -.infinity : p[e] }
  }

  func run(in context: ContextPointer) throws(Fault) {
    iterate()
    try context.run(blocks(of: routing.tokens), self)
    for t in 0..<routing.tokens where routing.isValid(t) {
      let last = Int(routing.indices[t * routing.slots + c.topK - 1])
      if values.of(t)[last] == -.infinity {
        throw RouteTokens.fault(RoutingFailure(token: t, reason: .tooFewLeft), c)
      }
    }
  }

  private func iterate() {
    let (experts, tokens) = (c.experts, routing.validCount.pointee)
    columnScales.update(repeating: 1, count: experts)
    for _ in 0..<Self.most {
      sums.update(repeating: 0, count: experts)
      for t in 0..<routing.tokens where routing.isValid(t) {
        let values = values.of(t)
        func p(_ e: Int) -> Double { Double(max(values[e], 0)) }
        var sum = 0.0
        for e in 0..<experts { sum += columnScales[e] * p(e) }
        rowScales[t] = 1 / Double(tokens) / (sum + Self.epsilon)
        for e in 0..<experts { sums[e] += rowScales[t] * p(e) }
      }
      var change = 0.0
      for e in 0..<experts {
        let scale = 1 / Double(experts) / (sums[e] + Self.epsilon)
        change += abs(columnScales[e] - scale)
        columnScales[e] = scale
      }
      if change / Double(experts) <= Self.tolerance { return }
    }
  }
}

extension SinkhornChoice: Job {
  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let best = best + lane.pointee.index * c.topK
    for t in rows(ofBlock: block, in: routing.tokens) where routing.isValid(t) {
      let values = values.of(t)
      for e in 0..<c.experts where values[e] != -.infinity {
        values[e] = Float(columnScales[e] * Double(values[e]))
      }
      kernels.pointee.top_k(
        Int64(c.experts), Int64(c.topK), values, routing.indices + t * routing.slots, best)
    }
  }
}
