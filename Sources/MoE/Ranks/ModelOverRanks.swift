import CShims

// A model over ranks: each rank has sequences of its own. Layers of experts exchange rows by themselves (ForwardOverRanks.swift); all
// else is whole on every rank, which computes it for its own tokens. Gradients of what is whole are chains over all tokens, which
// go on from rank to rank. Before each exchange every rank tells whether all has gone well there.

/// Which call of a model ranks make together.
enum ModelCall: UInt64 {
  case forward = 11
  case backward = 12
  case read = 13
  case load = 14
  case save = 15
}

extension Model {
  /// A call of the boundary begins: what it finds wrong is told to the other ranks, too.
  public func beginCall() throws(Fault) { try ranks?.pointee.beginCall() }
  public func told(_ fault: Fault) -> Fault { ranks?.pointee.told(fault) ?? fault }

  /// Refuses what wants all parameters.
  public func requireWhole() throws(Fault) {
    if ranks == nil { return }
    throw .badState("the model's experts are spread over ranks, and only some of them are here: go by its parameters")
  }

  /// Hears of all ranks' sequences. `details`: what they have to call alike beside the input's own.
  func open(_ call: ModelCall, _ input: ModelInput, details: UInt64 = 0) throws(Fault) {
    guard let ranks else { return }
    var kind = Hash()
    kind.add(call.rawValue)
    kind.add(input.step)
    kind.add(UInt64(input.length))
    kind.add(input.smoothing.bitPattern)
    kind.add((input.training ? 1 : 0) | (input.targets != nil ? 2 : 0) | (input.isTaped ? 4 : 0))
    kind.add(details)
    var tokens = Ranks.AllTokens(tokens: input.tokens)
    tokens.counted = input.countedTargets
    tokens.sequences = input.sequences
    tokens.isDivided = isDivided(input)
    try ranks.pointee.open(tokens, kind: kind)
    ranks.pointee.expect(0)
  }

  // MARK: memory

  private func isDivided(_ input: ModelInput) -> Bool {
    input.chunkTokens != nil || (input.limit ?? context.memoryLimit) != nil
  }

  /// The tokens of a call that would be divided, were there as many on each rank; nil where none divide it.
  func alike(_ input: ModelInput) -> Ranks.AllTokens? {
    guard let ranks, isDivided(input) else { return nil }
    return Ranks.AllTokens(tokens: input.tokens * ranks.pointee.size)
  }

  /// The plan of a call that is open. Where a rank has a limit, chunks are the smallest that one wants; each then keeps what it can.
  func planTogether(_ input: ModelInput, taped: Bool, cache: CachedLayer? = nil) throws(Fault) -> ModelPlan {
    guard let ranks, ranks.pointee.all.isDivided else { return try plan(input, taped: taped, cache: cache) }
    ranks.pointee.expect(1)
    let planner = ModelPlanner(model: self, input: input, taped: taped, cache: cache, over: ranks.pointee.all)
    let limit = input.limit ?? context.memoryLimit
    let wanted = try planner.plan(limit)
    ranks.pointee.words[0] = Int64(wanted.chunk)
    try ranks.pointee.agree(1, nil, next: 0)
    var chunk = wanted.chunk
    for other in 0..<ranks.pointee.size { chunk = min(chunk, Int(ranks.pointee.words(of: other, 1)[0])) }
    return chunk == wanted.chunk ? wanted : try planner.plan(limit, chunk: chunk)
  }

  /// What gradients take at most that go on from rank to rank: a matrix with its bias, an embedding with its positions, a dense ffn.
  var bytesOfChains: Int {
    var (largest, beside, most) = (0, 0, 0)
    for index in 0..<parameters.count {
      let parameter = parameters.parameter(index)
      if parameter.grad == nil { continue }
      largest = max(largest, parameter.count)
      if parameter.rank == 1 || parameters[.positions]?.name == parameter.name { beside = max(beside, parameter.count) }
    }
    for n in 0..<configuration.layers where !configuration.isMoE(n) {
      var count = 0
      feedForwards[n]?.pointee.forEachGradient { count += $1 }
      most = max(most, count)
    }
    return max(largest + beside, most) * MemoryLayout<Float>.stride
  }

  /// What ranks have to go back through alike: which parameters are trained, too.
  func backwardHash(_ dObjective: Double, reachesInput: Bool) -> UInt64 {
    if ranks == nil { return 0 }
    var hash = Hash()
    hash.add(dObjective.bitPattern)
    hash.add(reachesInput ? 1 : 0)
    for index in 0..<parameters.count { hash.add(parameters.parameter(index).grad == nil ? 0 : 1) }
    return hash.value
  }

  /// All ranks have done what a call asked for.
  func close() throws(Fault) { try ranks?.pointee.agree(0, nil, next: nil) }

