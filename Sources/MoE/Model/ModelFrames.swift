import CShims

// What a model's call needs beside its layers. A frame stands in front of the layers' memory; what comes after the last
// layer uses that memory again.

struct ForwardFrame {
  let shared: SharedArrays
  let pooled: PooledArrays?
  let reports: UnsafeMutablePointer<Report>  // [N]
  let positions: UnsafeMutablePointer<Int64>?  // [T] where they are counted
  private let tape: TapeFrame?
  private let first: UnsafePointer<Float>?  // [T,H] the caller's, where there are neither embeddings nor padding
  private let stream: UnsafeMutablePointer<Float>  // [T,H] without a tape: each layer's y takes the place of its x

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput, tape: TapeFrame?) {
    self.tape = tape
    shared = SharedArrays(&arena, model, input)
    pooled = PooledArrays(&arena, model)
    reports = arena.take(Report.self, model.configuration.layers)
    positions = input.countsPositions(model.configuration) ? arena.take(Int64.self, input.tokens) : nil
    first = model.readsItsOwn(input) ? nil : input.hidden
    stream = arena.take(Float.self, tape == nil ? input.tokens : 0, model.configuration.hidden)
  }

  /// What layer n reads; x(N) is what the last one writes.
  func x(_ n: Int) -> UnsafePointer<Float> {
    tape?.x(n) ?? (n == 0 ? first : nil) ?? UnsafePointer(stream)
  }
  /// What layer n writes, or, n = -1, the embedding.
  func y(_ n: Int) -> UnsafeMutablePointer<Float> { UnsafeMutablePointer(mutating: x(n + 1)) }
}

/// Counts and probabilities of all MoE layers, for their loss together.
struct PooledArrays {
  private let layers: Int
  private let experts: Int
  private let counts: UnsafeMutablePointer<Int64>  // [layers, E]
  private let valid: UnsafeMutablePointer<Int64>  // [layers]
  private let probability: UnsafeMutablePointer<Float>  // [layers, E]

  init?(_ arena: inout Arena, _ model: Model) {
    guard model.configuration.pooledCoefficient > 0 else { return nil }
    (layers, experts) = (model.countMoE, model.pooledExperts)
    counts = arena.take(Int64.self, layers, experts)
    valid = arena.take(Int64.self, layers)
    probability = arena.take(Float.self, layers, experts)
  }

  /// What the caller asked for of layer n, written here.
  func take(_ asked: Layer.Details, _ n: Int, _ model: Model) -> Layer.Details {
    let place = model.placeAmongMoE(n) * experts
    var details = asked
    details.tokensPerExpert = counts + place
    details.meanProbability = probability + place
    return details
  }

  func note(_ report: Report, _ n: Int, _ model: Model, _ asked: Layer.Details) {
    let place = model.placeAmongMoE(n) * experts
    valid[model.placeAmongMoE(n)] = Int64(report.valid)
    asked.tokensPerExpert?.update(from: counts + place, count: experts)
    asked.meanProbability?.update(from: probability + place, count: experts)
  }

  func loss(gradient: UnsafeMutablePointer<Float>?) -> Double {
    Double(
      PooledBalance(layers: layers, experts: experts, counts: counts, valid: valid, probability: probability).loss(
        gradient: gradient))
  }
}

/// After the last layer: the final norm, the loss, the logits.
struct ForwardEnd {
  private let x: UnsafePointer<Float>  // [T,H]
  private let normed: UnsafeMutablePointer<Float>?  // [T,H] where there is a final norm
  private let loss: CrossEntropy?
  private let logits: LinearForward?
  private let outputs: ModelOutputs

  /// `x` [T,H] is what the last layer wrote.
  init(
    _ arena: inout Arena, _ model: Model, _ input: ModelInput, x: UnsafePointer<Float>, _ outputs: ModelOutputs
  ) {
    let c = model.configuration
    self.outputs = outputs
    self.x = x
    normed = c.finalNorm ? arena.take(Float.self, input.tokens, c.hidden) : nil
    var (first, second) = (arena, arena)
    loss = CrossEntropy(
      &first, model, input, x: normed.map { UnsafePointer($0) } ?? x, dLoss: 0,
      CrossEntropy.Targets(tokenLosses: outputs.tokenLosses, dx: nil, dWeight: nil))
    logits = model.outputWeight.map {
      LinearForward(
        &second, LinearShape(tokens: input.tokens, inputs: c.hidden, outputs: c.vocabulary, weights: $0.type),
        context: model.context)
    }
    arena.cover(first)
    arena.cover(second)
  }

