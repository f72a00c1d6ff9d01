import CShims

// Routing in four steps: logits of all experts; a choice; admission, where experts have limited room; weights.

struct RouterForward: RouteStage {
  let sums: UnsafeMutablePointer<BlockSums>  // [blocks]
  private let input: RouterInput
  let tokenSums: TokenSums
  private let tokens: RouteTokens
  private let probabilities: UnsafeMutablePointer<Float>  // [lanes,E] of one token, for weights made of other logits
  private let admission: Admission?
  var entropies: UnsafePointer<Float>? { tokens.entropies.map { UnsafePointer($0) } }
  var firstTaken: UnsafePointer<Int32>? { tokens.firstTaken.map { UnsafePointer($0) } }

  /// `slopes` where there will be a backward.
  init(
    _ arena: inout Arena, _ work: RouteWork, _ call: Call, context: ContextPointer, statistics: CallStatistics,
    slopes: LossSlopes?
  ) {
    let (c, routing) = (work.c, work.routing)
    sums = arena.take(BlockSums.self, c.hasGate ? blocks(of: call.tokens) : 0)
    input = RouterInput(&arena, work)
    tokens = RouteTokens(&arena, work, call, context: context, input: input.rows, sums: sums)
    tokenSums = TokenSums(
      &arena, c, call, kernels: work.kernels, routing: routing, measures: tokens.measures, statistics: statistics,
      slopes: slopes)
    probabilities = arena.take(Float.self, c.weighsFromLogits(call) ? work.lanes : 0, c.experts)
    admission =
      c.admits(call) ? Admission(&arena, c, call, work.draws, routing: routing, values: tokens.values) : nil
  }

  var work: RouteWork { tokens.work }

  /// Fills the arrays by sequence, where they are wanted.
  @inline(never) func run(in context: ContextPointer, _ bySequence: SequenceDetails) throws(Fault) {
    let call = tokens.call
    routing.start(call)
    tokenSums.start(bySequence)
    try tokens.selection.check()
    try input.run(in: context, again: false)
    try tokens.choice.prepare(in: context)
    try tokens.run(in: context, tokenSums, bySequence)
    if Choice.isTogether(c, call) {
      try tokens.choice.chooseTogether(in: context)
      try weigh(in: context)
    }
    if let admission {
      try admission.run()
      try weigh(in: context)
    }
  }

  @inline(never) private func weigh(in context: ContextPointer) throws(Fault) {
    try WeighTokens(tokens: tokens, probabilities: probabilities).run(in: context)
  }
}

/// What is added up over the tokens of one block; blocks are then added in their order.
struct BlockSums {
  var squares = 0.0  // of logsumexp
  var entropy = 0.0

  mutating func add(_ other: BlockSums) {
    squares += other.squares
    entropy += other.entropy
  }
}

