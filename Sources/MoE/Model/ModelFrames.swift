import CShims

// What a model's call needs beside its layers. A frame stands in front of the layers' memory; what comes after the last
// layer uses that memory again.

struct ForwardFrame {
  let shared: SharedArrays
  let pooled: PooledArrays?
  let reports: UnsafeMutablePointer<Report>  // [N]
  private let tape: TapeFrame?
  private let first: UnsafePointer<Float>?  // [T,H] the caller's, where there are no embeddings
  private let stream: UnsafeMutablePointer<Float>  // [T,H] without a tape: each layer's y takes the place of its x

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput, tape: TapeFrame?) {
    self.tape = tape
    shared = SharedArrays(&arena, model, input)
    pooled = PooledArrays(&arena, model)
    reports = arena.take(Report.self, model.configuration.layers)
    first = model.configuration.vocabulary > 0 ? nil : input.hidden
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
  private let normed: UnsafeMutablePointer<Float>  // [T,H] where there is a final norm
  private let loss: ModelLoss?
  private let logits: LinearForward?

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput, _ frame: ForwardFrame) {
    let c = model.configuration
    x = frame.x(c.layers)
    normed = arena.take(Float.self, c.finalNorm ? input.tokens : 0, c.hidden)
    var (first, second) = (arena, arena)
    loss = input.targets == nil ? nil : ModelLoss(&first, model, input, withGradients: false)
    logits = model.outputWeight.map {
      LinearForward(
        &second,
        LinearShape(tokens: input.tokens, inputs: c.hidden, outputs: c.vocabulary, weights: $0.type),
        context: model.context)
    }
    arena.cover(first)
    arena.cover(second)
  }

  func run(
    _ model: Model, _ input: ModelInput, _ outputs: ModelOutputs, _ report: inout ModelReport
  ) throws(Fault) {
    let (c, context) = (model.configuration, model.context)
    var last = x
    if c.finalNorm {
      let p = model.parameters
      try model.norm(p[.normWeight]!, p[.normBias], rows: input.tokens, x, to: normed).run(in: context)
      last = UnsafePointer(normed)
    }
    if let hidden = outputs.hidden { hidden.update(from: last, count: input.tokens * c.hidden) }
    if let loss {
      let found = try loss.run(model, input, last, dLoss: 0, tokenLosses: outputs.tokenLosses, dx: nil)
      (report.loss, report.targets) = (found.loss, found.counted)
    }
    if let target = outputs.logits {
      try logits!.run(
        tokens: input.tokens, x: TokenRows(last, stride: c.hidden), weight: model.outputWeight!.data!, bias: nil,
        y: TokenTargets(target, stride: c.vocabulary), in: context)
    }
  }
}

// MARK: backward

struct BackwardFrame {
  let shared: SharedArrays  // what tells the ffn's calls apart; their arrays are on the tape
  let d: UnsafeMutablePointer<Float>  // [T,H] the gradient with respect to the residual stream
  let dMeanProbability: UnsafeMutablePointer<Float>  // [E] of one layer

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput) {
    var nowhere = Arena()
    shared = SharedArrays(&nowhere, model, input)
    d = arena.take(Float.self, input.tokens, model.configuration.hidden)
    dMeanProbability = arena.take(Float.self, model.pooledExperts)
  }
}

/// Before the last layer: the loss, then the final norm.
struct BackwardEnd {
  private let d: UnsafeMutablePointer<Float>  // [T,H]
  private let normed: UnsafeMutablePointer<Float>  // [T,H] where there is a final norm
  private let statistics: UnsafeMutablePointer<Float>  // [T,2]
  private let loss: ModelLoss?

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput, _ frame: BackwardFrame) {
    let c = model.configuration
    d = frame.d
    let rows = c.finalNorm ? input.tokens : 0
    normed = arena.take(Float.self, rows, c.hidden)
    statistics = arena.take(Float.self, rows, 2)
    loss = input.targets == nil ? nil : ModelLoss(&arena, model, input, withGradients: true)
  }

  func run(
    _ model: Model, _ input: ModelInput, _ tape: TapeFrame, dObjective: Double, dHidden: UnsafePointer<Float>?
  ) throws(Fault) {
    let (c, p, context) = (model.configuration, model.parameters, model.context)
    let x = tape.x(c.layers)
    if c.finalNorm {
      try model.norm(p[.normWeight]!, p[.normBias], rows: input.tokens, x, to: normed, statistics).run(in: context)
    }
    let elements = input.tokens * c.hidden
    if let loss {
      _ = try loss.run(
        model, input, c.finalNorm ? UnsafePointer(normed) : x, dLoss: dObjective, tokenLosses: nil, dx: d)
    } else if dHidden == nil {
      d.update(repeating: 0, count: elements)
    }
    if let dHidden {
      try ResidualSum(
        kernels: context.kernels, count: elements, from: loss == nil ? dHidden : nil, dropout: nil,
        x: loss == nil ? nil : dHidden, y: d
      ).run(in: context)
    }
    if c.finalNorm {
      try model.normBackward(p[.normWeight]!, p[.normBias], input, x, statistics, d).run(in: context)
    }
  }
}

extension Model {
  /// [V,H]; nil without a vocabulary.
  var outputWeight: Parameter? { parameters[configuration.tiedOutput ? .embedding : .output] }
}
