import CShims

// Routing in four steps: logits of all experts; a choice; admission, where experts have limited room; weights.

struct RouterForward {
  let c: Configuration
  let call: Call
  let routing: Routing
  let sums: UnsafeMutablePointer<BlockSums>  // [blocks]
  fileprivate let parameters: Parameters
  fileprivate let input: RouterInput
  private let tokens: RouteTokens
  private let weigh: WeighTokens
  private let admission: Admission?
  var measures: LogitMeasures { tokens.measures }

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, context: ContextPointer, x: UnsafePointer<Float>,
    parameters: Parameters, routing: Routing
  ) {
    self.c = c
    self.call = call
    self.routing = routing
    self.parameters = parameters
    let draws = c.draws(call, context.kernels)
    sums = arena.take(BlockSums.self, c.hasGate ? blocks(of: call.tokens) : 0)
    input = RouterInput(&arena, c, draws, context: context, x: x, parameters: parameters, routing: routing)
    let weigher = Weigher(
      &arena, c, context: context, parameters: parameters, routing: routing,
      mayLeaveSlotsEmpty: c.mayLeaveSlotsEmpty(call))
    let together = Choice.isTogether(c, call)
    tokens = RouteTokens(
      &arena, c, call, draws, context: context, x: x, input: input.rows, parameters: parameters, routing: routing,
      sums: sums, weigher: weigher, weighsNow: !together,
      // Who chooses for all tokens, or finds another expert for some, needs everything.
      keepsAll: together || c.capacity?.nextBest == true || c.admits(call) && weigher.mixer != nil)
    weigh = WeighTokens(tokens: tokens)
    admission =
      c.admits(call)
      ? Admission(&arena, c, call, draws, routing: routing, values: UnsafePointer(tokens.allValues)) : nil
  }

  func run(in context: ContextPointer) throws(Fault) {
    routing.start(call)
    try tokens.selection.check()
    try input.run(in: context, again: false)
    try tokens.choice.prepare(in: context)
    try tokens.run(in: context)
    if Choice.isTogether(c, call) {
      try tokens.choice.chooseTogether(in: context)
      try weigh.run(in: context)
    }
    if let admission {
      admission.run()
      try weigh.run(in: context)
    }
  }
}

extension RouterForward {
  /// What a training call leaves behind in the layer; once nothing can fail any more.
  func note() {
    input.norm?.note()
    guard call.training, c.warmup != nil else { return }
    parameters.data(.activeExperts)![0] = Float(c.activeExperts(call, parameters))
  }
}

/// What is added up over the tokens of one block; blocks are then added in their order.
struct BlockSums {
  var squares = 0.0  // of logsumexp
  var entropy = 0.0
}

