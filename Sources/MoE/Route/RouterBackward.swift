import CShims

/// From the gradients of the chosen weights, and of the losses, to those of the logits, the gates and x; for one chunk of
/// tokens, which are counted from its first.
struct RouterBackward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let losses: LossGradient
  private let parameters: Parameters
  private let dWeights: UnsafeMutablePointer<Float>  // [T,slots]
  private let dLogits: UnsafeMutablePointer<Float>  // [T,E]
  private let dCoarse: UnsafeMutablePointer<Float>  // [T,G]
  private let dNoise: UnsafeMutablePointer<Float>  // [T,E]
  private let dShared: UnsafeMutablePointer<Float>  // [T, gates of the shared experts]
  private let dFactors: UnsafeMutablePointer<Float>?  // [T,slots] shares of the expert scales' gradients
  private let dInput: UnsafeMutablePointer<Float>?  // [T,H] of what the gate read, where that is not x itself
  private let z: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E] logits, where weights or losses need them all
  private let needsLogits: Bool
  private let scoreShares: ScoreShares?
  private let smoothLoad: SmoothLoad?
  private let input: RouterInput
  private let logits: Logits
  private let shared: SharedGate
  private let weigher: Weigher
  private let weightsAreGiven: Bool
  private let measuresAgain: Bool

  /// x and dWeights of the whole call.
  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    tape: TapeContents, chunk: Range<Int>, losses: LossGradient, dWeights: UnsafeMutablePointer<Float>
  ) {
    let x = x + chunk.lowerBound * c.hidden
    var draws = tape.draws
    draws.firstToken = chunk.lowerBound
    var routing = tape.routing.part(chunk, c)
    measuresAgain = c.hasGate && !tape.keeps
    if !tape.keeps { routing.takeMeasures(&arena, c) }
    self.c = c
    self.parameters = parameters
    kernels = context.kernels
    self.routing = routing
    self.losses = losses.part(chunk, routing)
    self.dWeights = dWeights + chunk.lowerBound * c.slots
    weightsAreGiven = tape.weightsAreGiven
    let tokens = routing.tokens
    dLogits = arena.take(Float.self, c.hasGate ? tokens : 0, c.experts)
    dCoarse = arena.take(Float.self, c.router.hasCoarseGate ? tokens : 0, c.choice.groups?.count ?? 0)
    dShared = arena.take(Float.self, tokens, c.sharedGates)
    dFactors = c.choice.expertScale ? arena.take(Float.self, tokens, c.slots) : nil
    input = RouterInput(&arena, c, draws, context: context, x: x, parameters: parameters, routing: routing)
    dInput = input.own == nil ? nil : arena.take(Float.self, tokens, c.hidden)
    logits = Logits(
      &arena, c, draws, context: context, parameters: parameters, input: input.rows, tokens: tokens,
      active: tape.activeExperts)
    dNoise = arena.take(Float.self, logits.noiseGate == nil ? 0 : tokens, c.experts)
    shared = SharedGate(c, context: context, routing: routing, x: x, parameters: parameters)
    weigher = Weigher(
      &arena, c, context: context, parameters: parameters, routing: routing,
      mayLeaveSlotsEmpty: tape.mayLeaveSlotsEmpty)
    scoreShares = ScoreShares(&arena, c, context: context)
    smoothLoad = SmoothLoad(&arena, c, context: context, backward: true)
    needsLogits = weigher.mixer != nil || scoreShares != nil || smoothLoad != nil || measuresAgain
    z = arena.take(Float.self, needsLogits ? context.lanes * rowsPerBlock : 0, c.experts)
  }

  /// The gradients of logits for all tokens, then the gates' own, then what flows on to x where the gate read something else.
  func run(in context: ContextPointer) throws(Fault) {
    try input.run(in: context, again: true)
    try context.run(blocks(of: routing.tokens), self)
    try addGradient(logits.gate, dLogits, in: context)
    try addGradient(logits.coarseGate, dCoarse, in: context)
    try addGradient(logits.noiseGate, dNoise, in: context)
    try addGradient(shared.gate, dShared, in: context)
    if let dFactors, !weightsAreGiven {
      addExpertScaleGradient(dFactors, routing, to: parameters.grad(.expertScale)!)
    }
    if let dInput {
      try context.run(blocks(of: routing.tokens), GateInputGradient(router: self, dInput: dInput))
      try input.backward(dInput, in: context)
    }
  }

  private func addGradient(_ gate: Gate?, _ dz: UnsafePointer<Float>, in context: ContextPointer) throws(Fault) {
    guard let gate else { return }
    try context.run(
      (gate.hidden + GateGradient.width - 1) / GateGradient.width,
      GateGradient(
        gate: gate, routing: routing, dz: dz, tokens: routing.tokens, matmul: logits.matmul, kernels: kernels,
        logits: logits))
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
      let dz = dLogits + t * e
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
        hierarchy.split(dz, probabilities: routing.probabilities.of(t), du: dCoarse + t * hierarchy.groups)
      }
    }
    if !c.hasGate { return }
    logits.dropout?.apply(
      dLogits + tokens.lowerBound * e, first: tokens.lowerBound * e, count: tokens.count * e)
    if let noise = logits.noise, let learned {
      for t in tokens where routing.isRouted(t) {
        let row = (t - tokens.lowerBound) * e
        let ofLoads = routing.counts(t) ? smoothLoad?.dDeviations(lane) : nil
        noise.backward(
          t, dz: dLogits + t * e, dDeviations: ofLoads.map { UnsafePointer($0 + row) }, learned: learned + row,
          into: dNoise + t * e)
      }
    }
    if let smoothLoad {
      for t in tokens where routing.counts(t) {
        kernels.pointee.add(Int64(e), smoothLoad.dClean(lane) + (t - tokens.lowerBound) * e, dLogits + t * e)
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
    if c.hasGate { (dLogits + t * c.experts).update(repeating: 0, count: c.experts) }
    if let groups = logits.hierarchy?.groups { (dCoarse + t * groups).update(repeating: 0, count: groups) }
    if logits.noiseGate != nil { (dNoise + t * c.experts).update(repeating: 0, count: c.experts) }
    (dShared + t * c.sharedGates).update(repeating: 0, count: c.sharedGates)
  }

  /// Padding that counts in losses: nothing else depends on it.
  private func differentiateLosses(ofPadding t: Int) {
    (dShared + t * c.sharedGates).update(repeating: 0, count: c.sharedGates)
    guard c.hasGate else { return }
    let dz = dLogits + t * c.experts
    losses.setProbabilityGradient(t, dz)
    kernels.pointee.softmax_backward(Int64(c.experts), routing.probabilities.of(t), losses.logSumExpGradient(t), dz)
  }

  /// Logits of one token, from its weights' gradients and the losses'. z [E] are its logits where weights need them.
  private func differentiate(_ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int) {
    let e = c.experts
    let dw = dWeights + t * routing.slots
    if c.shared > 0 { shared.backward(t, dw, into: dShared + t * c.sharedGates) }
    losses.addToWeights(t, dw)
    let chosen = weigher.chosen(t, lane)
    guard c.hasGate else {
      // Equal weights of a table's experts, which have trained scales at most.
      if dFactors != nil && !weightsAreGiven { _ = back(chosen, t, nil, dw, lane) }
      return
    }
    let p = routing.probabilities.of(t)
    let dz = dLogits + t * e
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
    weigher.backward(chosen, z, dw: dw, dFactors: dFactors.map { $0 + t * routing.slots }, lane)
  }

  /// dx[t] += what comes through the gates that read x itself, for one block of tokens.
  func addInputGradient(_ block: Int, to dx: UnsafeMutablePointer<Float>, _ lane: UnsafeMutablePointer<Lane>) {
    let tokens = rows(ofBlock: block, in: routing.tokens)
    let scratch = logits.scratch(lane.pointee.index)
    shared.gate?.addInputGradient(tokens, dShared, to: dx, logits.matmul, scratch)
    if let dInput {
      let first = tokens.lowerBound * c.hidden
      kernels.pointee.add(Int64(tokens.count * c.hidden), dInput + first, dx + first)
    } else {
      addGateGradient(tokens, to: dx, scratch)
    }
  }

  fileprivate func addGateGradient(
    _ tokens: Range<Int>, to dr: UnsafeMutablePointer<Float>, _ scratch: UnsafeMutablePointer<Float>
  ) {
    logits.gate?.addInputGradient(tokens, dLogits, to: dr, logits.matmul, scratch)
    logits.coarseGate?.addInputGradient(tokens, dCoarse, to: dr, logits.matmul, scratch)
    logits.noiseGate?.addInputGradient(tokens, dNoise, to: dr, logits.matmul, scratch)
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
