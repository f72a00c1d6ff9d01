import CShims

/// From the gradients of the chosen weights, and of the losses, to those of the logits, the gates and x; for one chunk of
/// tokens, which are counted from its first.
struct RouterBackward: RouteStage, Job {
  let work: RouteWork
  private let losses: LossGradient
  private let weightsAreGiven: Bool
  private let measuresAgain: Bool
  private let needsLogits: Bool
  private let dWeights: UnsafeMutablePointer<Float>  // [T,slots]
  private let d: GateGradients
  private let z: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E] logits, where weights or losses need them all
  private let scoreShares: ScoreShares?
  private let smoothLoad: SmoothLoad?
  private let input: RouterInput
  private let logits: Logits
  private let shared: SharedGate
  private let weigher: Weigher

  /// Gradients of what the gates say, and of what their weights are multiplied by.
  private struct GateGradients {
    let logits: UnsafeMutablePointer<Float>  // [T,E]
    let coarse: UnsafeMutablePointer<Float>  // [T,G]
    let noise: UnsafeMutablePointer<Float>  // [T,E]
    let shared: UnsafeMutablePointer<Float>  // [T, gates of the shared experts]
    let factors: UnsafeMutablePointer<Float>?  // [T,slots] shares of the expert scales' gradients
    let input: UnsafeMutablePointer<Float>?  // [T,H] of what the gates read, where that is not x itself

    init(_ arena: inout Arena, _ work: RouteWork, learnsNoise: Bool, changesInput: Bool) {
      let (c, tokens) = (work.c, work.tokens)
      logits = arena.take(Float.self, c.hasGate ? tokens : 0, c.experts)
      coarse = arena.take(Float.self, c.router.hasCoarseGate ? tokens : 0, c.choice.groups?.count ?? 0)
      noise = arena.take(Float.self, learnsNoise ? tokens : 0, c.experts)
      shared = arena.take(Float.self, tokens, c.sharedGates)
      factors = c.choice.expertScale ? arena.take(Float.self, tokens, c.slots) : nil
      input = changesInput ? arena.take(Float.self, tokens, c.hidden) : nil
    }
  }

  /// `x` and `dWeights`: of the whole call.
  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    tape: TapeContents, chunk: Range<Int>, losses: LossGradient, dWeights: UnsafeMutablePointer<Float>
  ) {
    var draws = tape.draws
    draws.firstToken += chunk.lowerBound
    var routing = tape.routing.part(chunk, c)
    measuresAgain = c.hasGate && !tape.keeps
    if !tape.keeps { routing.takeMeasures(&arena, c) }
    work = RouteWork(
      c: c, matmul: context.matmul, lanes: context.lanes, x: x + chunk.lowerBound * c.hidden, parameters: parameters,
      routing: routing, draws: draws, activeExperts: tape.activeExperts, mayLeaveSlotsEmpty: tape.mayLeaveSlotsEmpty)
    self.losses = losses.part(chunk, routing)
    self.dWeights = dWeights + chunk.lowerBound * c.slots
    weightsAreGiven = tape.weightsAreGiven
    input = RouterInput(&arena, work)
    logits = Logits(&arena, work, input: input.rows)
    d = GateGradients(&arena, work, learnsNoise: logits.noiseGate != nil, changesInput: input.own != nil)
    shared = SharedGate(work)
    weigher = Weigher(&arena, work, context: context)
    scoreShares = ScoreShares(&arena, c, context: context)
    smoothLoad = SmoothLoad(&arena, c, context: context, backward: true)
    needsLogits = weigher.mixer != nil || scoreShares != nil || smoothLoad != nil || measuresAgain
    z = arena.take(Float.self, needsLogits ? context.lanes * rowsPerBlock : 0, c.experts)
  }

  /// The gradients of logits for all tokens, then the gates' own, then what flows on to x where the gate read something else.
  func run(in context: ContextPointer) throws(Fault) {
    try runLogits(in: context)
    try runGates(in: context)
  }

  func runLogits(in context: ContextPointer) throws(Fault) {
    try input.run(in: context, again: true)
    try context.run(blocks(of: routing.tokens), self)
  }

  /// What goes on from token to token, and so from rank to rank.
  func runGates(in context: ContextPointer) throws(Fault) {
    try addGradient(logits.gate, d.logits, in: context)
    try addGradient(logits.coarseGate, d.coarse, in: context)
    try addGradient(logits.noiseGate, d.noise, in: context)
    try addGradient(shared.gate, d.shared, in: context)
    if let factors = d.factors, !weightsAreGiven, let grad = parameters.grad(.expertScale) {
      addExpertScaleGradient(factors, routing, to: grad)
    }
    if let dInput = d.input {
      try context.run(blocks(of: routing.tokens), GateInputGradient(router: self, dInput: dInput))
      try input.backward(dInput, in: context)
    }
  }

  private func addGradient(_ gate: Gate?, _ dz: UnsafePointer<Float>, in context: ContextPointer) throws(Fault) {
    guard let gate, gate.weightGrad != nil || gate.biasGrad != nil else { return }
    try context.run(
      (gate.hidden + GateGradient.width - 1) / GateGradient.width,
      GateGradient(
        gate: gate, routing: routing, dz: dz, logits: logits))
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let e = c.experts
    let tokens = rows(ofBlock: block, in: routing.tokens)
    let z = z + lane * rowsPerBlock * e
    if needsLogits { logits.fill(z, tokens, routing, lane, clean: smoothLoad?.clean(lane)) }
    if measuresAgain { measure(tokens, z, lane) }
    differentiateLoads(tokens, z, lane)
    let learned = logits.learnedAgain(tokens, lane)
    for t in tokens {
      let row = t - tokens.lowerBound
      let dz = d.logits + t * e
      guard routing.isRouted(t) else {
        leaveOut(t)
        continue
      }
      if routing.isValid(t) {
        differentiate(t, weigher.mixer == nil ? nil : UnsafePointer(z + row * e), lane)
      } else {
        differentiateLosses(ofPadding: t)
      }
      guard c.hasGate else { continue }
      if routing.counts(t) {
        scoreShares?.backward(losses.shareSlopes(t), scale: losses.scale, logits: z + row * e, addTo: dz, lane)
      }
      if let hierarchy = logits.hierarchy {
        hierarchy.split(dz, probabilities: routing.probabilities.of(t), du: d.coarse + t * hierarchy.groups)
      }
    }
    if !c.hasGate { return }
    logits.dropout?.apply(
      d.logits + tokens.lowerBound * e, first: tokens.lowerBound * e, count: tokens.count * e)
    if let noise = logits.noise, let learned {
      for t in tokens where routing.isRouted(t) {
        let row = (t - tokens.lowerBound) * e
        let ofLoads = routing.counts(t) ? smoothLoad?.dDeviations(lane) : nil
        noise.backward(
          t, dz: d.logits + t * e, dDeviations: ofLoads.map { UnsafePointer($0 + row) }, learned: learned + row,
          into: d.noise + t * e)
      }
    }
    if let smoothLoad {
      for t in tokens where routing.counts(t) {
        kernels.pointee.add(Int64(e), smoothLoad.dClean(lane) + (t - tokens.lowerBound) * e, d.logits + t * e)
      }
    }
  }

  /// What forward had of the logits.
  private func measure(_ tokens: Range<Int>, _ z: UnsafePointer<Float>, _ lane: Int) {
    for t in tokens where routing.isRouted(t) {
      let (row, p) = (z + (t - tokens.lowerBound) * c.experts, routing.probabilities.of(t))
      var entropy: Float = 0
      kernels.pointee.softmax(Int64(c.experts), row, p, routing.logSumExp! + t, &entropy)
      weigher.gather(t, logits: row, probabilities: p, lane)
    }
  }

  /// Gradients of smooth loads, which pass the noise by, in the thread's memory.
  private func differentiateLoads(_ tokens: Range<Int>, _ z: UnsafePointer<Float>, _ lane: Int) {
    guard let smoothLoad, let noise = logits.noise, let slopes = losses.loadSlopes else { return }
    for t in tokens where routing.counts(t) {
      let row = t - tokens.lowerBound
      let token = SmoothLoad.Token(
        number: t, row: row, z: z + row * c.experts,
        deviations: logits.learned(lane).map { UnsafePointer($0 + row * c.experts) })
      smoothLoad.backward(slopes, scale: losses.scale, token, noise: noise, lane)
    }
  }

  /// Padding: nothing depends on it.
  private func leaveOut(_ t: Int) {
    if c.hasGate { (d.logits + t * c.experts).update(repeating: 0, count: c.experts) }
    if let groups = logits.hierarchy?.groups { (d.coarse + t * groups).update(repeating: 0, count: groups) }
    if logits.noiseGate != nil { (d.noise + t * c.experts).update(repeating: 0, count: c.experts) }
    (d.shared + t * c.sharedGates).update(repeating: 0, count: c.sharedGates)
  }

  /// Padding that counts in losses: nothing else depends on it.
  private func differentiateLosses(ofPadding t: Int) {
    (d.shared + t * c.sharedGates).update(repeating: 0, count: c.sharedGates)
    guard c.hasGate else { return }
    let dz = d.logits + t * c.experts
    losses.setProbabilityGradient(t, dz)
    kernels.pointee.softmax_backward(Int64(c.experts), routing.probabilities.of(t), losses.logSumExpGradient(t), dz)
  }

  /// Logits of one token, from its weights' gradients and the losses'. z [E] are its logits where weights need them.
  private func differentiate(_ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int) {
    let e = c.experts
    let dw = dWeights + t * routing.slots
    if c.shared > 0 { shared.backward(t, dw, into: d.shared + t * c.sharedGates) }
    losses.addToWeights(t, dw)
    let chosen = weigher.chosen(t, lane)
    guard c.hasGate else {
      // Equal weights of a table's experts, which have trained scales at most.
      if d.factors != nil && !weightsAreGiven { _ = back(chosen, t, nil, dw, lane) }
      return
    }
    let p = routing.probabilities.of(t)
    let dz = d.logits + t * e
    // Into dz first the gradient with respect to the probabilities p: dense from the losses ...
    losses.setProbabilityGradient(t, dz)
    if weightsAreGiven || chosen.count == 0 {
      kernels.pointee.softmax_backward(Int64(e), p, losses.logSumExpGradient(t), dz)
      return
    }
    let (v, dv) = back(chosen, t, z, dw, lane)
    // ... and from the weights, where they are made from probabilities.
    let throughSoftmax = weigher.chosenValues.passThroughSoftmax
    if throughSoftmax { for i in 0..<chosen.count { dz[Int(chosen.indices[i])] += dv[i] } }
    // Softmax: dz_e = p_e (dp_e - sum over j of dp_j p_j), and the z-loss, whose gradient is a multiple of p.
    kernels.pointee.softmax_backward(Int64(e), p, losses.logSumExpGradient(t), dz)
    // Other values reach the chosen logits directly, or those of a softmax of their own.
    if let mixer = weigher.mixer, let z {
      mixer.backward(dv, z, chosen.indices, chosen.count, addTo: dz, lane)
    } else if !throughSoftmax {
      weigher.chosenValues.differentiate(dv, v: v, logits: chosen.inputs, chosen.count)
      for i in 0..<chosen.count { dz[Int(chosen.indices[i])] += dv[i] }
    }
  }

  private func back(
    _ chosen: Weigher.Chosen, _ t: Int, _ z: UnsafePointer<Float>?, _ dw: UnsafePointer<Float>, _ lane: Int
  ) -> (v: UnsafePointer<Float>, dv: UnsafeMutablePointer<Float>) {
    weigher.backward(chosen, z, dw: dw, dFactors: d.factors.map { $0 + t * routing.slots }, lane)
  }

  /// dx[t] += what comes through the gates that read x itself, for one block of tokens.
  func addInputGradient(_ block: Int, to dx: UnsafeMutablePointer<Float>, _ lane: UnsafeMutablePointer<Lane>) {
    let tokens = rows(ofBlock: block, in: routing.tokens)
    let scratch = logits.scratch(lane.pointee.index)
    shared.gate?.addInputGradient(tokens, d.shared, to: dx, logits.matmul, scratch)
    if let dInput = d.input {
      let first = tokens.lowerBound * c.hidden
      kernels.pointee.add(Int64(tokens.count * c.hidden), dInput + first, dx + first)
    } else {
      addGateGradient(tokens, to: dx, scratch)
    }
  }

  fileprivate func addGateGradient(
    _ tokens: Range<Int>, to dr: UnsafeMutablePointer<Float>, _ scratch: UnsafeMutablePointer<Float>
  ) {
    logits.gate?.addInputGradient(tokens, d.logits, to: dr, logits.matmul, scratch)
    logits.coarseGate?.addInputGradient(tokens, d.coarse, to: dr, logits.matmul, scratch)
    logits.noiseGate?.addInputGradient(tokens, d.noise, to: dr, logits.matmul, scratch)
  }

  fileprivate func scratch(_ lane: Int) -> UnsafeMutablePointer<Float> { logits.scratch(lane) }
}

/// dr of what the gate read, where that is not x itself.
private struct GateInputGradient: Job {
  let router: RouterBackward
  let dInput: UnsafeMutablePointer<Float>  // [T,H]

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let tokens = rows(ofBlock: block, in: router.routing.tokens)
    let h = router.c.hidden
    (dInput + tokens.lowerBound * h).update(repeating: 0, count: tokens.count * h)
    router.addGateGradient(tokens, to: dInput, router.scratch(lane.pointee.index))
  }
}
