import CShims

// The story of a token on one page: route, dispatch, compute, combine; then the same backwards.

public struct Layer {
  public let configuration: Configuration
  public internal(set) var context: ContextPointer
  let number: Int64
  var parameters: Parameters
  var prepared: PreparedGroups
  var preparedMemory: UnsafeMutableRawPointer?
  /// [groups] Panels in files; nil where the layer has none there.
  var filePanels: UnsafeMutablePointer<PreparedWeights?>?
  var offload: OffloadPointer?
  /// The ranks that the experts are spread over, see Ranks/; nil where all are here.
  public internal(set) var ranks: RanksPointer?
  let turn: Lock  // backward calls add to the same gradients, so they take turns

  init(_ configuration: Configuration, context: ContextPointer, parameters: Parameters, turn: Lock) {
    self.turn = turn
    self.configuration = configuration
    self.context = context
    number = context.numberForLayer()
    self.parameters = parameters
    prepared = PreparedGroups(configuration)
  }

  /// Arrays of one call that the caller may want to see; nil where not.
  public struct Details {
    public var tokensPerExpert: UnsafeMutablePointer<Int64>?  // [E]
    public var droppedPerExpert: UnsafeMutablePointer<Int64>?  // [E]
    public var meanProbability: UnsafeMutablePointer<Float>?  // [E]
    public var indices: UnsafeMutablePointer<Int32>?  // [T,choices]
    public var weights: UnsafeMutablePointer<Float>?  // [T,choices]
    public var losses: UnsafeMutablePointer<Float>?  // [losses]
    public var bySequence = SequenceDetails()

    public init() {}
  }

  // MARK: forward

  /// y = layer(x), x and y [T,H] of the configuration's type.
  public func forward(
    _ x: UnsafeRawPointer, _ call: Call, y: UnsafeMutableRawPointer, tape: TapePointer?, details: Details
  ) throws(Fault) -> Report {
    if let ranks { return try forward(x, call, over: ranks, y: y, tape: tape, details: details) }
    return try forward(x, call, try plan(call, taped: tape != nil), y: y, tape: tape, details: details)
  }

  /// Forward as a plan of the caller's divides it.
  func forward(
    _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan, y: UnsafeMutableRawPointer, tape: TapePointer?,
    details: Details
  ) throws(Fault) -> Report {
    try requireForward(taped: tape != nil)
    let taped = try tape?.pointee.prepare(
      configuration, call, plan, parameters, frozen: prepared.frozenForms)
    var report = Report()
    try context.withScratch(
      lent: call.scratch, { forwardStages(&$0, x, call, plan, y: y, taped: taped) }
    ) { (stages) throws(Fault) in report = try run(stages, call, plan, taped, details) }
    if let taped { tape!.pointee.fill(taped) }
    return report
  }

  /// Refuses what cannot be computed as the layer is.
  func requireForward(taped: Bool) throws(Fault) {
    if taped && offload != nil {
      throw .badState("tape: the layer's experts are offloaded, which is for inference; to train, bind their memory")
    }
    if offload == nil { try requireValues() }
    if taped, let form = prepared.changedValues {
      throw .badState(
        "tape: weights prepared as \(form.constant) are for inference; prepare the weights' own type, or nothing, to train"
      )
    }
  }

