// The story of a token on one page: route, dispatch, compute, combine; then the same backwards.

public struct Layer {
  public let configuration: Configuration
  let context: ContextPointer
  let number: Int64
  let parameters: Parameters
  private var prepared: PreparedWeights?
  fileprivate var preparedMemory: UnsafeMutableRawPointer?
  fileprivate let turn: Lock  // backward calls add to the same gradients, so they take turns

  fileprivate init(_ configuration: Configuration, context: ContextPointer, parameters: Parameters, turn: Lock) {
    self.turn = turn
    self.configuration = configuration
    self.context = context
    number = context.numberForLayer()
    self.parameters = parameters
  }

  /// Arrays of one call that the caller may want to see; nil where not.
  public struct Details {
    public var tokensPerExpert: UnsafeMutablePointer<Int64>?  // [E]
    public var meanProbability: UnsafeMutablePointer<Float>?  // [E]
    public var indices: UnsafeMutablePointer<Int32>?  // [T,K]
    public var weights: UnsafeMutablePointer<Float>?  // [T,K]

    public init() {}
  }

  // MARK: forward

  /// y = layer(x), x and y [T,H] of the configuration's type. `step` and `training` govern dropout.
  public func forward(
    _ x: UnsafeRawPointer, tokens: Int, step: UInt64, training: Bool, y: UnsafeMutableRawPointer,
    tape: TapePointer?, details: Details
  ) throws(Fault) -> Report {
    let c = configuration
    let dropout = Dropout(c, kernels: context.kernels, step: step, training: training)
    let form = ExpertForm(c, context: context, prepared: prepared)
    if tape != nil && c.weights == .f32 && form == .tiledBF16 {
      throw .badState("tape: weights prepared in bfloat16 are for inference; prepare float32, or nothing, to train")
    }
    let taped = try tape?.pointee.prepare(c, tokens: tokens, dropout: dropout, form: form)

    func layout(_ arena: inout Arena) -> ForwardStages {
      let input = TokensIn(&arena, c, context: context, x, tokens: tokens)
      let routing = taped?.routing ?? Routing(&arena, c, tokens: tokens)
      let dispatch = taped?.dispatch ?? Dispatch(&arena, c, tokens: tokens)
      return ForwardStages(
        input: input,
        route: RouterForward(&arena, c, context: context, x: input.floats, parameters: parameters, routing: routing),
        dispatch: dispatch,
        compute: ExpertsForward(
          &arena, c, context: context, x: input.floats, parameters: parameters, prepared: prepared,
          dispatch: dispatch, dropout: dropout, kept: taped?.preactivations),
        output: TokensOut(&arena, c, context: context, y, tokens: tokens),
        meanProbability: arena.take(Double.self, c.experts))
    }
    var measure = Arena()
    _ = layout(&measure)
    var report = Report()
    try context.withScratch(try measure.total()) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let stages = layout(&arena)
      try stages.input.run(in: context)
      try stages.route.run(in: context)
      stages.dispatch.group(stages.route.routing.indices, experts: c.experts)
      try stages.compute.run(in: context)
      try CombineForward(
        c: c, kernels: context.kernels, routing: stages.route.routing, dispatch: stages.dispatch,
        outputs: stages.compute.outputs, outputStride: stages.compute.outputStride,
        y: stages.output.floats
      ).run(in: context)
      try stages.output.run(in: context)
      report = Report(
        c, routing: stages.route.routing, dispatch: stages.dispatch, entropy: stages.route.entropy,
        mean: stages.meanProbability)
      details.write(c, stages)
    }
    if let taped { tape!.pointee.fill(taped) }
    return report
  }

  /// Numbers as in moe_prepared.
  public enum Preparation: Int32 {
    case none = 0
    case f32 = 1
    case bf16 = 2
  }

  /// Packs the experts' weights for the forward calls to come, or lets go of what was packed.
  public mutating func prepare(_ wanted: Preparation) throws(Fault) {
    // New memory first: on an error the layer is as it was.
    var memory: UnsafeMutableRawPointer?
    var packed: PreparedWeights?
    if wanted != .none && context.packsWeights {
      let allocator = context.pointee.allocator
      var measure = Arena()
      _ = PreparedWeights(&measure, configuration, bf16: wanted == .bf16)
      memory = try allocator.allocate(bytes: try measure.total())
      var arena = Arena(memory!)
      packed = PreparedWeights(&arena, configuration, bf16: wanted == .bf16)
      do throws(Fault) {
        try pack(packed!)
      } catch {
        allocator.deallocate(memory)
        throw error
      }
    }
    context.pointee.allocator.deallocate(preparedMemory)
    (prepared, preparedMemory) = (packed, memory)
  }

  private func pack(_ prepared: PreparedWeights) throws(Fault) {
    if prepared.bf16 { try pack(prepared, BF16.self) } else { try pack(prepared, F32.self) }
  }

  private func pack<P: Precision>(_ prepared: PreparedWeights, _: P.Type) throws(Fault) {
    func layout(_ arena: inout Arena) -> PrepareWeights<P> {
      PrepareWeights(&arena, configuration, context: context, parameters: parameters, prepared: prepared)
    }
    var measure = Arena()
    _ = layout(&measure)
    try context.withScratch(try measure.total()) { memory in
      var arena = Arena(memory)
      layout(&arena).run(in: context)
    }
  }

  // MARK: backward

  /// Adds the gradients of <dy, y> + dAuxLoss * auxLoss to the parameters' and overwrites dx with that of x.
  public func backward(
    _ tape: UnsafePointer<Tape>, x: UnsafeRawPointer, dy: UnsafeRawPointer, dAuxLoss: Float,
    dx: UnsafeMutableRawPointer?
  ) throws(Fault) {
    let c = configuration
    let taped = tape.pointee.contents!
    let tokens = taped.routing.tokens
    if tokens == 0 { return }

    let (context, parameters) = (context, parameters)
    func layout(_ arena: inout Arena) -> BackwardStages {
      let x = TokensIn(&arena, c, context: context, x, tokens: tokens)
      let dy = TokensIn(&arena, c, context: context, dy, tokens: tokens)
      let compute = ExpertsBackward(
        &arena, c, context: context, x: x.floats, dy: dy.floats, parameters: parameters, tape: taped)
      let losses = LossGradient(&arena, c, tokens: tokens, dAuxLoss: dAuxLoss)
      let route = RouterBackward(
        &arena, c, context: context, x: x.floats, parameters: parameters, routing: taped.routing, losses: losses,
        dWeights: compute.dWeights)
      return BackwardStages(
        x: x, dy: dy, compute: compute, losses: losses, route: route,
        dx: dx.map { TokensOut(&arena, c, context: context, $0, tokens: tokens) })
    }
    var measure = Arena()
    _ = layout(&measure)
    let bytes = try measure.total()
    turn.acquire()
    defer { turn.release() }
    try context.withScratch(bytes) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let stages = layout(&arena)
      try stages.x.run(in: context)
      try stages.dy.run(in: context)
      try stages.compute.run(in: context, needInputGradient: dx != nil)
      stages.losses.prepare(c, dispatch: taped.dispatch, tokens: tokens, dAuxLoss: dAuxLoss)
      try stages.route.run(in: context, parameters: parameters, dispatch: taped.dispatch)
      if let dx = stages.dx {
        try CombineBackward(
          c: c, kernels: context.kernels, dispatch: taped.dispatch, dRows: stages.compute.dRows,
          dRowStride: stages.compute.dRowStride, router: stages.route, dx: dx.floats
        ).run(in: context)
        try dx.run(in: context)
      }
    }
  }
}