  /// What the rank's first token and sequence are called among those of all ranks.
  var firstToken: Int { ranks?.pointee.all.first ?? 0 }
  func firstSequence(_ input: ModelInput) -> Int { ranks == nil ? 0 : firstToken / input.length }
  /// Targets of all ranks; nil: those of the call.
  var allTargets: Int? { ranks?.pointee.all.counted }

  /// The mean over all ranks' targets, added up in their order; and how many they are.
  func mean(_ loss: CrossEntropy) throws(Fault) -> (loss: Double, targets: Int) {
    var sum = 0.0
    if let ranks {
      let memory = try ranks.room(context.pointee.allocator) { $0.take(Double.self, 1) }
      try ranks.pointee.agree(0, nil, next: nil)
      try ranks.chain(memory, bytes: MemoryLayout<Double>.stride) { isFirst in
        memory.pointee = loss.sum(behind: isFirst ? 0 : memory.pointee)
      }
      ranks.pointee.expect(0)
      sum = memory.pointee
    } else {
      sum = loss.sum(behind: 0)
    }
    return (loss.mean(sum), loss.share)
  }
}

extension ModelInput {
  fileprivate var countedTargets: Int {
    guard let targets else { return 0 }
    var count = 0
    for t in 0..<tokens where targets[t] != ignoreIndex { count += 1 }
    return count
  }
}

// MARK: gradients of what every rank has whole

/// What of a backward is computed: over ranks gradients of parameters come in another run than those of the input. The raw type
/// is for the linker, as of ExpertForm.
enum GradientPart: Int32 {
  case all
  case parameters
  case input

  var isOfParameters: Bool { self != .input }
  var isOfInput: Bool { self != .parameters }
}

typealias Gradients = (_ body: (UnsafeMutablePointer<Float>, Int) -> Void) -> Void

extension Model {
  /// The backward of a matrix or a norm with its bias. What it adds to their gradients comes first, since the input's may take the place
  /// of the output's.
  func backward(
    of weight: Parameter?, _ bias: Parameter?, _ run: (GradientPart) throws(Fault) -> Void
  ) throws(Fault) {
    if ranks == nil { return try run(.all) }
    try chain({ body in
      if let weight, let grad = weight.grad { body(grad, weight.count) }
      if let bias, let grad = bias.grad { body(grad, bias.count) }
    }) { () throws(Fault) in try run(.parameters) }
    try run(.input)
  }

  /// `add` adds to these gradients: over ranks it goes on from what the ranks before this one have added.
  func chain(_ gradients: Gradients, _ add: () throws(Fault) -> Void) throws(Fault) {
    guard let ranks else { return try add() }
    var count = 0
    gradients { count += $1 }
    if count == 0 { return }
    let memory = try ranks.room(context.pointee.allocator) { $0.take(Float.self, count) }
    try ranks.pointee.agree(0, nil, next: nil)
    var failed: Fault?
    try ranks.chain(gradients: gradients, in: memory) { attempt(&failed, add) }
    ranks.pointee.expect(0)
    if let failed { throw failed }
  }
}

extension FeedForward {
  /// Runs a layer, which over ranks makes agreements of its own: before them all have come so far, and what goes wrong
  /// within is told by the layer.
  func together<R>(_ run: () throws(Fault) -> R) throws(Fault) -> R {
    guard let ranks else { return try run() }
    try ranks.pointee.agree(0, nil, next: nil)
    try layer.pointee.beginCall()
    let result: R
    do throws(Fault) {
      result = try run()
    } catch {
      throw layer.pointee.told(error)
    }
    ranks.pointee.expect(0)
    return result
  }
}

extension Layer {
  /// The gradients of all its parameters.
  func forEachGradient(_ body: (UnsafeMutablePointer<Float>, Int) -> Void) {
    for index in 0..<parameters.trainedCount {
      let parameter = parameters.trained(index)
      if let grad = parameter.grad { body(grad, parameter.count) }
    }
  }
}

extension CrossEntropy.Targets {
  func of(_ part: GradientPart) -> CrossEntropy.Targets {
    CrossEntropy.Targets(
      tokenLosses: tokenLosses, dx: part.isOfInput ? dx : nil, dWeight: part.isOfParameters ? dWeight : nil,
      dBias: part.isOfParameters ? dBias : nil)
  }
}

extension AttentionBackward {
  /// Of a layer of a model.
  func run(_ arrays: AttentionGradients, of work: BlockWork) throws(Fault) {
    try runInputs(arrays, in: work.context)
    let sinks = work[.sinks]
    try work.model.chain({ body in if let sinks, let grad = sinks.grad { body(grad, sinks.count) } }) {
      () throws(Fault) in try addSinks(arrays, in: work.context)
    }
  }
}
