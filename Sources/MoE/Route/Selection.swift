import CShims

/// What the experts of one token are chosen by: scores, plus a bias, within the best groups.
/// A logit of minus infinity means never, whatever the bias. Choices are constants to backward.
struct Selection {
  private let choice: TokenChoice
  private let experts: Int
  private let kernels: UnsafePointer<moei_kernels>
  private let bias: UnsafePointer<Float>?  // [E]
  // Scratch of each thread.
  private let values: UnsafeMutablePointer<Float>  // [lanes, E]
  private let groupScores: UnsafeMutablePointer<Float>  // [lanes, groups]
  private let best: UnsafeMutablePointer<Float>  // [lanes, E]
  private let places: UnsafeMutablePointer<Int32>  // [lanes, E]

  init(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters) {
    choice = c.choice
    experts = c.experts
    kernels = context.kernels
    bias = parameters.data(.selectionBias).map { UnsafePointer($0) }
    let rows = c.choice.selectsByLogits ? 0 : context.lanes
    values = arena.take(Float.self, rows, c.experts)
    groupScores = arena.take(Float.self, rows, c.choice.groups?.count ?? 0)
    best = arena.take(Float.self, rows, c.experts)
    places = arena.take(Int32.self, rows, c.experts)
  }

  /// [E] for one token; `scores` are of its `logits`.
  func values(
    logits: UnsafePointer<Float>, scores: UnsafePointer<Float>, lane: Int
  ) -> UnsafePointer<Float> {
    if choice.selectsByLogits { return logits }
    let values = values + lane * experts
    values.update(from: choice.weights == .scores ? scores : logits, count: experts)
    if let bias { kernels.pointee.add(Int64(experts), bias, values) }
    for e in 0..<experts where logits[e] == -.infinity { values[e] = -.infinity }
    if let groups = choice.groups { exclude(groups, values, lane: lane) }
    return UnsafePointer(values)
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
}
