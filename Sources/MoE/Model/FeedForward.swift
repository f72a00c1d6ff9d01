import CShims

/// The ffn of a transformer layer is a Layer: of experts, or, where it is dense, of the only expert that every token uses
/// with the weight 1. So a dense ffn has the experts' kernels, tapes and plans.
struct FeedForward {
  let layer: LayerPointer
  let memory: MemoryPlan
  private let plan: Plan
  private let call: Call
  /// The model's, of a layer that is spread over them.
  let ranks: RanksPointer?
  private let model: UnsafePointer<Model>
  private let shared: SharedArrays?  // of a dense ffn, when it is run
  private let squares: LayerSquares?  // in calibration, when it is run
  /// Of backward, where the layer steps an optimiser.
  private let step: FusedCall?

  /// nil where transformer layers have none. Measures what the call takes. `chunks`: those that ranks divide it into.
  init?(
    _ model: Model, _ n: Int, _ input: ModelInput, _ choice: LayerChoice, taped: Bool, over chunks: RankChunks?
  ) throws(Fault) {
    guard let layer = model.feedForwards[n] else { return nil }
    self.layer = layer
    (shared, squares, self.model, step) = (nil, nil, model.place, nil)
    ranks = layer.pointee.ranks == nil ? nil : model.ranks
    var call = Call(input)
    call.ranks = layer.pointee.ranks
    self.call = call
    if let chunks, ranks != nil {
      plan = Plan(layer.pointee.configuration, call, policy: .lean, chunkTokens: max(chunks.most, 1))
    } else {
      plan = Plan(layer.pointee.configuration, call, choice, taped: taped)
    }
    memory = try layer.pointee.memory(plan, call, taped: taped)
  }

  /// As it was planned; without shared arrays for backward, of which `step` is.
  @inline(never) init?(
    _ model: Model, _ n: Int, _ input: ModelInput, _ shared: SharedArrays?, _ plan: ModelPlan, _ step: FusedCall? = nil
  ) {
    guard let layer = model.feedForwards[n] else { return nil }
    (self.layer, self.model, self.step) = (layer, model.place, step)
    ranks = layer.pointee.ranks == nil ? nil : model.ranks
    var call = Call(input)
    let isMoE = model.configuration.isMoE(n)
    self.shared = isMoE ? nil : shared
    squares = input.calibration?.pointee.layer(n)
    call.ranks = layer.pointee.ranks
    if ranks != nil && plan.isOfRanks { (call.chunkTokens, call.limit) = (plan.chunk, .max) }  // as it was planned
    call.firstToken = model.firstToken
    if isMoE {
      call.tokenIds = shared?.longIds.map { UnsafePointer($0) }
      call.notes = shared?.notes(model.placeAmongMoE(n))
    }
    self.call = call
    self.plan = Plan(layer.pointee.configuration, call, plan.choice(n), taped: plan.taped)
    memory = plan.layers[model.configuration.isMoE(n), plan.keep(n)]!.feedForward!
  }

  /// Of a layer that is spread over ranks: what exchanges take with these chunks.
  static func rankMemory(
    _ model: Model, _ n: Int, _ input: ModelInput, _ chunks: RankChunks, taped: Bool
  ) throws(Fault) -> RankMemory? {
    guard let layer = model.feedForwards[n]?.pointee, let ranks = layer.ranks else { return nil }
    var call = Call(input)
    call.ranks = ranks
    let type = layer.configuration.typeOfRows(over: ranks, layer.prepared, training: call.training)
    return try layer.memory(chunks, call, over: ranks, type, taped: taped)
  }

  /// y = ffn(x), both [T,H].
  @inline(never) func forward(
    _ x: UnsafePointer<Float>, y: UnsafeMutablePointer<Float>, tape: TapePointer?, scratch: UnsafeMutableRawPointer,
    _ details: Layer.Details
  ) throws(Fault) -> Report {
    var call = call
    // Only now: a plan would count the rows of indices that are given, and in a dense ffn all tokens have one.
    if let shared {
      call.givenIndices = UnsafePointer(shared.zeros)
      call.givenWeights = UnsafePointer(shared.ones)
    }
    call.scratch = CallerMemory(scratch, bytes: memory.forwardScratch)
    call.squares = squares
    return try together { () throws(Fault) in
      if ranks != nil { return try layer.pointee.forward(x, call, y: y, tape: tape, details: details) }
      return try layer.pointee.forward(x, call, plan, y: y, tape: tape, details: details)
    }
  }

  /// dx = gradient with respect to x, [T,H] each.
  @inline(never) func backward(
    _ x: UnsafePointer<Float>, dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>, tape: TapePointer,
    scratch: UnsafeMutableRawPointer, dAuxLoss: Float, dMeanProbability: UnsafePointer<Float>?
  ) throws(Fault) {
    var call = Layer.BackwardCall()
    call.dAuxLoss = dAuxLoss
    call.dMeanProbability = dMeanProbability
    call.scratch = CallerMemory(scratch, bytes: memory.backwardScratch)
    call.step = step
    if model.pointee.ranks == nil || ranks != nil {
      return try together { () throws(Fault) in try layer.pointee.backward(tape, x: x, dy: dy, dx: dx, call) }
    }
    try backwardInTurn(x, dy: dy, dx: dx, tape: tape, call)
  }

  /// Of a dense one, which every rank has whole. A function of its own, so that the stack of all others does not hold it.
  @inline(never) private func backwardInTurn(
    _ x: UnsafePointer<Float>, dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>, tape: TapePointer,
    _ call: Layer.BackwardCall
  ) throws(Fault) {
    try model.pointee.chain({ layer.pointee.forEachGradient($0) }) { () throws(Fault) in
      try layer.pointee.backward(tape, x: x, dy: dy, dx: nil, call)
    }
    var last = call
    last.frozenExperts = true
    try layer.pointee.backward(tape, x: x, dy: dy, dx: dx, last)
  }
}

extension Call {
  fileprivate init(_ input: ModelInput) {
    self.init(tokens: input.tokens)
    step = input.step
    training = input.training
    validMask = input.validMask
    lossMask = input.lossMask
    (sequenceLength, hasSequences) = (input.length, true)
  }
}

extension Plan {
  fileprivate init(_ c: Configuration, _ call: Call, _ choice: LayerChoice, taped: Bool) {
    self.init(c, call, policy: taped && choice.keep != .all ? .lean : .full, chunkTokens: choice.chunk)
  }
}

extension Model {
  /// What the layers have to note of a training call, after all of it has gone well.
  func noteTraining(_ input: ModelInput, _ shared: SharedArrays) {
    for n in 0..<configuration.layers where configuration.isMoE(n) {
      guard let measured = shared.notes(placeAmongMoE(n)) else { return }
      feedForwards[n]!.pointee.note(Call(input), measured: measured)
    }
  }
}