/// Logits, and what follows from them token by token, for one block of tokens per item.
struct RouteTokens: Job {
  let c: Configuration
  let call: Call
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let selection: Selection
  let choice: Choice
  let allValues: UnsafeMutablePointer<Float>  // [T,E] selection values, where they are kept
  let measures: LogitMeasures
  private let logits: Logits
  private let shared: SharedGate
  private let weigher: Weigher
  private let weighsNow: Bool
  private let keepsAll: Bool
  private let sums: UnsafeMutablePointer<BlockSums>  // [blocks]
  private let z: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E], or [T,E]
  /// Per block the first token that cannot be routed, or -1, and why.
  private let failures: UnsafeMutablePointer<RoutingFailure>  // [blocks]

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, _ draws: Draws, context: ContextPointer,
    x: UnsafePointer<Float>, input: UnsafePointer<Float>, parameters: Parameters, routing: Routing,
    sums: UnsafeMutablePointer<BlockSums>, weigher: Weigher, weighsNow: Bool, keepsAll: Bool
  ) {
    self.c = c
    self.call = call
    self.routing = routing
    self.sums = sums
    self.weigher = weigher
    self.weighsNow = weighsNow
    self.keepsAll = keepsAll
    kernels = context.kernels
    logits = Logits(
      &arena, c, draws, context: context, parameters: parameters, input: input, tokens: call.tokens,
      active: c.activeExperts(call, parameters))
    measures = LogitMeasures(&arena, c, context: context, routing: routing)
    selection = Selection(&arena, c, context: context, parameters: parameters)
    shared = SharedGate(c, context: context, routing: routing, x: x, parameters: parameters)
    z = arena.take(
      Float.self, !c.hasGate ? 0 : keepsAll ? call.tokens : context.lanes * rowsPerBlock, c.experts)
    allValues = arena.take(Float.self, keepsAll ? call.tokens : 0, c.experts)
    choice = Choice(
      &arena,
      Choice.Inputs(
        c: c, call: call, context: context, x: x, routing: routing, selection: selection,
        values: allValues))
    failures = arena.take(RoutingFailure.self, blocks(of: call.tokens))
  }

  func run(in context: ContextPointer) throws(Fault) {
    let blocks = blocks(of: call.tokens)
    failures.initialize(repeating: RoutingFailure(), count: blocks)
    try context.run(blocks, self)
    try throwFailure()
  }

  func throwFailure() throws(Fault) {
    for block in 0..<blocks(of: call.tokens) where failures[block].token >= 0 { throw Self.fault(failures[block], c) }
  }

  static func fault(_ failure: RoutingFailure, _ c: Configuration) -> Fault {
    let (token, expert) = (failure.token, failure.expert)
    switch failure.reason {
    case .logit:
      return Fault(.notFinite, "x: token \(token) gets a logit that is NaN or plus infinity for expert \(expert)")
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
    let e = c.experts
    let tokens = rows(ofBlock: block, in: call.tokens)
    let z = z + (keepsAll ? tokens.lowerBound : lane * rowsPerBlock) * e  // [rows, E]
    shared.forward(tokens, logits.matmul, logits.scratch(lane))
    logits.fill(z, tokens, routing, lane, clean: measures.clean(lane))
    var ofBlock = BlockSums()
    for t in tokens {
      if !routing.isValid(t) {
        leaveOut(t)
        continue
      }
      guard c.hasGate else { continue }
      let row = z + (t - tokens.lowerBound) * e
      let bad = Int(kernels.pointee.first_not_finite(Int64(e), row))
      if bad < e {
        failures[block] = RoutingFailure(token: t, expert: bad)
        return
      }
      let inBlock = t - tokens.lowerBound
      measures.measure(
        t, row: inBlock, row, deviations: logits.learned(lane).map { UnsafePointer($0 + inBlock * e) }, lane)
      let p = routing.probabilities + t * e
      var (logSumExp, entropy): (Float, Float) = (0, 0)
      kernels.pointee.softmax(Int64(e), row, p, &logSumExp, &entropy)
      routing.logSumExp?[t] = logSumExp
      ofBlock.squares += Double(logSumExp) * Double(logSumExp)
      ofBlock.entropy += Double(entropy)
      if keepsAll { measureForAll(t, row, p) }
    }
    if c.hasGate { sums[block] = ofBlock }
    if let failure = choice.choose(
      TokenBlock(
        tokens: tokens, logits: z, coarse: logits.coarse(lane).map { UnsafePointer($0) },
        values: keepsAll ? allValues : nil, lane: lane))
    {
      failures[block] = failure
    } else if weighsNow {
      weigh(block, c.hasGate ? UnsafePointer(z) : nil, lane)
    }
  }

  /// What choices for all tokens together begin with; other choices write it themselves.
  private func measureForAll(_ t: Int, _ z: UnsafePointer<Float>, _ p: UnsafePointer<Float>) {
    let values = allValues + t * c.experts
    switch choice {
    case .experts: selection.fill(values, logits: z, probabilities: p)
    case .sinkhorn: for e in 0..<c.experts { values[e] = z[e] == -.infinity ? -.infinity : p[e] }
    default: break
    }
  }

  /// A token that is padding.
  private func leaveOut(_ t: Int) {
    (routing.indices + t * routing.slots).update(repeating: .noExpert, count: routing.slots)
    (routing.weights + t * routing.slots).update(repeating: 0, count: routing.slots)
    guard c.hasGate else { return }
    (routing.probabilities + t * c.experts).update(repeating: 0, count: c.experts)
    routing.logSumExp?[t] = 0
  }

  /// z: the block's logits; nil where they are not at hand, and the choices as they were.
  func weigh(_ block: Int, _ z: UnsafePointer<Float>?, _ lane: Int) {
    let tokens = rows(ofBlock: block, in: call.tokens)
    for t in tokens where routing.isValid(t) {
      if let given = call.givenWeights {
        let (own, weights) = (routing.indices + t * routing.slots, routing.weights + t * routing.slots)
        for slot in 0..<c.choices { weights[slot] = own[slot].isExpert ? given[t * c.choices + slot] : 0 }
      } else if !weigher.weigh(t, z.map { $0 + (t - tokens.lowerBound) * c.experts }, lane) {
        failures[block] = RoutingFailure(token: t, reason: .noWeight)
        return
      }
    }
  }

  /// Logits of a block, where they are kept.
  fileprivate func keptLogits(_ block: Int) -> UnsafePointer<Float>? {
    keepsAll ? UnsafePointer(z + block * rowsPerBlock * c.experts) : nil
  }
}

/// The weights once more, or at last, for choices that were made or moved after all logits were known.
struct WeighTokens: Job {
  let tokens: RouteTokens

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: tokens.call.tokens), self)
    try tokens.throwFailure()
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    tokens.weigh(block, tokens.keptLogits(block), lane.pointee.index)
  }
}

extension Configuration {
  /// Whether choices may go to other experts than those chosen.
  func movesChoices(_ call: Call) -> Bool { admits(call) && capacity?.nextBest == true }

  /// Experts that may be chosen. Training notes the number, and evaluation follows it.
  func activeExperts(_ call: Call, _ parameters: Parameters) -> Int {
    guard let warmup, let noted = parameters.data(.activeExperts) else { return experts }
    if call.training { return warmup.active(experts, step: call.step) }
    let wanted = noted[0]
    return wanted >= Float(experts) || wanted.isNaN ? experts : max(topK, Int(max(wanted, 0)))
  }

  /// Whether choices may be turned away.
  func admits(_ call: Call) -> Bool {
    call.givenIndices == nil && router != .expertChoice
      && (capacity != nil || exploration.randomSecond && call.training)
  }
}
