import CShims

// The story of a token on one page: route, dispatch, compute, combine; then the same backwards.

public struct Layer {
  public let configuration: Configuration
  public let context: ContextPointer
  let number: Int64
  var parameters: Parameters
  private var prepared: PreparedGroups
  fileprivate var preparedMemory: UnsafeMutableRawPointer?
  var offload: OffloadPointer?
  fileprivate let turn: Lock  // backward calls add to the same gradients, so they take turns

  fileprivate init(_ configuration: Configuration, context: ContextPointer, parameters: Parameters, turn: Lock) {
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
    try forward(x, call, try plan(call, taped: tape != nil), y: y, tape: tape, details: details)
  }

  /// The same with a plan of the caller's.
  func forward(
    _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan, y: UnsafeMutableRawPointer, tape: TapePointer?,
    details: Details
  ) throws(Fault) -> Report {
    if tape != nil && offload != nil {
      throw .badState("tape: the layer's experts are offloaded, which is for inference; to train, bind their memory")
    }
    if offload == nil { try requireMemory() }
    if tape != nil && prepared.rounds {
      throw .badState("tape: weights prepared in bfloat16 are for inference; prepare float32, or nothing, to train")
    }
    let taped = try tape?.pointee.prepare(configuration, call, plan, parameters)
    let bytes = try forwardBytes(x, call, plan, y: y, taped)
    var report = Report()
    try context.withScratch(bytes, call.scratch) { (memory) throws(Fault) in
      try run(forwardIn: memory, x, call, plan, y: y, taped, details, &report)
    }
    if let taped { tape!.pointee.fill(taped) }
    return report
  }

  // All stages together are several kilobytes. Measured and run in frames of their own (never inlined), they are on the stack
  // once at a time.

  @inline(never) func forwardBytes(
    _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan, y: UnsafeMutableRawPointer, _ taped: TapeContents?
  ) throws(Fault) -> Int {
    var measure = Arena()
    _ = forwardStages(&measure, x, call, plan, y: y, taped: taped)
    return try measure.total()
  }

  @inline(never) private func run(
    forwardIn memory: UnsafeMutableRawPointer, _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan,
    y: UnsafeMutableRawPointer, _ taped: TapeContents?, _ details: Details, _ report: inout Report
  ) throws(Fault) {
    var arena = Arena(memory)
    report = try run(forwardStages(&arena, x, call, plan, y: y, taped: taped), call, plan, taped, details)
  }

  private func forwardStages(
    _ arena: inout Arena, _ x: UnsafeRawPointer, _ call: Call, _ plan: Plan, y: UnsafeMutableRawPointer,
    taped: TapeContents?
  ) -> ForwardStages {
    let c = configuration
    let draws = c.draws(call, context.kernels)
    let input = TokensIn(&arena, c, context: context, x, tokens: call.tokens)
    let jittered = JitteredTokens(&arena, c, draws, x: input.floats, tokens: call.tokens)
    var routing = taped?.routing ?? Routing(&arena, c, call)
    if taped?.keeps != true {
      routing.takeMeasures(
        &arena, c, wave: context.waveTokens, keepsChosen: c.admits(call) && !c.weighsFromLogits(call))
    }
    let output = TokensOut(&arena, c, context: context, y, tokens: call.tokens)
    let statistics = CallStatistics(&arena, c)
    let route = RouterForward(
      &arena, c, call, context: context, x: jittered.rows, parameters: parameters, routing: routing,
      statistics: statistics, slopes: taped?.slopes)
    let dispatch = Dispatch(&arena, c, plan.chunk)
    let experts = ExpertsWork(
      c: c, x: jittered.rows, parameters: parameters, prepared: prepared, dispatch: dispatch, draws: draws)
    return ForwardStages(
      input: input, jittered: jittered, route: route, dispatch: dispatch,
      compute: ExpertsForward(&arena, experts, context: context, offload: offload, keeps: taped?.keeps ?? false),
      output: output, statistics: statistics)
  }

