import CShims

// The story of a sequence on one page: embedding, layers, final norm, loss; then the same backwards.

public struct Model {
  public let configuration: ModelConfiguration
  public internal(set) var context: ContextPointer
  let number: Int64
  var place: UnsafePointer<Model>  // where it stands
  let parameters: ModelParameters
  var feedForwards: UnsafeMutablePointer<LayerPointer?>  // [N]
  let list: ParameterList
  /// The folder that the parameters came from; nil where they came from none.
  public internal(set) var origin: ModelOrigin?
  /// The ranks that the experts are spread over, see Ranks/ModelOverRanks.swift; nil where all are here.
  public internal(set) var ranks: RanksPointer?
  private let firstMoE: Int?
  let rotaries: UnsafePointer<ModelRotary>  // by number
  /// Memory that whoever made the model asked for, and fills.
  public let room: UnsafeMutableRawPointer
  fileprivate let turn: Lock  // backward calls add to the same gradients, so they take turns

  init(
    _ c: ModelConfiguration, at place: UnsafePointer<Model>, context: ContextPointer, parameters: ModelParameters,
    feedForwards: UnsafeMutablePointer<LayerPointer?>, list: ParameterList,
    rotaries: UnsafePointer<ModelRotary>, room: UnsafeMutableRawPointer, turn: Lock
  ) {
    configuration = c
    self.context = context
    number = context.numberForLayer()
    self.place = place
    self.parameters = parameters
    self.feedForwards = feedForwards
    self.list = list
    firstMoE = c.first(isMoE: true)
    self.rotaries = rotaries
    self.room = room
    self.turn = turn
  }

  // MARK: forward

