import CMoE
import MoE

// A model's forward, backward and the tape between them.

@implementation @_cdecl("moe_model_tape_create")
public func moe_model_tape_create(_ model: OpaquePointer?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try ModelTapePointer.create(for: model))
  }
}

@implementation @_cdecl("moe_model_tape_free")
public func moe_model_tape_free(_ tape: OpaquePointer?) {
  guard let tape else { return }
  ModelTapePointer(tape).free()
}

@implementation @_cdecl("moe_model_plan_memory")
public func moe_model_plan_memory(
  _ model: OpaquePointer?, _ input: UnsafePointer<moe_model_input>?, _ taped: Int32,
  _ plan: UnsafeMutablePointer<moe_model_plan>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let layers = model.pointee.configuration.layers
    var operands = Operands()
    var (plan, wanted) = try operands.updates(plan, "plan")
    let keep = try operands.writes(optional: wanted.keep, layers, "plan.keep")
    let given = try operands.copies(input, "input")
    // Of an array it counts that there is one: none is read, and what stands for it may be smaller.
    var unread = Operands()
    let call = try ModelInput(planning: given, model, &unread)
    let found = try model.pointee.plan(call, taped: try flag(taped, "taped"))
    if found.total == .max { throw .outOfMemory(bytes: found.total) }
    wanted.forward_bytes = found.forwardScratch
    wanted.backward_bytes = found.backwardScratch
    wanted.tape_bytes = found.tape
    wanted.total_bytes = found.total
    wanted.kept_input = Int64(found.input)
    wanted.kept_lean = Int64(found.lean - found.input)
    wanted.kept_all = Int64(layers - found.lean)
    if let keep { for n in 0..<layers { keep[n] = found.keep(n).rawValue } }
    plan.pointee = wanted
  }
}

@implementation @_cdecl("moe_model_forward")
public func moe_model_forward(
  _ model: OpaquePointer?, _ input: UnsafePointer<moe_model_input>?, _ hidden: UnsafeMutablePointer<Float>?,
  _ logits: UnsafeMutablePointer<Float>?, _ tape: OpaquePointer?, _ report: UnsafeMutablePointer<moe_model_report>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let tape = tape == nil ? nil : try own(tape, of: model)
    try model.pointee.beginCall()
    do throws(Fault) {
      try forward(model, input, hidden, logits, tape, report)
    } catch {
      if let tape { model.pointee.clear(tape) }  // there is nothing to go back from
      throw model.pointee.told(error)
    }
  }
}

private func forward(
  _ model: ModelPointer, _ input: UnsafePointer<moe_model_input>?, _ hidden: UnsafeMutablePointer<Float>?,
  _ logits: UnsafeMutablePointer<Float>?, _ tape: ModelTapePointer?, _ report: UnsafeMutablePointer<moe_model_report>?
) throws(Fault) {
  var asked = moe_model_report()
  let call = try ModelForwardCall(model, input, hidden, logits, report, &asked)
  let found = try model.pointee.forward(
    call.input, call.outputs, tape: tape, asked: { call.reports.details($0) }, note: { call.reports.set($0, $1) })
  if let report {
    asked.loss = found.loss
    asked.objective = found.objective
    asked.aux_loss = found.auxLoss
    asked.pooled_balance_loss = found.pooledBalanceLoss
    asked.n_targets = Int64(found.targets)
    report.pointee = asked
  }
}

/// What a forward is given. Looking at it takes much of the stack, which is given back before the model runs.
private struct ModelForwardCall {
  let input: ModelInput
  private(set) var outputs = ModelOutputs()
  let reports: LayerReports

  @inline(never) init(
    _ model: ModelPointer, _ input: UnsafePointer<moe_model_input>?, _ hidden: UnsafeMutablePointer<Float>?,
    _ logits: UnsafeMutablePointer<Float>?, _ report: UnsafeMutablePointer<moe_model_report>?,
    _ asked: inout moe_model_report
  ) throws(Fault) {
    let c = model.pointee.configuration
    var operands = Operands()
    let call = try ModelInput(input, model, &operands)
    _ = try product(call.tokens * c.hidden, 4, "the size of the hidden states")
    _ = try product(call.tokens * c.vocabulary, 4, "the size of the logits")
    if logits != nil && c.vocabulary == 0 { throw .invalid("logits is not NULL, but vocabulary_size = 0") }
    outputs.hidden = try operands.writes(optional: hidden, call.tokens * c.hidden, "hidden")
    outputs.logits = try operands.writes(optional: logits, call.tokens * c.vocabulary, "logits")
    if report != nil {
      asked = try operands.updates(report, "report").1
      outputs.tokenLosses = try operands.writes(optional: asked.token_losses, call.tokens, "report.token_losses")
      if outputs.tokenLosses != nil && call.targets == nil {
        throw .invalid("report.token_losses is not NULL, but input.targets is")
      }
    }
    reports = try LayerReports(asked.layers, count: c.layers)
    try operands.add(Operand(reports.structs, bytes: reports.bytes, cText("report.layers"), writes: true))
    if reports.structs == nil {
      try operands.requireApart(fromParametersOf: model)
    } else {
      try operands.requireApart(ModelReports(model: model, reports: reports, call: call), in: model.pointee.context)
    }
    self.input = call
  }
}