private struct ForwardStages {
  let input: TokensIn
  let route: RouterForward
  let dispatch: Dispatch
  let compute: ExpertsForward
  let output: TokensOut
  let meanProbability: UnsafeMutablePointer<Double>  // [E]
}

private struct BackwardStages {
  let x: TokensIn
  let dy: TokensIn
  let compute: ExpertsBackward
  let losses: LossGradient
  let route: RouterBackward
  let dx: TokensOut?
}

extension Layer.Details {
  fileprivate func write(_ c: Configuration, _ stages: ForwardStages) {
    let routing = stages.route.routing
    for e in 0..<c.experts {
      tokensPerExpert?[e] = Int64(stages.dispatch.count(ofExpert: e))
      meanProbability?[e] = Float(stages.meanProbability[e])
    }
    indices?.update(from: routing.indices, count: stages.dispatch.pairs)
    weights?.update(from: routing.weights, count: stages.dispatch.pairs)
  }
}

// MARK: life and parameters

public typealias LayerPointer = UnsafeMutablePointer<Layer>

extension UnsafeMutablePointer where Pointee == Layer {
  public static func create(_ c: Configuration, in context: ContextPointer) throws(Fault) -> LayerPointer {
    let allocator = context.pointee.allocator
    func layout(_ arena: inout Arena) -> (LayerPointer, UnsafeMutablePointer<Parameter?>, Lock) {
      (arena.take(Layer.self, 1), arena.take(Parameter?.self, Parameters.capacity), Lock(&arena))
    }
    var measure = Arena()
    _ = layout(&measure)
    var arena = Arena(try allocator.allocate(bytes: try measure.total()))
    let (layer, slots, turn) = layout(&arena)
    turn.initialise()
    let parameters = Parameters(slots)
    do throws(Fault) {
      try parameters.allocate(c, allocator: allocator)
    } catch {
      parameters.free(allocator: allocator)
      allocator.deallocate(layer)
      throw error
    }
    parameters.initialise(c, context.kernels)
    layer.initialize(to: Layer(c, context: context, parameters: parameters, turn: turn))
    context.retain()
    return layer
  }

  public func free() {
    let context = pointee.context
    pointee.parameters.free(allocator: context.pointee.allocator)
    context.pointee.allocator.deallocate(pointee.preparedMemory)
    context.pointee.allocator.deallocate(self)
    context.release()
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

  public func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?) {
    parameters.bind(index, data: data, grad: grad, allocator: context.pointee.allocator)
  }

  /// Whether the tape was made for this layer, and whether it is filled.
  public func owns(_ tape: UnsafePointer<Tape>) -> Bool {
    tape.pointee.layerNumber == number && tape.pointee.context == context
  }
  public func isFilled(_ tape: UnsafePointer<Tape>) -> Bool { tape.pointee.contents != nil }
  public func tokens(on tape: UnsafePointer<Tape>) -> Int { tape.pointee.contents?.routing.tokens ?? 0 }
  /// Empties the tape: after an error there is nothing to go back from.
  public func clear(_ tape: TapePointer) { tape.pointee.clear() }
}
