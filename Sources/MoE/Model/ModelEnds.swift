import CShims

// What stands behind the last layer: the final norm, the loss, the logits.

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
      var shape = LinearShape(tokens: input.tokens, inputs: c.hidden, outputs: c.vocabulary, weights: $0.type)
      shape.panels = $0.panels
      shape.isDifferentiated = input.isTaped
      return LinearForward(&second, shape, context: model.context)
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
    try model.outputWeight?.requirePackedValues(context.kernels)
    try input.calibration?.pointee.own(model.outputSlot)?.add(
      StridedRows(last, stride: c.hidden), input.tokens, valid: input.validMask, in: context)
    if let hidden = outputs.hidden { hidden.update(from: last, count: input.tokens * c.hidden) }
    if let loss {
      try loss.run(in: context)
      (report.loss, report.targets) = try model.mean(loss)  // before the logits, which take the same memory
    }
    if let target = outputs.logits {
      try logits!.run(
        tokens: input.tokens, x: StridedRows(last, stride: c.hidden), weight: model.outputWeight!.place!,
        bias: model.logitForm.bias, y: StridedTargets(target, stride: c.vocabulary), in: context)
      try LogitJob(
        form: model.logitForm, kernels: context.kernels, count: input.tokens * c.vocabulary, logits: target
      ).run(in: context)
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
    var problem = Problem(
      x: x, tokens: input.tokens, hidden: c.hidden, weight: weight.place!, weights: weight.type,
      vocabulary: c.vocabulary, targets: targets, ignored: input.ignoreIndex, smoothing: input.smoothing, dLoss: dLoss)
    problem.form = model.logitForm
    problem.panels = weight.panels
    problem.isDifferentiated = input.isTaped
    problem.allTargets = model.allTargets
    self.init(&arena, problem, wanted, context: model.context)
  }
}

// MARK: backward

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
      CrossEntropy.Targets(
        tokenLosses: nil, dx: d, dWeight: model.outputWeight?.grad,
        dBias: model.parameters[.logitBias]?.grad))
  }

  func run(_ model: Model, _ input: ModelInput, dHidden: UnsafePointer<Float>?) throws(Fault) {
    let (c, p, context) = (model.configuration, model.parameters, model.context)
    let elements = input.tokens * c.hidden
    if let normed {
      try model.norm(p[.normWeight]!, p[.normBias], rows: input.tokens, x, to: normed, statistics).run(in: context)
    }
    if let loss {
      try model.backward(of: model.outputWeight, p[.logitBias]) { (part) throws(Fault) in
        try loss.run(loss.targets.of(part), in: context)
      }
      try ResidualSum(kernels: context.kernels, count: elements, dropout: nil, x: dHidden, y: d).run(in: context)
    } else if let dHidden {
      d.update(from: dHidden, count: elements)
    } else {
      d.update(repeating: 0, count: elements)
    }
    input.clearOddPadding(d, width: c.hidden, context.kernels)
    if c.finalNorm {
      try model.normBackward(p[.normWeight]!, p[.normBias], rows: input.tokens, x, statistics, d)
    }
  }
}

extension Model {
  /// [V,H]; nil without a vocabulary.
  var outputWeight: Parameter? { parameters[outputRole] }
  fileprivate var outputSlot: Int { parameters.slot(outputRole) }
  private var outputRole: ModelParameters.Role { configuration.tiedOutput ? .embedding : .output }

  fileprivate var logitForm: LogitForm {
    var form = LogitForm()
    form.bias = parameters[.logitBias]?.constants
    (form.scale, form.cap) = (configuration.logitScale, configuration.logitCap)
    return form
  }
}