  func run(_ model: Model, _ input: ModelInput, _ report: inout ModelReport) throws(Fault) {
    let (c, p, context) = (model.configuration, model.parameters, model.context)
    if let normed {
      try model.norm(p[.normWeight]!, p[.normBias], rows: input.tokens, x, to: normed).run(in: context)
    }
    let last = normed.map { UnsafePointer($0) } ?? x
    if let hidden = outputs.hidden { hidden.update(from: last, count: input.tokens * c.hidden) }
    if let loss { (report.loss, report.targets) = try loss.run(in: context) }
    if let target = outputs.logits {
      try logits!.run(
        tokens: input.tokens, x: StridedRows(last, stride: c.hidden), weight: model.outputWeight!.data!, bias: nil,
        y: TokenTargets(target, stride: c.vocabulary), in: context)
    }
  }
}

extension CrossEntropy {
  /// Of a model's call; nil without targets.
  fileprivate init?(
    _ arena: inout Arena, _ model: Model, _ input: ModelInput, x: UnsafePointer<Float>, dLoss: Double,
    _ wanted: Targets
  ) {
    guard let targets = input.targets, let weight = model.outputWeight else { return nil }
    let c = model.configuration
    let problem = Problem(
      x: x, tokens: input.tokens, hidden: c.hidden, weight: weight.data!, weights: weight.type,
      vocabulary: c.vocabulary, targets: targets, ignored: input.ignoreIndex, smoothing: input.smoothing, dLoss: dLoss)
    self.init(&arena, problem, wanted, context: model.context)
  }
}

// MARK: backward

struct BackwardFrame {
  let d: UnsafeMutablePointer<Float>  // [T,H] the gradient with respect to the residual stream
  let dMeanProbability: UnsafeMutablePointer<Float>  // [E] of one layer
  let positions: UnsafeMutablePointer<Int64>?  // [T] where they are counted

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput) {
    d = arena.take(Float.self, input.tokens, model.configuration.hidden)
    dMeanProbability = arena.take(Float.self, model.pooledExperts)
    positions = input.countsPositions(model.configuration) ? arena.take(Int64.self, input.tokens) : nil
  }
}

/// Before the last layer: the loss, then the final norm.
struct BackwardEnd {
  private let x: UnsafePointer<Float>  // [T,H]
  private let d: UnsafeMutablePointer<Float>  // [T,H]
  private let normed: UnsafeMutablePointer<Float>?  // [T,H] where there is a final norm
  private let statistics: UnsafeMutablePointer<Float>  // [T,2]
  private let loss: CrossEntropy?

  /// `x` is what the last layer wrote.
  init(
    _ arena: inout Arena, _ model: Model, _ input: ModelInput, _ frame: BackwardFrame, x: UnsafePointer<Float>,
    dObjective: Double
  ) {
    let c = model.configuration
    self.x = x
    d = frame.d
    normed = c.finalNorm ? arena.take(Float.self, input.tokens, c.hidden) : nil
    statistics = arena.take(Float.self, c.finalNorm ? input.tokens : 0, 2)
    loss = CrossEntropy(
      &arena, model, input, x: normed.map { UnsafePointer($0) } ?? x, dLoss: dObjective,
      CrossEntropy.Targets(tokenLosses: nil, dx: d, dWeight: model.outputWeight?.grad))
  }

  func run(_ model: Model, _ input: ModelInput, dHidden: UnsafePointer<Float>?) throws(Fault) {
    let (c, p, context) = (model.configuration, model.parameters, model.context)
    let elements = input.tokens * c.hidden
    if let normed {
      try model.norm(p[.normWeight]!, p[.normBias], rows: input.tokens, x, to: normed, statistics).run(in: context)
    }
    if let loss {
      _ = try loss.run(in: context)
      try ResidualSum(kernels: context.kernels, count: elements, dropout: nil, x: dHidden, y: d).run(in: context)
    } else if let dHidden {
      d.update(from: dHidden, count: elements)
    } else {
      d.update(repeating: 0, count: elements)
    }
    input.clearOddPadding(d, width: c.hidden, context.kernels)
    if c.finalNorm {
      try model.normBackward(p[.normWeight]!, p[.normBias], input, x, statistics, d).run(in: context)
    }
  }
}

extension Model {
  /// Whether layer 0 reads what the model wrote: embeddings, or a copy of hidden states whose padding may be cleared.
  func readsItsOwn(_ input: ModelInput) -> Bool { configuration.vocabulary > 0 || input.validMask != nil }

  /// [V,H]; nil without a vocabulary.
  var outputWeight: Parameter? { parameters[configuration.tiedOutput ? .embedding : .output] }
}
