import CShims

// The linear gate:  logits = x W_r^T + b_r;  choose K experts;  weigh them.

/// Routes one block of tokens per item.
struct RouterForward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let matmul: Matmul
  let x: UnsafePointer<Float>  // [T,H]
  let weight: UnsafePointer<Float>  // [E,H]
  let bias: UnsafePointer<Float>?  // [E]
  let routing: Routing
  let entropy: UnsafeMutablePointer<Float>  // [T]
  let logits: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E]
  let allScores: UnsafeMutablePointer<Float>  // [lanes, E]
  let values: UnsafeMutablePointer<Float>  // [lanes, K] of the chosen experts
  let selection: Selection
  let chosenValues: ChosenValues
  let weighing: Weighing
  /// Per block the first token that cannot be routed, or -1, and why.
  let failures: UnsafeMutablePointer<Failure>  // [blocks]
  let products: UnsafeMutablePointer<Float>  // scratch of the matrix products
  let floatsPerLane: Int

  struct Failure {
    enum Reason: Int32 { case logit, bias, tooFewLeft, noWeight }
    var token = -1
    var expert = 0
    var reason = Reason.logit
  }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    routing: Routing
  ) {
    self.c = c
    kernels = context.kernels
    matmul = context.matmul
    self.x = x
    weight = UnsafePointer(parameters.data(.routerWeight)!)
    bias = parameters.data(.routerBias).map { UnsafePointer($0) }
    self.routing = routing
    entropy = arena.take(Float.self, routing.tokens)
    logits = arena.take(Float.self, context.lanes * rowsPerBlock, c.experts)
    allScores = arena.take(Float.self, c.choice.selectsByLogits ? 0 : context.lanes, c.experts)
    values = arena.take(Float.self, context.lanes, c.topK)
    selection = Selection(&arena, c, context: context, parameters: parameters)
    chosenValues = ChosenValues(choice: c.choice, kernels: context.kernels)
    weighing = Weighing(c, parameters: parameters)
    failures = arena.take(Failure.self, blocks(of: routing.tokens))
    floatsPerLane = matmul.scratch(tokens: routing.tokens, width: c.hidden)
    products = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    let blocks = blocks(of: routing.tokens)
    failures.initialize(repeating: Failure(), count: blocks)
    try context.run(blocks, self)
    for block in 0..<blocks where failures[block].token >= 0 {
      throw fault(failures[block])
    }
  }

  private func fault(_ failure: Failure) -> Fault {
    let (token, expert) = (failure.token, failure.expert)
    switch failure.reason {
    case .logit:
      return Fault(.notFinite, "x: token \(token) gets a logit that is NaN or plus infinity for expert \(expert)")
    case .bias:
      return Fault(
        .notFinite, "router.selection_bias: the score of token \(token) for expert \(expert) is NaN or plus infinity")
    case .tooFewLeft:
      return Fault(
        .notFinite, "token \(token): fewer than top_k = \(c.topK) experts have a logit above minus infinity")
    case .noWeight:
      return Fault(
        .notFinite, "token \(token): the divisor of its weights is 0 or no number; see normalize_epsilon")
    }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let (h, e, k) = (c.hidden, c.experts, c.topK)
    let tokens = rows(ofBlock: block, in: routing.tokens)
    let z = logits + lane * rowsPerBlock * e  // [rows, E]
    for row in 0..<tokens.count {
      if let bias { (z + row * e).update(from: bias, count: e) } else { (z + row * e).update(repeating: 0, count: e) }
    }
    matmul.addABt(
      tokens.count, e, h, x + tokens.lowerBound * h, lda: h, weight, ldb: h, z, ldc: e, products + lane * floatsPerLane)

    for t in tokens {
      let row = z + (t - tokens.lowerBound) * e
      let bad = Int(kernels.pointee.first_not_finite(Int64(e), row))
      if bad < e {
        failures[block] = Failure(token: t, expert: bad)
        return
      }
      let p = routing.probabilities + t * e
      kernels.pointee.softmax(Int64(e), row, p, routing.logSumExp + t, entropy + t)
      let by = selection.values(logits: row, scores: scores(row, p, lane), lane: lane)
      let broken = by == UnsafePointer(row) ? e : Int(kernels.pointee.first_not_finite(Int64(e), by))
      if broken < e {
        failures[block] = Failure(token: t, expert: broken, reason: .bias)
        return
      }
      let indices = routing.indices + t * k
      let values = values + lane * k
      kernels.pointee.top_k(Int64(e), Int64(k), by, indices, values)
      if values[k - 1] == -.infinity {
        failures[block] = Failure(token: t, reason: .tooFewLeft)
        return
      }
      let chosen = routing.chosenLogits + t * k
      for slot in 0..<k { chosen[slot] = row[Int(indices[slot])] }
      chosenValues.fill(values, logits: chosen, probabilities: p, indices: indices, k)
      if !weighing.weigh(values, indices, k, into: routing.weights + t * k) {
        failures[block] = Failure(token: t, reason: .noWeight)
        return
      }
    }
  }

  /// The scores of all experts, where the choice goes by them.
  private func scores(
    _ z: UnsafePointer<Float>, _ p: UnsafePointer<Float>, _ lane: Int
  ) -> UnsafePointer<Float> {
    if c.choice.selectsByLogits { return z }
    let s = allScores + lane * c.experts
    switch c.choice.score {
    case .softmax: return p
    case .identity: return z
    case .sigmoid: kernels.pointee.sigmoid(Int64(c.experts), z, s)
    case .sqrtSoftplus: kernels.pointee.sqrt_softplus(Int64(c.experts), z, s)
    }
    return UnsafePointer(s)
  }
}

