import CShims

/// Shortens a token's choices: to the fewest whose scores add up to a share (top-p), to those above a threshold, or, for
/// all tokens of the call alike, to a number that follows the mean norm of x.
struct DynamicChoice {
  private let plan: DynamicK
  private let c: Configuration
  private let kernels: UnsafePointer<moei_kernels>
  private let routing: Routing
  private let x: UnsafePointer<Float>  // [T,H]
  private let count: UnsafeMutablePointer<Int>  // 1: experts of every token, by complexity
  private let chosen: UnsafeMutablePointer<Float>  // [lanes, K]
  private let scores: UnsafeMutablePointer<Float>  // [lanes, K]
  private let chosenValues: ChosenValues

  init(
    _ arena: inout Arena, _ c: Configuration, _ plan: DynamicK, context: ContextPointer, routing: Routing,
    x: UnsafePointer<Float>
  ) {
    self.plan = plan
    self.c = c
    kernels = context.kernels
    self.routing = routing
    self.x = x
    count = arena.take(Int.self, 1)
    chosen = arena.take(Float.self, context.lanes, c.topK)
    scores = arena.take(Float.self, context.lanes, c.topK)
    var choice = c.choice
    choice.weights = .scores  // what is added up or compared, whatever weighs
    chosenValues = ChosenValues(choice: choice, kernels: context.kernels)
  }

  /// Norms are added up in double, in token order.
  func prepare(in context: ContextPointer) throws(Fault) {
    // Padding that counts in losses keeps all of its choices.
    count.pointee = c.topK
    guard plan.rule == .complexity, routing.validCount.pointee > 0 else { return }
    var total = 0.0
    for t in 0..<routing.tokens where routing.isValid(t) {
      total += Double(kernels.pointee.dot(Int64(c.hidden), x + t * c.hidden, x + t * c.hidden)).squareRoot()
    }
    let mean = total / Double(routing.validCount.pointee)
    let wanted = mean / Double(plan.value)
    // NaN and infinite x: their logits have been refused, or will be.
    count.pointee = wanted < Double(c.topK) ? max(plan.least, Int(wanted)) : c.topK
  }

  func shorten(
    _ indices: UnsafeMutablePointer<Int32>, logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>,
    _ lane: Int
  ) {
    if plan.rule == .complexity {
      for slot in count.pointee..<c.topK { indices[slot] = .noExpert }
      return
    }
    let (chosen, scores) = (chosen + lane * c.topK, scores + lane * c.topK)
    let source = chosenValues.source(logits: z, probabilities: p)
    for slot in 0..<c.topK { chosen[slot] = source[Int(indices[slot])] }
    chosenValues.fill(scores, chosen, c.topK)
    var sum: Float = 0
    for slot in 0..<c.topK {
      let goesOn = plan.rule == .topP ? sum < plan.value : scores[slot] >= plan.value
      sum += scores[slot]
      if slot >= plan.least && !goesOn { indices[slot] = .noExpert }
    }
  }
}
