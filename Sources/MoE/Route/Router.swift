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
  let chosen: UnsafeMutablePointer<Float>  // [lanes, K] logits of the chosen experts
  /// Per block the first token that cannot be routed, or -1, and why.
  let failures: UnsafeMutablePointer<Failure>  // [blocks]
  let products: UnsafeMutablePointer<Float>  // scratch of the matrix products
  let floatsPerLane: Int

  struct Failure {
    var token = -1
    var expert = 0
    var tooFewLeft = false
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
    chosen = arena.take(Float.self, context.lanes, c.topK)
    failures = arena.take(Failure.self, blocks(of: routing.tokens))
    floatsPerLane = matmul.scratch(tokens: routing.tokens, width: c.hidden)
    products = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    let blocks = blocks(of: routing.tokens)
    failures.initialize(repeating: Failure(), count: blocks)
    try context.run(blocks, self)
    for block in 0..<blocks where failures[block].token >= 0 {
      let failure = failures[block]
      if failure.tooFewLeft {
        throw Fault(
          .notFinite, "token \(failure.token): fewer than top_k = \(c.topK) experts have a logit above minus infinity")
      }
      throw Fault(
        .notFinite, "x: token \(failure.token) gets a logit that is NaN or plus infinity for expert \(failure.expert)")
    }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let (h, e) = (c.hidden, c.experts)
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
      let indices = routing.indices + t * c.topK
      let chosen = chosen + lane * c.topK
      kernels.pointee.top_k(Int64(e), Int64(c.topK), row, indices, chosen)
      if chosen[c.topK - 1] == -.infinity {
        failures[block] = Failure(token: t, tooFewLeft: true)
        return
      }
      let p = routing.probabilities + t * e
      kernels.pointee.softmax(Int64(e), row, p, routing.logSumExp + t, entropy + t)
      weigh(t, probabilities: p, chosen: chosen)
    }
  }

  /// Weights of token t's chosen experts.
  private func weigh(_ t: Int, probabilities p: UnsafePointer<Float>, chosen: UnsafePointer<Float>) {
    let k = c.topK
    let indices = routing.indices + t * k
    let weights = routing.weights + t * k
    switch c.routerWeights {
    case .scores:
      for slot in 0..<k { weights[slot] = p[Int(indices[slot])] }
      if c.normalize {
        let total = chosenTotal(weights, k)
        for slot in 0..<k { weights[slot] /= total }
      }
    case .topKSoftmax:
      var unused: (lse: Float, entropy: Float) = (0, 0)
      kernels.pointee.softmax(Int64(k), chosen, weights, &unused.lse, &unused.entropy)
    }
  }
}

/// Sum of the chosen probabilities, in slot order. At least 1/E: the best expert's share.
private func chosenTotal(_ probabilities: UnsafePointer<Float>, _ k: Int) -> Float {
  var total: Float = 0
  for slot in 0..<k { total += probabilities[slot] }
  return total
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
  let dScores: UnsafeMutablePointer<Float>  // [lanes, K]
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
    dScores = arena.take(Float.self, context.lanes, c.topK)
    floatsPerLane = matmul.scratch(tokens: routing.tokens, width: max(c.experts, RouterWeightGradient.width))
    products = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  /// dLogits for all tokens, then the router's own gradients.
  func run(in context: ContextPointer, weightGrad: UnsafeMutablePointer<Float>, biasGrad: UnsafeMutablePointer<Float>?)
    throws(Fault)
  {
    try context.run(blocks(of: routing.tokens), self)
    try RouterWeightGradient(router: self, weightGrad: weightGrad, biasGrad: biasGrad)
      .run(in: context)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let (e, k) = (c.experts, c.topK)
    for t in rows(ofBlock: block, in: routing.tokens) {
      let p = routing.probabilities + t * e
      let w = routing.weights + t * k
      let dw = dWeights + t * k
      let indices = routing.indices + t * k
      let dz = dLogits + t * e

      // Into dz first the gradient with respect to the probabilities p: dense from the balance loss ...
      let ds = dScores + lane * k
      losses.setProbabilityGradient(dz, count: e)
      // ... and from the weights, where they are probabilities.
      if c.routerWeights == .scores {
        scoreGradient(w, dw, p, indices, ds)
        for slot in 0..<k { dz[Int(indices[slot])] += ds[slot] }
      }
      // Softmax: dz_e = p_e (dp_e - sum over j of dp_j p_j), and the z-loss, whose gradient is a multiple of p.
      kernels.pointee.softmax_backward(Int64(e), p, losses.logSumExpGradient(routing.logSumExp[t]), dz)
      // Weights that are a softmax over the chosen logits reach those logits directly.
      if c.routerWeights == .topKSoftmax {
        var mean: Float = 0
        for slot in 0..<k { mean += dw[slot] * w[slot] }
        for slot in 0..<k { dz[Int(indices[slot])] += w[slot] * (dw[slot] - mean) }
      }
    }
  }

  /// ds: with w = s / S, S = sum of s:  ds_k = (dw_k - sum over j of dw_j w_j) / S;  with w = s:  ds = dw.
  private func scoreGradient(
    _ w: UnsafePointer<Float>, _ dw: UnsafePointer<Float>, _ p: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>,
    _ ds: UnsafeMutablePointer<Float>
  ) {
    let k = c.topK
    if !c.normalize {
      ds.update(from: dw, count: k)
      return
    }
    for slot in 0..<k { ds[slot] = p[Int(indices[slot])] }
    let total = chosenTotal(ds, k)
    var mean: Float = 0
    for slot in 0..<k { mean += dw[slot] * w[slot] }
    for slot in 0..<k { ds[slot] = (dw[slot] - mean) / total }
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