/// Logits, and what follows from them token by token, for one block of tokens per item. Blocks come in waves, one for each
/// thread: what is added up over tokens follows after each wave, in token order, and its [wave,E] arrays serve the next.
struct RouteTokens: RouteStage, Job {
  let work: RouteWork
  let call: Call
  let selection: Selection
  let choice: Choice
  /// What is chosen by: of a wave where experts choose, of all tokens for Sinkhorn's iteration and the next best, or else
  /// of none.
  let values: TokenRows
  let measures: LogitMeasures
  /// Where experts choose, the most probable of those that took a token, or none; nil where no loss asks.
  let firstTaken: UnsafeMutablePointer<Int32>?  // [T]
  fileprivate let logits: Logits
  private let shared: SharedGate
  fileprivate let weigher: Weigher
  private let sums: UnsafeMutablePointer<BlockSums>  // [blocks]
  /// [T] Where the tokens are some of several ranks', whose blocks are others.
  let entropies: UnsafeMutablePointer<Float>?
  private let z: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E]
  /// Per block the first token that cannot be routed, or -1, and why.
  fileprivate let failures: UnsafeMutablePointer<RoutingFailure>  // [blocks]
  private var firstBlock = 0  // of the wave
  private var isGated = false

  init(
    _ arena: inout Arena, _ work: RouteWork, _ call: Call, context: ContextPointer, input: UnsafePointer<Float>,
    sums: UnsafeMutablePointer<BlockSums>
  ) {
    self.work = work
    self.call = call
    self.sums = sums
    let (c, routing) = (work.c, work.routing)
    weigher = Weigher(&arena, work, context: context)
    logits = Logits(&arena, work, input: input)
    measures = LogitMeasures(
      &arena, c, context: context, routing: routing,
      rows: call.ranks == nil ? min(call.tokens, context.waveTokens) : call.tokens)
    entropies = call.ranks != nil && c.hasGate ? arena.take(Float.self, call.tokens) : nil
    selection = Selection(&arena, c, context: context, parameters: work.parameters)
    shared = SharedGate(work)
    z = arena.take(Float.self, c.hasGate ? context.waveTokens : 0, c.experts)
    let together = Choice.isTogether(c, call)
    let keepsValues = c.movesChoices(call) || together && c.router.keepsValues
    values = TokenRows(
      &arena, rows: keepsValues ? call.tokens : together ? min(call.tokens, context.waveTokens) : 0, experts: c.experts)
    firstTaken =
      c.router.listsAllExperts && c.hasLossesOfFirstChoices ? arena.take(Int32.self, call.tokens) : nil
    choice = Choice(
      &arena,
      Choice.Inputs(
        c: c, call: call, context: context, x: work.x, routing: routing, selection: selection, values: values))
    failures = arena.take(RoutingFailure.self, blocks(of: call.tokens))
  }

  func run(in context: ContextPointer, _ tokenSums: TokenSums, _ bySequence: SequenceDetails) throws(Fault) {
    let blocks = blocks(of: call.tokens)
    failures.initialize(repeating: RoutingFailure(), count: blocks)
    for first in stride(from: 0, to: blocks, by: context.lanes) {
      var wave = self
      wave.firstBlock = first
      if blocks == 1 && logits.areSharedOut(call.tokens, threads: context.lanes) {
        // The one block's item is the caller's, whose number is 0.
        let outputs = GateOutputs(gate: logits.gate!, tokens: 0..<call.tokens, z: z(0), logits: logits)
        try context.run(chunks(of: outputs.gate.outputs), outputs)
        wave.isGated = true
      }
      let end = min(first + context.lanes, blocks)
      try context.run(end - first, wave)
      try throwFailure(first..<end)
      let tokens = first * rowsPerBlock..<min(end * rowsPerBlock, call.tokens)
      if call.ranks == nil { tokenSums.add(tokens, bySequence) }
      try choice.offer(tokens)
    }
  }

  func throwFailure(_ blocks: Range<Int>) throws(Fault) {
    for block in blocks where failures[block].token >= 0 {
      if case .logit = failures[block].reason, let fault = logits.fault() { throw fault }
      throw Self.fault(failures[block], c)
    }
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

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let e = c.experts
    let block = firstBlock + item
    let tokens = rows(ofBlock: block, in: call.tokens)
    let z = z(lane)
    shared.forward(tokens, logits.matmul, logits.scratch(lane))
    logits.fill(z, tokens, routing, lane, clean: measures.clean(lane), isGated: isGated)
    var ofBlock = BlockSums()
    for t in tokens {
      if !routing.isValid(t) {
        leaveOut(t)
        if !routing.isRouted(t) { continue }
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
      let p = routing.probabilities.of(t)
      var (logSumExp, entropy): (Float, Float) = (0, 0)
      kernels.pointee.softmax(Int64(e), row, p, &logSumExp, &entropy)
      routing.logSumExp?[t] = logSumExp
      entropies?[t] = entropy
      if routing.counts(t) {
        ofBlock.squares += Double(logSumExp) * Double(logSumExp)
        ofBlock.entropy += Double(entropy)
      }
      choice.note(t, logits: row, probabilities: p)
    }
    if c.hasGate { sums[block] = ofBlock }
    if let failure = choice.choose(
      TokenBlock(
        tokens: tokens, logits: z, coarse: logits.coarse(lane).map { UnsafePointer($0) },
        values: c.movesChoices(call) ? values : nil, lane: lane))
    {
      failures[block] = failure
      return
    }
    if Choice.isTogether(c, call) { return }
    for t in tokens where !routing.isValid(t) && routing.isRouted(t) { setAside(t) }
    for t in tokens where routing.isValid(t) {
      let z = c.hasGate ? z + (t - tokens.lowerBound) * e : nil
      if let z {
        let p = routing.probabilities.of(t)
        weigher.gather(t, logits: z, probabilities: p, lane)
        noteFirst(t, p)
      }
      if !weigh(t, z, lane) { return failures[block] = RoutingFailure(token: t, reason: .noWeight) }
    }
  }

  /// Logits of a block, [rows, E].
  fileprivate func z(_ lane: Int) -> UnsafeMutablePointer<Float> { z + lane * rowsPerBlock * c.experts }

  /// Padding that counts in losses: its choices are known, and go to no expert.
  private func setAside(_ t: Int) {
    let own = routing.indices + t * routing.slots
    for slot in 0..<routing.choices where own[slot].isExpert { own[slot] = own[slot].dropped }
  }

  /// A token that is padding.
  private func leaveOut(_ t: Int) {
    (routing.indices + t * routing.slots).update(repeating: .noExpert, count: routing.slots)
    (routing.weights + t * routing.slots).update(repeating: 0, count: routing.slots)
    firstTaken?[t] = .noExpert
    guard c.hasGate else { return }
    routing.probabilities.of(t).update(repeating: 0, count: c.experts)
    routing.logSumExp?[t] = 0
  }

  fileprivate func noteFirst(_ t: Int, _ p: UnsafePointer<Float>) {
    guard let firstTaken else { return }
    let own = routing.indices + t * routing.slots
    var first: Int?
    for slot in 0..<c.experts where own[slot] != .noExpert {
      let e = Int(own[slot].chosen)
      if first == nil || p[e] > p[first!] { first = e }
    }
    firstTaken[t] = Int32(truncatingIfNeeded: first ?? -1)
  }

  /// The weights of token t, given or made; z [E] its logits where they are at hand.
  fileprivate func weigh(_ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int) -> Bool {
    guard let given = call.givenWeights else { return weigher.weigh(t, z, lane) }
    let (own, weights) = (routing.indices + t * routing.slots, routing.weights + t * routing.slots)
    for slot in 0..<c.choices { weights[slot] = own[slot].isExpert ? given[t * c.choices + slot] : 0 }
    return true
  }
}