  func forwardStages(
    _ arena: inout Arena, _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan, y: UnsafeMutableRawPointer,
    taped: TapeContents?
  ) -> ForwardStages {
    let c = configuration
    let draws = c.draws(call, context.kernels)
    let input = TokensIn(&arena, c, context: context, x, tokens: call.tokens)
    let jittered = JitteredTokens(&arena, c, draws, x: input.floats, tokens: call.tokens)
    var routing = taped?.routing ?? Routing(&arena, c, call)
    if taped?.keeps != true && call.ranks != nil {
      routing.takeMeasures(&arena, c)  // of all tokens: they are added up once those of the ranks before are
    } else if taped?.keeps != true {
      routing.takeMeasures(
        &arena, c, wave: context.waveTokens, keepsChosen: c.admits(call) && !c.weighsFromLogits(call))
    }
    let output = TokensOut(&arena, c, context: context, y, tokens: call.tokens)
    let statistics = CallStatistics(&arena, c)
    let work = RouteWork(
      c: c, matmul: context.matmul, lanes: context.lanes, x: jittered.rows, parameters: parameters, routing: routing,
      draws: draws, activeExperts: c.activeExperts(call, parameters), mayLeaveSlotsEmpty: c.mayLeaveSlotsEmpty(call))
    let route = RouterForward(
      &arena, work, call, context: context, statistics: statistics, slopes: taped?.slopes)
    let dispatch = Dispatch(&arena, c, plan.chunk)
    let experts = ExpertsWork(
      c: c, x: jittered.rows, source: .layer(parameters, frozen: false), prepared: prepared, dispatch: dispatch,
      draws: draws, isDifferentiated: taped != nil,
      runs: taped == nil ? .none : runs(.ofForward), squares: call.squares)
    return ForwardStages(
      input: input, jittered: jittered, route: route, dispatch: dispatch,
      compute: ExpertsForward(
        &arena, experts, context: context, offload: offload, keeps: taped?.keeps ?? false,
        groups: c.groupsHere(over: ranks)),
      output: output, statistics: statistics)
  }

  /// Of experts that are all here, and computed by the library's own products.
  private func runs(_ direction: Runs) -> Runs { ranks == nil && context.packsWeights ? direction : .none }

  @inline(never) private func run(
    _ stages: ForwardStages, _ call: Call, _ plan: Plan, _ taped: TapeContents?, _ details: Details
  ) throws(Fault) -> Report {
    let (c, routing) = (configuration, stages.route.routing)
    taped?.keepNumbers(of: call, c)
    try stages.input.run(in: context)
    try stages.jittered.run(in: context)
    try context.measure(.route) { () throws(Fault) in try stages.route.run(in: context, details.bySequence) }
    for i in 0..<plan.chunks {
      let chunk = plan.tokens(ofChunk: i)
      try context.measure(.dispatch) { () throws(Fault) in
        stages.dispatch.group(routing, chunk, firstPair: stages.route.work.draws.firstToken * c.slots)
      }
      try call.squares?.add(stages.jittered.rows, chunk, call, hidden: c.hidden, in: context)
      try stages.compute.run(in: context, kept: taped?.kept(i))
      try context.measure(.combine) { () throws(Fault) in
        try CombineForward(
          c: c, kernels: context.kernels, routing: routing, chunk: chunk, dispatch: stages.dispatch,
          outputs: stages.compute.outputs, bias: parameters.data(.outputBias), y: stages.output.floats
        ).run(in: context)
      }
    }
    try stages.output.run(in: context)
    let report = Report(c, call, stages.route, stages.statistics, taped?.slopes)
    details.write(c, stages)
    try call.record?.pointee.store(
      routing.indices, stride: c.slots, tokens: call.tokens, choices: c.choices, experts: c.experts)
    if let notes = call.notes {
      notes.update(from: routing.norm, count: c.notedFloats)
    } else {
      note(call, measured: routing.norm)
    }
    return report
  }

  // MARK: backward

  /// What a caller brings to a backward, and wants of it.
  public struct BackwardCall {
    public var dAuxLoss: Float = 0
    public var dMeanProbability: UnsafePointer<Float>?  // [E]
    public var dSequenceProbability: UnsafePointer<Float>?  // [sequences,E]
    public var dExpertWeights: UnsafeMutablePointer<Float>?  // [T,choices]
    public var frozenExperts = false  // no gradients of their matrices and biases
    public var step: FusedCall?
    public var scratch: CallerMemory?

    public init() {}
  }