@implementation @_cdecl("moe_model_backward")
public func moe_model_backward(
  _ model: OpaquePointer?, _ tape: OpaquePointer?, _ input: UnsafePointer<moe_model_input>?, _ d_objective: Double,
  _ dhidden: UnsafePointer<Float>?, _ dinput: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let tape = try own(tape, of: model)
    try model.pointee.beginCall()
    do throws(Fault) {
      try requireTrainable(model)
      try requireGradients(model)
      try backward(model, tape, input, d_objective, dhidden, dinput, nil)
    } catch {
      throw model.pointee.told(error)
    }
  }
}

@implementation @_cdecl("moe_model_backward_step")
public func moe_model_backward_step(
  _ model: OpaquePointer?, _ tape: OpaquePointer?, _ input: UnsafePointer<moe_model_input>?, _ d_objective: Double,
  _ dhidden: UnsafePointer<Float>?, _ dinput: UnsafeMutablePointer<Float>?, _ optimizer: OpaquePointer?,
  _ clip_factor: Float
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let tape = try own(tape, of: model)
    try requireTrainable(model)
    if model.pointee.ranks != nil {
      throw .invalid(
        "model: its experts are spread over ranks, whose steps follow backward: call moe_optimizer_step after moe_model_backward"
      )
    }
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    try requireTensors(of: model, optimizer, "optimizer")
    try requireGradients(model) { model.pointee.stepsWithinBackward($0) }
    if !(clip_factor >= 0 && clip_factor < .infinity) {
      throw .invalid("clip_factor = \(Double(clip_factor)) is neither 0, which means 1, nor a finite number above it")
    }
    let step = FusedCall(optimizer, clip: clip_factor == 0 ? 1 : clip_factor)
    try backward(model, tape, input, d_objective, dhidden, dinput, step)
  }
}

private func backward(
  _ model: ModelPointer, _ tape: ModelTapePointer, _ input: UnsafePointer<moe_model_input>?, _ d_objective: Double,
  _ dhidden: UnsafePointer<Float>?, _ dinput: UnsafeMutablePointer<Float>?, _ step: FusedCall?
) throws(Fault) {
  guard let before = tape.pointee.input else {
    throw .badState("tape is empty: a forward call with this tape comes first")
  }
  var operands = Operands()
  let call = try ModelInput(input, model, &operands)
  try call.requireSame(as: before)
  try requireFloat(d_objective, "d_objective")
  let c = model.pointee.configuration
  if dinput != nil && c.vocabulary > 0 { throw .invalid("dinput is not NULL, but the model reads tokens") }
  let elements = call.tokens * c.hidden  // as forward checked it
  let dHidden = try operands.reads(optional: dhidden, elements, "dhidden")
  let dInput = try operands.writes(optional: dinput, elements, "dinput")
  if let step { try operands.add(stateOf: step.optimizer) }
  try operands.requireApart(fromParametersOf: model, steps: step != nil, gradients: true)
  try model.pointee.backward(tape, call, dObjective: d_objective, dHidden: dHidden, dInput: dInput, step: step)
}

/// The arrays of all layers' reports, which forward writes, and the parameters, which it reads.
private struct ModelReports: OperandList {
  let model: ModelPointer
  let reports: LayerReports
  let call: ModelInput

  func visit(_ body: (Operand) -> Void) {
    var ofLayer = Call(tokens: call.tokens)
    ofLayer.sequenceLength = call.length
    for n in 0..<model.pointee.configuration.layers where model.pointee.configuration.isMoE(n) {
      guard let layer = model.pointee.layer(n)?.pointee else { continue }
      reports.details(n).forEachArray(of: ofLayer, layer.configuration, part: .ofLayerReport, index: n, body)
    }
    for index in 0..<model.pointee.parameterCount {
      let parameter = model.pointee.parameter(index)
      body(Operand(data: parameter, writes: false))
      body(Operand(gradientOf: parameter, writes: false))
    }
  }
}