// MARK: backward

/// From the gradients of the chosen weights, and of the losses, to the gradients of logits, router and x.
struct RouterBackward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let matmul: Matmul
  let x: UnsafePointer<Float>  // [T,H]
  let weight: UnsafePointer<Float>  // [E,H]
  let routing: Routing
  let losses: LossGradient
  let dWeights: UnsafePointer<Float>  // [T,K]
  let dLogits: UnsafeMutablePointer<Float>  // [T,E]
  let values: UnsafeMutablePointer<Float>  // [lanes, K] of the chosen experts
  let dValues: UnsafeMutablePointer<Float>  // [lanes, K]
  let dFactors: UnsafeMutablePointer<Float>?  // [T,K] shares of the expert scales' gradients
  let chosenValues: ChosenValues
  let weighing: Weighing
  let products: UnsafeMutablePointer<Float>  // scratch of the matrix products
  let floatsPerLane: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    routing: Routing, losses: LossGradient, dWeights: UnsafePointer<Float>
  ) {
    self.c = c
    kernels = context.kernels
    matmul = context.matmul
    self.x = x
    weight = UnsafePointer(parameters.data(.routerWeight)!)
    self.routing = routing
    self.losses = losses
    self.dWeights = dWeights
    dLogits = arena.take(Float.self, routing.tokens, c.experts)
    values = arena.take(Float.self, context.lanes, c.topK)
    dValues = arena.take(Float.self, context.lanes, c.topK)
    dFactors = c.choice.expertScale ? arena.take(Float.self, routing.tokens, c.topK) : nil
    chosenValues = ChosenValues(choice: c.choice, kernels: context.kernels)
    weighing = Weighing(c, parameters: parameters)
    floatsPerLane = matmul.scratch(tokens: routing.tokens, width: max(c.experts, RouterWeightGradient.width))
    products = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  /// dLogits for all tokens, then the router's own gradients.
  func run(in context: ContextPointer, parameters: Parameters, dispatch: Dispatch) throws(Fault) {
    try context.run(blocks(of: routing.tokens), self)
    try RouterWeightGradient(
      router: self, weightGrad: parameters.grad(.routerWeight)!, biasGrad: parameters.grad(.routerBias)
    ).run(in: context)
    if let dFactors {
      addExpertScaleGradient(dFactors, dispatch, experts: c.experts, to: parameters.grad(.expertScale)!)
    }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let (e, k) = (c.experts, c.topK)
    for t in rows(ofBlock: block, in: routing.tokens) {
      let p = routing.probabilities + t * e
      let chosen = routing.chosenLogits + t * k
      let indices = routing.indices + t * k
      let dz = dLogits + t * e
      let (v, dv) = (values + lane * k, dValues + lane * k)
      chosenValues.fill(v, logits: chosen, probabilities: p, indices: indices, k)
      weighing.backward(v, dWeights + t * k, indices, k, into: dv, dFactors: dFactors.map { $0 + t * k })

      // Into dz first the gradient with respect to the probabilities p: dense from the balance loss ...
      losses.setProbabilityGradient(dz, count: e)
      // ... and from the weights, where they are made from probabilities.
      if chosenValues.passThroughSoftmax {
        for slot in 0..<k { dz[Int(indices[slot])] += dv[slot] }
      }
      // Softmax: dz_e = p_e (dp_e - sum over j of dp_j p_j), and the z-loss, whose gradient is a multiple of p.
      kernels.pointee.softmax_backward(Int64(e), p, losses.logSumExpGradient(routing.logSumExp[t]), dz)
      // Other values reach the chosen logits directly.
      if !chosenValues.passThroughSoftmax {
        chosenValues.differentiate(dv, v: v, logits: chosen, k)
        for slot in 0..<k { dz[Int(indices[slot])] += dv[slot] }
      }
    }
  }

  /// dx[t] += dLogits[t] W_r for one block of tokens.
  func addInputGradient(_ block: Int, to dx: UnsafeMutablePointer<Float>, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, e) = (c.hidden, c.experts)
    let tokens = rows(ofBlock: block, in: routing.tokens)
    matmul.addAB(
      tokens.count, h, e, dLogits + tokens.lowerBound * e, lda: e, weight, ldb: h, dx + tokens.lowerBound * h, ldc: h,
      products + lane.pointee.index * floatsPerLane)
  }
}

/// dW_r += dlogits^T x, tokens in ascending order, some features of x per item;  db_r += the sum of dlogits.
struct RouterWeightGradient: Job {
  let router: RouterBackward
  let weightGrad: UnsafeMutablePointer<Float>  // [E,H]
  let biasGrad: UnsafeMutablePointer<Float>?  // [E]

  static var width: Int { 256 }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run((router.c.hidden + Self.width - 1) / Self.width, self)
  }

  func run(_ part: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, e) = (router.c.hidden, router.c.experts)
    let column = part * Self.width
    for block in 0..<blocks(of: router.routing.tokens) {
      let tokens = rows(ofBlock: block, in: router.routing.tokens)
      let dz = router.dLogits + tokens.lowerBound * e
      router.matmul.addAtB(
        e, min(Self.width, h - column), tokens.count, dz, lda: e, router.x + tokens.lowerBound * h + column, ldb: h,
        weightGrad + column, ldc: h, router.products + lane.pointee.index * router.floatsPerLane)
      if let biasGrad, part == 0 {
        for row in 0..<tokens.count { router.kernels.pointee.add(Int64(e), dz + row * e, biasGrad) }
      }
    }
  }
}
