import CMoE
import MoE

// Forward and backward.

@implementation @_cdecl("moe_layer_forward")
public func moe_layer_forward(
  _ layer: OpaquePointer?, _ x: UnsafeRawPointer?, _ n_tokens: Int64,
  _ options: UnsafePointer<moe_forward_options>?, _ y: UnsafeMutableRawPointer?, _ tape: OpaquePointer?,
  _ report: UnsafeMutablePointer<moe_report>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try layer.pointee.beginCall()
    var filled: TapePointer?
    do throws(Fault) {
      filled = tape == nil ? nil : try own(tape, of: layer)
      try forward(layer, x, n_tokens, options, y, filled, report)
    } catch {
      if let filled { layer.pointee.clear(filled) }  // there is nothing to go back from
      throw layer.pointee.told(error)
    }
  }
}

private func forward(
  _ layer: LayerPointer, _ x: UnsafeRawPointer?, _ n_tokens: Int64, _ options: UnsafePointer<moe_forward_options>?,
  _ y: UnsafeMutableRawPointer?, _ tape: TapePointer?, _ report: UnsafeMutablePointer<moe_report>?
) throws(Fault) {
  let c = layer.pointee.configuration
  // Pairs of tokens and slots are counted in 32 bits, as are OpenBLAS's sizes.
  try require(Int(n_tokens), "n_tokens", from: 0, to: Int(Int32.max) / c.slots)
  let elements = try product(Int(n_tokens), c.hidden, "n_tokens * hidden_size")
  var operands = Operands()
  let x = try operands.reads(x, elements, of: c.tokens, "x")
  let y = try operands.writes(y, elements, of: c.tokens, "y")
  try operands.writes(tape?.pointee.lent, "the memory bound to tape")
  let call = try Call(options, tokens: Int(n_tokens), c, &operands)
  var (details, asked) = (Layer.Details(), moe_report())
  if report != nil {
    asked = try operands.updates(report, "report").1
    details = Layer.Details(asked)
    try details.forEachArray(of: call, c, part: .ofReport) { (array) throws(Fault) in try operands.add(array) }
  }
  try operands.requireApart(fromParametersOf: layer)
  let found = try layer.pointee.forward(x, call, y: y, tape: tape, details: details)
  asked.set(found)
  report?.pointee = asked
}

@implementation @_cdecl("moe_layer_backward")
public func moe_layer_backward(
  _ layer: OpaquePointer?, _ tape: OpaquePointer?, _ x: UnsafeRawPointer?, _ dy: UnsafeRawPointer?,
  _ d_aux_loss: Float, _ dx: UnsafeMutableRawPointer?, _ options: UnsafePointer<moe_backward_options>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try layer.pointee.beginCall()
    do throws(Fault) {
      try backward(layer, tape, x, dy, d_aux_loss, dx, options)
    } catch {
      throw layer.pointee.told(error)
    }
  }
}

private func backward(
  _ layer: LayerPointer, _ tape: OpaquePointer?, _ x: UnsafeRawPointer?, _ dy: UnsafeRawPointer?, _ d_aux_loss: Float,
  _ dx: UnsafeMutableRawPointer?, _ options: UnsafePointer<moe_backward_options>?
) throws(Fault) {
  let tape = try own(tape, of: layer)
  try requireTrainable(layer)
  guard layer.pointee.isFilled(tape) else {
    throw .badState("tape is empty: a forward call with this tape comes first")
  }
  let c = layer.pointee.configuration
  let elements = layer.pointee.tokens(on: tape) * c.hidden  // as forward checked it
  guard d_aux_loss.isFinite else { throw .invalid("d_aux_loss = \(Double(d_aux_loss)) is not finite") }
  var operands = Operands()
  let x = try operands.reads(x, elements, of: c.tokens, "x")
  let dy = try operands.reads(dy, elements, of: c.tokens, "dy")
  try operands.reads(tape.pointee.lent, "the memory bound to tape")
  let dx = dx == nil ? nil : try operands.writes(dx, elements, of: c.tokens, "dx")
  let call = try Layer.BackwardCall(options, dAuxLoss: d_aux_loss, layer, tape, &operands)
  if let optimizer = call.step?.optimizer {
    try operands.add(stateOf: optimizer)
  } else {
    try requireGradients(layer, frozenExperts: call.frozenExperts)
  }
  try operands.requireApart(fromParametersOf: layer, steps: call.step != nil, gradients: true)
  try layer.pointee.backward(tape, x: x, dy: dy, dx: dx, call)
}

extension Layer.BackwardCall {
  fileprivate init(
    _ options: UnsafePointer<moe_backward_options>?, dAuxLoss: Float, _ layer: LayerPointer, _ tape: TapePointer,
    _ operands: inout Operands
  ) throws(Fault) {
    self.init()
    self.dAuxLoss = dAuxLoss
    if options == nil { return }
    let options = try operands.copies(options, "options")
    let c = layer.pointee.configuration
    dMeanProbability = try operands.reads(
      optional: options.d_mean_probability, c.experts, "options.d_mean_probability")
    dSequenceProbability = try operands.reads(
      optional: options.d_sequence_probability, layer.pointee.sequences(on: tape) * c.experts,
      "options.d_sequence_probability")
    dExpertWeights = try operands.writes(
      optional: options.d_expert_weights, layer.pointee.tokens(on: tape) * c.choices, "options.d_expert_weights")
    if dExpertWeights != nil && !layer.pointee.weightsWereGiven(tape) {
      throw .invalid("options.d_expert_weights: forward was given no expert_weights")
    }
    scratch = try lent(options.scratch, options.scratch_size, "options.scratch")
    try operands.writes(scratch, "options.scratch")
    frozenExperts = options.frozen_experts != 0
    step = try fusedStep(of: layer, options)
  }
}
