import CShims

/// What the experts of one token are chosen by: scores, plus a bias, within the best groups.
/// A logit of minus infinity means never, whatever the bias. Choices are constants to backward.
struct Selection {
  private let choice: TokenChoice
  private let experts: Int
  private let kernels: UnsafePointer<moei_kernels>
  let bias: UnsafePointer<Float>?  // [E]
  /// Where groups are those of a hierarchy, its own gate chooses among them.
  private let groups: TokenChoice.Groups?
  // Scratch of each thread.
  private let lanes: UnsafeMutablePointer<Float>  // [lanes, E]
  private let groupScores: UnsafeMutablePointer<Float>  // [lanes, groups]
  private let best: UnsafeMutablePointer<Float>  // [lanes, E]
  private let places: UnsafeMutablePointer<Int32>  // [lanes, E]

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters) {
    choice = c.choice
    experts = c.experts
    kernels = context.kernels
    bias = parameters.data(.selectionBias).map { UnsafePointer($0) }
    groups = c.router.hasCoarseGate ? nil : c.choice.groups
    let rows = c.choice.selectsByLogits ? 0 : context.lanes
    lanes = arena.take(Float.self, rows, c.experts)
    groupScores = arena.take(Float.self, rows, c.choice.groups?.count ?? 0)
    best = arena.take(Float.self, rows, c.experts)
    places = arena.take(Int32.self, rows, c.experts)
  }

  /// [E] for one token: in memory of the thread's, or the logits themselves where their order is the same.
  func values(
    logits: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>, lane: Int
  ) -> UnsafePointer<Float> {
    if choice.selectsByLogits { return logits }
    let values = lanes + lane * experts
    fill(values, logits: logits, probabilities: p)
    if let groups { exclude(groups, values, lane: lane) }
    return UnsafePointer(values)
  }

  /// Scores plus bias, for all experts.
  func fill(
    _ values: UnsafeMutablePointer<Float>, logits: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>
  ) {
    switch (choice.weights, choice.score) {
    case (.scores, .softmax), (.equal, .softmax): values.update(from: p, count: experts)
    case (.scores, .sigmoid), (.equal, .sigmoid): kernels.pointee.sigmoid(Int64(experts), logits, values)
    case (.scores, .sqrtSoftplus), (.equal, .sqrtSoftplus):
      kernels.pointee.sqrt_softplus(Int64(experts), logits, values)
    case (.scores, .identity), (.equal, .identity), (.topKSoftmax, _), (.topKSigmoid, _), (.sparseMixer, _),
      (.groupSoftmax, _):
      values.update(from: logits, count: experts)
    }
    if let bias { kernels.pointee.add(Int64(experts), bias, values) }
    for e in 0..<experts where logits[e] == -.infinity { values[e] = -.infinity }
  }

  private func exclude(_ groups: TokenChoice.Groups, _ values: UnsafeMutablePointer<Float>, lane: Int) {
    let size = experts / groups.count
    let (groupScores, best, places) = (
      groupScores + lane * groups.count, best + lane * experts, places + lane * experts
    )
    for g in 0..<groups.count {
      kernels.pointee.top_k(Int64(size), Int64(groups.best), values + g * size, places, best)
      groupScores[g] = best[0]
      for i in 1..<max(1, groups.best) { groupScores[g] += best[i] }
    }
    kernels.pointee.top_k(Int64(groups.count), Int64(groups.chosen), groupScores, places, best)
    for g in 0..<groups.count {
      var isChosen = false
      for i in 0..<groups.chosen where Int(places[i]) == g { isChosen = true }
      if isChosen { continue }
      (values + g * size).update(repeating: groups.excludedAreZero ? 0 : -.infinity, count: size)
    }
  }

  /// The bias, checked once: what it is added to is finite.
  func check() throws(Fault) {
    guard let bias else { return }
    let e = Int(kernels.pointee.first_not_finite(Int64(experts), bias))
    if e < experts { throw Fault(.notFinite, "router.selection_bias is NaN or plus infinity for expert \(e)") }
  }
}