  /// `asked` tells where the arrays of layer n's report go; `note` gets the report, once all has gone well.
  public func forward(
    _ input: ModelInput, _ outputs: ModelOutputs, tape: ModelTapePointer?, asked: (Int) -> Layer.Details,
    note: (Int, Report) -> Void
  ) throws(Fault) -> ModelReport {
    if tape != nil { try requireTrainedValues() }
    var input = input
    input.isTaped = tape != nil
    try open(.forward, input)
    let plan = try planTogether(input, taped: tape != nil)
    let taped = try tape?.pointee.prepare(self, input, plan)
    var report = ModelReport()
    try context.withScratch(plan.forwardScratch) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let frame = ForwardFrame(&arena, self, input, tape: taped?.frame)
      frame.shared.fill()
      let input = input.placed(in: frame.positions, configuration)
      try embed(input, to: frame.y(-1))
      for n in 0..<configuration.layers {
        let wanted = configuration.isMoE(n) ? asked(n) : Layer.Details()
        try forward(n, input, plan, frame, taped, arena, wanted)
        report.auxLoss += Double(frame.reports[n].auxLoss)
      }
      report.pooledBalanceLoss = frame.pooled?.loss(gradient: taped?.frame.pooledGradient) ?? 0
      try ForwardEnd(&arena, self, input, x: frame.x(configuration.layers), outputs).run(self, input, &report)
      try close()
      for n in 0..<configuration.layers { note(n, frame.reports[n]) }
      noteTraining(input, frame.shared)
    }
    report.objective =
      report.loss + report.auxLoss + configuration.pooledCoefficient * report.pooledBalanceLoss
    if let taped { tape!.pointee.fill(taped) }
    return report
  }

  /// Layer n.
  @inline(never) func forward(
    _ n: Int, _ input: ModelInput, _ plan: ModelPlan, _ frame: ForwardFrame, _ taped: ModelTapeContents?,
    _ arena: Arena, _ asked: Layer.Details, cache: CachedLayer? = nil
  ) throws(Fault) {
    var arena = arena
    let feedForward = FeedForward(self, n, input, frame.shared, plan)
    let block = BlockForward(
      &arena, BlockWork(model: self, n: n, input: input), feedForward, tape: taped?.blocks[n], cache: cache,
      x: frame.x(n), y: frame.y(n))
    let isMoE = configuration.isMoE(n)
    let pooled = isMoE ? frame.pooled : nil
    var report = Report()
    do throws(Fault) {
      report = try block.run(tape: taped.map { $0.tapes + n }, pooled?.take(asked, n, self) ?? asked)
    } catch {
      throw error.inLayer(n)
    }
    pooled?.note(report, n, self, asked)
    (frame.reports + n).initialize(to: isMoE ? report : Report())
  }

  /// x(0) [T,H], where tokens come in.
  func embed(_ input: ModelInput, to x: UnsafeMutablePointer<Float>) throws(Fault) {
    if !readsItsOwn(input) { return }
    if let hidden = input.hidden { x.update(from: hidden, count: input.tokens * configuration.hidden) }
    defer { input.clearOddPadding(x, width: configuration.hidden, context.kernels) }
    guard let embedding = embedding(input), let table = parameters[.embedding] else { return }
    var forward = EmbeddingForward(
      embedding, context: context, table: UnsafeRawPointer(table.place!), type: table.type,
      positions: parameters[.positions]?.constants, y: x)
    if let panels = table.frozenPanels {
      try table.requirePackedValues(context.kernels)
      forward.panels = panels
    }
    try forward.run(in: context)
    try ResidualSum(
      kernels: context.kernels, count: input.tokens * configuration.hidden, dropout: embeddingDropout(input),
      firstElement: firstToken * configuration.hidden, y: x
    ).run(in: context)
  }

  private func embedding(_ input: ModelInput) -> Embedding? {
    input.ids.map {
      Embedding(
        tokens: $0, count: input.tokens, hidden: configuration.hidden, sequenceLength: input.length,
        positions: input.positions, scale: configuration.embeddingScale)
    }
  }

  private func embeddingDropout(_ input: ModelInput) -> InvertedDropout? {
    InvertedDropout(configuration, input, seed: configuration.seed, .embeddingDropout, context: context)
  }

  // MARK: backward

  /// Adds the gradients of dObjective * objective + <dHidden, hidden> to those of the parameters that are not frozen, and
  /// overwrites dInput [B,S,H], where hidden states came in. With a step the gradients begin at 0 and are applied.
  public func backward(
    _ tape: UnsafePointer<ModelTape>, _ input: ModelInput, dObjective: Double, dHidden: UnsafePointer<Float>?,
    dInput: UnsafeMutablePointer<Float>?, step: FusedCall? = nil
  ) throws(Fault) {
    let taped = tape.pointee.contents!
    if taped.packings != parameters.packings { throw .packedSince }
    var input = input
    input.isTaped = true
    try open(.backward, input, details: backwardHash(dObjective, reachesInput: dInput != nil))
    try turn.acquire(for: "model")
    defer { turn.release() }
    try context.withScratch(taped.plan.backwardScratch) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let frame = BackwardFrame(&arena, self, input)
      let input = input.placed(in: frame.positions, configuration)
      let steps = try step == nil ? nil : ModelStep(step!, self, taped, frame.step)
      try backwardEnd(input, frame, taped, arena, dObjective, dHidden)
      let model = steps?.begin() ?? place
      let last = lastOfBackward(reachesInput: dInput != nil)
      var n = configuration.layers - 1
      while n >= last {
        try model.pointee.backward(n, input, frame, taped, arena, dObjective, steps?.begin(layer: n))
        steps?.finish(layer: n)
        n -= 1
      }
      try model.pointee.embedBackward(input, frame.d)
      steps?.finish()
      try close()
      if let dInput { dInput.update(from: frame.d, count: input.tokens * configuration.hidden) }
    }
  }

  /// From the objective to what the last layer wrote.
  @inline(never) private func backwardEnd(
    _ input: ModelInput, _ frame: BackwardFrame, _ taped: ModelTapeContents, _ arena: Arena, _ dObjective: Double,
    _ dHidden: UnsafePointer<Float>?
  ) throws(Fault) {
    var arena = arena
    try BackwardEnd(
      &arena, self, input, frame, x: taped.frame.x(configuration.layers), dObjective: dObjective
    ).run(self, input, dHidden: dHidden)
  }

  @inline(never) private func backward(
    _ n: Int, _ input: ModelInput, _ frame: BackwardFrame, _ taped: ModelTapeContents, _ arena: Arena,
    _ dObjective: Double, _ step: FusedCall?
  ) throws(Fault) {
    var arena = arena
    let feedForward = FeedForward(self, n, input, nil, taped.plan, step)
    let pooled = configuration.isMoE(n) ? taped.frame.pooledGradient : nil
    if let pooled {
      let factor = Float(dObjective * configuration.pooledCoefficient)
      let own = pooled + placeAmongMoE(n) * pooledExperts
      for e in 0..<pooledExperts { frame.dMeanProbability[e] = factor * own[e] }
    }
    let block = BlockBackward(
      &arena, BlockWork(model: self, n: n, input: input), feedForward, tape: taped.blocks[n], d: frame.d)
    try block.run(
      tape: taped.tapes + n, dAuxLoss: Float(dObjective),
      dMeanProbability: pooled == nil ? nil : UnsafePointer(frame.dMeanProbability))
  }

  /// Where backward ends: before it nothing is trained. Behind the last layer where no layer has to be gone through.
  private func lastOfBackward(reachesInput: Bool) -> Int {
    if reachesInput || trainsEmbedding { return 0 }
    for n in 0..<configuration.layers
    where parameters.trains(n) || feedForwards[n]?.pointee.parameters.trainsAny ?? false { return n }
    return configuration.layers
  }

  private var trainsEmbedding: Bool {
    parameters[.embedding]?.isTrained ?? false || parameters[.positions]?.isTrained ?? false
  }

  @inline(never) private func embedBackward(_ input: ModelInput, _ d: UnsafeMutablePointer<Float>) throws(Fault) {
    guard trainsEmbedding, let table = parameters[.embedding] else { return }
    try ResidualSum(
      kernels: context.kernels, count: input.tokens * configuration.hidden, dropout: embeddingDropout(input),
      firstElement: firstToken * configuration.hidden, y: d
    ).run(in: context)
    let positions = parameters[.positions]
    try chain({ body in
      if let grad = table.grad { body(grad, table.count) }
      if let positions, let grad = positions.grad { body(grad, positions.count) }
    }) { () throws(Fault) in
      guard let embedding = embedding(input) else { return }  // a rank without tokens
      try EmbeddingBackward(
        embedding, context: context, dy: d, dTable: table.grad, dPositions: positions?.grad
      ).run(in: context)
    }
  }
}

extension Model {
  var hasDenseLayers: Bool { countMoE < configuration.layers }
  var countMoE: Int { configuration.moeLayers }
  /// Number of MoE layer n among these.
  func placeAmongMoE(_ n: Int) -> Int { configuration.layer(n).moeBefore }
  /// Of the MoE layers, which are alike.
  public var moeConfiguration: Configuration? { firstMoE.map { feedForwards[$0]!.pointee.configuration } }
  var pooledExperts: Int { moeConfiguration?.experts ?? 0 }
  var hashesTokens: Bool { moeConfiguration?.router.readsTokenIds ?? false }
}