/// The weights once more, or at last, for choices that were made or moved after all logits were known. Where other
/// logits are wanted than those of the first choices, they are computed again: the same product has the same bits.
struct WeighTokens: Job {
  let tokens: RouteTokens
  let probabilities: UnsafeMutablePointer<Float>  // [lanes,E] of one token

  func run(in context: ContextPointer) throws(Fault) {
    let blocks = blocks(of: tokens.call.tokens)
    try context.run(blocks, self)
    try tokens.throwFailure(0..<blocks)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let lane = lane.pointee.index
    let (e, routing) = (tokens.c.experts, tokens.routing)
    let range = rows(ofBlock: block, in: routing.tokens)
    let fromLogits = tokens.c.weighsFromLogits(tokens.call)
    if fromLogits { tokens.logits.fill(tokens.z(lane), range, routing, lane) }
    for t in range where routing.isValid(t) {
      let z = fromLogits ? tokens.z(lane) + (t - range.lowerBound) * e : nil
      if let z {
        let p = probabilities + lane * e
        var unused: (lse: Float, entropy: Float) = (0, 0)
        tokens.kernels.pointee.softmax(Int64(e), z, p, &unused.lse, &unused.entropy)
        tokens.weigher.gather(t, logits: z, probabilities: p, lane)
        tokens.noteFirst(t, p)
      }
      if !tokens.weigh(t, z, lane) {
        return tokens.failures[block] = RoutingFailure(token: t, reason: .noWeight)
      }
    }
  }
}