  /// Adds the gradients of <dy, y> + dAuxLoss * auxLoss to the parameters' and overwrites dx with that of x. With a step
  /// the gradients begin at 0 and are applied.
  public func backward(
    _ tape: UnsafePointer<Tape>, x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?,
    _ call: BackwardCall
  ) throws(Fault) {
    if let ranks { return try backward(tape, x: x, dy: dy, dx: dx, call, over: ranks) }
    let taped = tape.pointee.contents!
    if taped.frozen != prepared.frozenForms { throw .packedSince }
    if taped.routing.tokens == 0 { return try stepWithoutTokens(call) }
    let plan = taped.plan  // backward's chunks are forward's
    try turn.acquire(for: "layer")
    defer { turn.release() }
    try context.withScratch(
      lent: call.scratch, { backwardStages(&$0, taped, plan, x: x, dy: dy, dx: dx, call) }
    ) { (stages) throws(Fault) in try run(stages, taped, plan, call) }
  }

  func backwardStages(
    _ arena: inout Arena, _ taped: TapeContents, _ plan: Plan, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, _ call: BackwardCall
  ) -> BackwardStages {
    let (c, tokens) = (configuration, taped.routing.tokens)
    let x = TokensIn(&arena, c, context: context, x, tokens: tokens)
    let jittered = JitteredTokens(&arena, c, taped.draws, x: x.floats, tokens: tokens)
    let dy = TokensIn(&arena, c, context: context, dy, tokens: tokens)
    let dWeights = arena.take(Float.self, tokens, c.slots)
    let out = dx.map { TokensOut(&arena, c, context: context, $0, tokens: tokens) }
    // Over ranks nothing is stepped within backward: gradients have memory that the caller has bound.
    let fused = c.keepsExpertGradients || ranks != nil ? nil : FusedScratch(&arena, c)
    let losses = LossGradient(
      &arena, c, tape: taped, dAuxLoss: call.dAuxLoss, dMeanProbability: call.dMeanProbability,
      dSequenceProbability: call.dSequenceProbability)
    // A chunk's experts are done before its router begins: both use the same memory.
    let start = arena
    let dispatch = Dispatch(&arena, c, plan.chunk)
    let experts = ExpertsWork(
      c: c, x: jittered.rows, source: .layer(parameters, frozen: call.frozenExperts), prepared: prepared.frozen,
      dispatch: dispatch, draws: taped.draws, isDifferentiated: true, runs: runs(.ofBackward))
    let compute = ExpertsBackward(
      &arena, experts, context: context, dy: dy.floats, keeps: taped.keeps,
      dWeights: dWeights - taped.draws.firstToken * c.slots,  // as pairs are called
      fused: fused, groups: c.groupsHere(over: ranks))
    let stages = BackwardStages(
      x: x, jittered: jittered, dy: dy, dispatch: dispatch, compute: compute, dWeights: dWeights, losses: losses,
      dx: out, fused: fused, routerArena: start)
    var behind = start
    _ = router(&behind, stages, taped, 0..<(c.routesBackInOne || ranks != nil ? tokens : plan.chunk.tokens))
    arena.cover(behind)
    return stages
  }

  func router(
    _ arena: inout Arena, _ stages: BackwardStages, _ taped: TapeContents, _ chunk: Range<Int>
  ) -> RouterBackward {
    RouterBackward(
      &arena, configuration, context: context, x: stages.jittered.rows, parameters: parameters, tape: taped,
      chunk: chunk, losses: stages.losses, dWeights: stages.dWeights)
  }