  private func run(
    _ stages: ForwardStages, _ call: Call, _ plan: Plan, _ taped: TapeContents?, _ details: Details
  ) throws(Fault) -> Report {
    let (c, routing) = (configuration, stages.route.routing)
    taped?.keepNumbers(of: call, c)
    try stages.input.run(in: context)
    try stages.jittered.run(in: context)
    try context.measure(.route) { () throws(Fault) in try stages.route.run(in: context, details.bySequence) }
    for i in 0..<plan.chunks {
      let chunk = plan.tokens(ofChunk: i)
      try context.measure(.dispatch) { () throws(Fault) in stages.dispatch.group(routing, chunk) }
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

  /// Numbers as in moe_prepared.
  public enum Preparation: Int32 {
    case none = 0
    case f32 = 1
    case bf16 = 2

    /// Of the packed copy.
    public var type: ElementType? {
      switch self {
      case .none: nil
      case .f32: .f32
      case .bf16: .bf16
      }
    }
  }

  /// Packs the experts' weights for the forward calls to come, or lets go of what was packed.
  public mutating func prepare(_ wanted: Preparation) throws(Fault) {
    if let offload { return try useSlots(offload, form: context.packsWeights ? wanted : .none) }
    try requireMemory()
    // New memory first: on an error the layer is as it was.
    var memory: UnsafeMutableRawPointer?
    var packed = PreparedGroups(configuration)
    if let type = wanted.type, context.packsWeights {
      let allocator = context.pointee.allocator
      var measure = Arena()
      _ = PreparedGroups(&measure, configuration, type: type)
      memory = try allocator.allocate(bytes: try measure.total())
      var arena = Arena(memory!)
      packed = PreparedGroups(&arena, configuration, type: type)
      packed.pack(parameters, in: context)
    }
    replacePrepared(packed, memory)
  }

  mutating func replacePrepared(_ packed: PreparedGroups, _ memory: UnsafeMutableRawPointer?) {
    context.pointee.allocator.deallocate(preparedMemory)
    (prepared, preparedMemory) = (packed, memory)
  }

  // MARK: backward

  /// What a caller brings to a backward, and wants of it.
  public struct BackwardCall {
    public var dAuxLoss: Float = 0
    public var dMeanProbability: UnsafePointer<Float>?  // [E]
    public var dSequenceProbability: UnsafePointer<Float>?  // [sequences,E]
    public var dExpertWeights: UnsafeMutablePointer<Float>?  // [T,choices]
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
    let taped = tape.pointee.contents!
    if taped.routing.tokens == 0 { return try stepWithoutTokens(call) }
    let plan = taped.plan  // backward's chunks are forward's
    let bytes = try backwardBytes(taped, plan, x: x, dy: dy, dx: dx, call)
    try turn.acquire(for: "layer")
    defer { turn.release() }
    try context.withScratch(bytes, call.scratch) { (memory) throws(Fault) in
      try run(backwardIn: memory, taped, plan, x: x, dy: dy, dx: dx, call)
    }
  }

  @inline(never) func backwardBytes(
    _ taped: TapeContents, _ plan: Plan, x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?,
    _ call: BackwardCall
  ) throws(Fault) -> Int {
    var measure = Arena()
    _ = backwardStages(&measure, taped, plan, x: x, dy: dy, dx: dx, call)
    return try measure.total()
  }

  @inline(never) private func run(
    backwardIn memory: UnsafeMutableRawPointer, _ taped: TapeContents, _ plan: Plan, x: UnsafeRawPointer,
    dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?, _ call: BackwardCall
  ) throws(Fault) {
    var arena = Arena(memory)
    try run(backwardStages(&arena, taped, plan, x: x, dy: dy, dx: dx, call), taped, plan, call)
  }

  private func backwardStages(
    _ arena: inout Arena, _ taped: TapeContents, _ plan: Plan, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, _ call: BackwardCall
  ) -> BackwardStages {
    let (c, tokens) = (configuration, taped.routing.tokens)
    let x = TokensIn(&arena, c, context: context, x, tokens: tokens)
    let jittered = JitteredTokens(&arena, c, taped.draws, x: x.floats, tokens: tokens)
    let dy = TokensIn(&arena, c, context: context, dy, tokens: tokens)
    let dWeights = arena.take(Float.self, tokens, c.slots)
    let out = dx.map { TokensOut(&arena, c, context: context, $0, tokens: tokens) }
    let fused = c.keepsExpertGradients ? nil : FusedScratch(&arena, c)
    let losses = LossGradient(
      &arena, c, tape: taped, dAuxLoss: call.dAuxLoss, dMeanProbability: call.dMeanProbability,
      dSequenceProbability: call.dSequenceProbability)
    // A chunk's experts are done before its router begins: both use the same memory.
    let start = arena
    let dispatch = Dispatch(&arena, c, plan.chunk)
    let experts = ExpertsWork(
      c: c, x: jittered.rows, parameters: parameters, prepared: PreparedGroups(c), dispatch: dispatch,
      draws: taped.draws)
    let compute = ExpertsBackward(
      &arena, experts, context: context, dy: dy.floats, keeps: taped.keeps, dWeights: dWeights,
      oneExpert: fused?.gradient)
    let stages = BackwardStages(
      x: x, jittered: jittered, dy: dy, dispatch: dispatch, compute: compute, dWeights: dWeights, losses: losses,
      dx: out, fused: fused, routerArena: start)
    var behind = start
    _ = router(&behind, stages, taped, 0..<(c.routesBackInOne ? tokens : plan.chunk.tokens))
    arena.cover(behind)
    return stages
  }

  private func router(
    _ arena: inout Arena, _ stages: BackwardStages, _ taped: TapeContents, _ chunk: Range<Int>
  ) -> RouterBackward {
    RouterBackward(
      &arena, configuration, context: context, x: stages.jittered.rows, parameters: parameters, tape: taped,
      chunk: chunk, losses: stages.losses, dWeights: stages.dWeights)
  }

  private func run(
    _ stages: BackwardStages, _ taped: TapeContents, _ plan: Plan, _ call: BackwardCall
  ) throws(Fault) {
    let (c, routing) = (configuration, taped.routing)
    var steps = call.step.map { FusedStep($0, c, parameters, stages.fused!, in: context) }
    /// Where a stage runs: after the first step in a context in which nothing stops the call.
    var here: ContextPointer { steps?.context ?? context }
    try stages.x.run(in: context)
    try stages.jittered.run(in: context)
    try stages.dy.run(in: context)
    if taped.mayLeaveSlotsEmpty { stages.dWeights.update(repeating: 0, count: routing.tokens * routing.slots) }
    stages.losses.prepare()
    for i in 0..<plan.chunks {
      let chunk = plan.tokens(ofChunk: i)
      try context.measure(.dispatch, backward: true) { () throws(Fault) in stages.dispatch.group(routing, chunk) }
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
    if c.outputBias {
      addOutputBiasGradient(stages.dy.floats, routing, c, context.kernels, to: parameters.grad(.outputBias)!)
    }
    try stages.dx?.run(in: here)
    if plan.chunks > 1 && steps != nil { try stepExperts(stages, taped, plan, &steps!) }
    steps?.finish()
  }

  /// A second pass over the chunks for each expert, since its gradient is complete only after the last of them.
  @inline(never) private func stepExperts(
    _ stages: BackwardStages, _ taped: TapeContents, _ plan: Plan, _ steps: inout FusedStep
  ) throws(Fault) {
    steps.begin()
    for index in 0..<configuration.groupCount where configuration.groups[index].multiplies {
      for expert in 0..<configuration.groups[index].experts {
        for i in 0..<plan.chunks {
          try context.measure(.dispatch, backward: true) { () throws(Fault) in
            stages.dispatch.group(taped.routing, plan.tokens(ofChunk: i))
          }
          try stages.compute.addWeightGradient(
            ofExpert: expert, inGroup: index, in: steps.context, kept: taped.kept(i))
        }
        steps.step(configuration.groups[index], expert: expert)
      }
    }
  }

  /// Every gradient is 0, but moments fade and weights decay.
  private func stepWithoutTokens(_ call: BackwardCall) throws(Fault) {
    guard let step = call.step else { return }
    let c = configuration
    var measure = Arena()
    _ = FusedScratch(&measure, c)
    let bytes = try measure.total()
    try turn.acquire(for: "layer")
    defer { turn.release() }
    try context.withScratch(bytes, call.scratch) { (memory) throws(Fault) in
      var arena = Arena(memory)
      var steps = FusedStep(step, c, parameters, FusedScratch(&arena, c), in: context)
      steps.begin()
      for index in 0..<c.groupCount where c.groups[index].multiplies {
        for expert in 0..<c.groups[index].experts { steps.step(c.groups[index], expert: expert) }
      }
      steps.finish()
    }
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

extension Configuration {
  /// Means over all tokens stand in the way of chunks.
  fileprivate var routesBackInOne: Bool { exploration.batchNorm != nil }
}

extension Layer.Details {
  fileprivate func write(_ c: Configuration, _ stages: ForwardStages) {
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

// MARK: life and parameters

public typealias LayerPointer = UnsafeMutablePointer<Layer>

extension UnsafeMutablePointer where Pointee == Layer {
  public static func create(_ wanted: Configuration.Values, in context: ContextPointer) throws(Fault) -> LayerPointer {
    let allocator = context.pointee.allocator
    var measure = Arena()
    _ = LayerParts(&measure, wanted)
    var arena = Arena(try allocator.allocate(bytes: try measure.total()))
    let parts = LayerParts(&arena, wanted)
    let (layer, parameters) = (parts.layer, parts.parameters)
    parts.turn.initialise()
    parameters.clear()
    let c = parts.copy(wanted, context.kernels)
    do throws(Fault) {
      try parameters.allocate(c, allocator: allocator)
    } catch {
      parameters.free(allocator: allocator)
      allocator.deallocate(layer)
      throw error
    }
    parameters.initialise(c, context.kernels)
    layer.initialize(to: Layer(c, context: context, parameters: parameters, turn: parts.turn))
    context.retain()
    return layer
  }

  public func free() {
    let context = pointee.context
    pointee.offload?.free(context.pointee.allocator)
    pointee.parameters.free(allocator: context.pointee.allocator)
    context.pointee.allocator.deallocate(pointee.preparedMemory)
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

/// One block of memory: the layer, then what it points at.
private struct LayerParts {
  let layer: LayerPointer
  let parameters: Parameters
  let turn: Lock
  private let groups: UnsafeMutablePointer<ExpertGroup>
  private let losses: UnsafeMutablePointer<LossTerm>
  private let hashTable: UnsafeMutablePointer<Int32>
  private let values: UnsafeMutablePointer<Configuration.Values>

  init(_ arena: inout Arena, _ c: Configuration.Values) {
    layer = arena.take(Layer.self, 1)
    values = arena.take(Configuration.Values.self, 1)
    parameters = Parameters(&arena, groups: c.groupCount)
    turn = Lock(&arena)
    groups = arena.take(ExpertGroup.self, c.groupCount)
    losses = arena.take(LossTerm.self, c.lossCount)
    hashTable = arena.take(Int32.self, c.vocabulary, c.topK)
  }

  /// The configuration in the layer's own memory, with its lists.
  func copy(_ c: Configuration.Values, _ kernels: UnsafePointer<moei_kernels>) -> Configuration {
    var own = c
    var first = 0
    for index in 0..<c.groupCount {
      (groups + index).initialize(to: c.groups[index])
      groups[index].index = index
      groups[index].first = first
      first += groups[index].experts
    }
    own.groups = UnsafePointer(groups)
    if let given = c.losses { losses.update(from: given, count: c.lossCount) }
    own.losses = UnsafePointer(losses)
    own.hashTable = UnsafePointer(hashTable)
    values.initialize(to: own)
    let made = Configuration(values)
    if let given = c.hashTable {
      hashTable.update(from: given, count: c.vocabulary * c.topK)
    } else {
      fillHashTable(hashTable, made, kernels)
    }
    return made
  }
}

extension Layer {
  /// bias_e += d_e, d_e = rate * sign(mean(counts) - counts_e); minus their mean where the sum shall stay.
  public func updateSelectionBias(_ counts: UnsafePointer<Int64>, rate: Float, zeroSum: Bool) {
    let (experts, bias) = (configuration.experts, parameters.data(.selectionBias)!)
    var total = 0.0
    for e in 0..<experts { total += Double(counts[e]) }
    let mean = total / Double(experts)
    func direction(_ e: Int) -> Float { Double(counts[e]) < mean ? 1 : Double(counts[e]) > mean ? -1 : 0 }
    var drift: Float = 0
    if zeroSum { for e in 0..<experts { drift += direction(e) } }
    for e in 0..<experts { bias[e] += rate * (direction(e) - drift / Float(experts)) }
  }

  public var parameterCount: Int { parameters.count }
  public func parameter(_ index: Int) -> Parameter { parameters[index] }
  public func zeroGrad() { parameters.zeroGrad() }
  /// Those that an optimiser steps: all but buffers, in the same order.
  public var trainedCount: Int { parameters.trainedCount }
  public func trained(_ index: Int) -> Parameter { parameters.trained(index) }
  /// The values that a new layer has, in all parameters that have memory, and gradients of 0.
  public func initialise() { parameters.initialise(configuration, context.kernels) }

  /// Refuses what reads or writes all parameters as long as some have no memory.
  public func requireMemory() throws(Fault) {
    guard let parameter = parameters.withoutMemory else { return }
    if isOffloaded { throw .badState("\(parameter.name) is offloaded: it has no memory") }
    throw .badState(
      "\(parameter.name) has no memory (unallocated): bind it with moe_layer_bind_parameter, or offload the layer")
  }

  public func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?) {
    parameters.bind(index, data: data, grad: grad, allocator: context.pointee.allocator)
  }

  /// Whether the tape was made for this layer, and whether it is filled.
  public func owns(_ tape: UnsafePointer<Tape>) -> Bool {
    tape.pointee.layerNumber == number && tape.pointee.context == context
  }
  public func isFilled(_ tape: UnsafePointer<Tape>) -> Bool { tape.pointee.contents != nil }
  public func weightsWereGiven(_ tape: UnsafePointer<Tape>) -> Bool { tape.pointee.contents?.weightsAreGiven ?? false }
  public func tokens(on tape: UnsafePointer<Tape>) -> Int { tape.pointee.contents?.routing.tokens ?? 0 }
  public func sequences(on tape: UnsafePointer<Tape>) -> Int { tape.pointee.contents?.slopes.sequences ?? 0 }
  /// Empties the tape: after an error there is nothing to go back from.
  public func clear(_ tape: TapePointer) { tape.pointee.clear() }
}