  @inline(never) private func run(
    _ stages: BackwardStages, _ taped: TapeContents, _ plan: Plan, _ call: BackwardCall
  ) throws(Fault) {
    let (c, routing) = (configuration, taped.routing)
    var steps = call.step.map { FusedStep($0, parameters, stages.fused!, in: context) }
    /// Where a stage runs: after the first step in a context in which nothing stops the call.
    var here: ContextPointer { steps?.context ?? context }
    try stages.x.run(in: context)
    try stages.jittered.run(in: context)
    try stages.dy.run(in: context)
    if taped.mayLeaveSlotsEmpty { stages.dWeights.update(repeating: 0, count: routing.tokens * routing.slots) }
    stages.losses.prepare()
    for i in 0..<plan.chunks {
      let chunk = plan.tokens(ofChunk: i)
      try context.measure(.dispatch, backward: true) { () throws(Fault) in
        stages.dispatch.group(routing, chunk, firstPair: taped.draws.firstToken * c.slots)
      }
      try stages.compute.run(
        in: context, kept: taped.kept(i), needInputGradient: stages.dx != nil, &steps, isOnlyChunk: plan.chunks == 1)
      if let dx = stages.dx {
        try context.measure(.combine, backward: true) { () throws(Fault) in
          try CombineBackward(
            c: c, kernels: context.kernels, chunk: chunk, dispatch: stages.dispatch,
            dRows: stages.compute.gradients.dRows, dx: dx.floats
          ).run(in: here)
        }
      }
      if !c.routesBackInOne { try routeBack(stages, taped, chunk, in: here) }
    }
    if c.routesBackInOne { try routeBack(stages, taped, 0..<routing.tokens, in: here) }
    if let out = call.dExpertWeights {
      for t in 0..<routing.tokens {
        (out + t * routing.choices).update(from: stages.dWeights + t * routing.slots, count: routing.choices)
      }
    }
    if let grad = parameters.grad(.outputBias) {
      addOutputBiasGradient(stages.dy.floats, routing, c, context.kernels, to: grad)
    }
    try stages.dx?.run(in: here)
    if plan.chunks > 1 && steps != nil { try stepExperts(stages, taped, plan, &steps!) }
    steps?.finish()
  }

  /// The router's part for one chunk, whose experts are done.
  @inline(never) private func routeBack(
    _ stages: BackwardStages, _ taped: TapeContents, _ chunk: Range<Int>, in context: ContextPointer
  ) throws(Fault) {
    var arena = stages.routerArena
    let route = router(&arena, stages, taped, chunk)
    try context.measure(.route, backward: true) { () throws(Fault) in
      try route.run(in: context)
      guard let dx = stages.dx else { return }
      try RouterShare(
        router: route, jittered: stages.jittered, firstBlock: chunk.lowerBound / rowsPerBlock, dx: dx.floats
      ).run(in: context)
    }
  }
}

struct ForwardStages {
  let input: TokensIn
  let jittered: JitteredTokens
  let route: RouterForward
  let dispatch: Dispatch
  let compute: ExpertsForward
  let output: TokensOut
  let statistics: CallStatistics
}

struct BackwardStages {
  let x: TokensIn
  let jittered: JitteredTokens
  let dy: TokensIn
  let dispatch: Dispatch
  let compute: ExpertsBackward
  let dWeights: UnsafeMutablePointer<Float>  // [T,slots]
  let losses: LossGradient
  let dx: TokensOut?
  let fused: FusedScratch?  // where experts' gradients have no memory of their own
  let routerArena: Arena  // where the router's memory begins
}

extension Layer.Details {
  func write(_ c: Configuration, _ stages: ForwardStages) {
    let (routing, statistics) = (stages.route.routing, stages.statistics)
    for e in 0..<c.experts { meanProbability?[e] = Float(statistics.meanProbability[e]) }
    tokensPerExpert?.update(from: statistics.computed, count: c.experts)
    droppedPerExpert?.update(from: statistics.dropped, count: c.experts)
    losses?.update(from: statistics.losses, count: c.lossCount)
    if indices == nil && weights == nil { return }
    for t in 0..<routing.tokens {
      let (own, to) = (t * routing.slots, t * routing.choices)
      weights.map { ($0 + to).update(from: routing.weights + own, count: routing.choices) }
      guard let indices else { continue }
      for slot in 0..<routing.choices { indices[to + slot] = max(routing.indices[own + slot], .noExpert) }
    }
  }
}
