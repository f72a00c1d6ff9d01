import CMoE
import MoE

// Forward, backward and the tape between them.

@implementation @_cdecl("moe_tape_create")
public func moe_tape_create(_ layer: OpaquePointer?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try TapePointer.create(for: layer))
  }
}

@implementation @_cdecl("moe_tape_free")
public func moe_tape_free(_ tape: OpaquePointer?) {
  guard let tape else { return }
  TapePointer(tape).free()
}

@implementation @_cdecl("moe_tape_bind")
public func moe_tape_bind(_ tape: OpaquePointer?, _ memory: UnsafeMutableRawPointer?, _ size: Int) -> moe_status {
  attempt { () throws(Fault) in
    let tape = try handle(tape, "tape", as: Tape.self)
    tape.bind(try lent(memory, size, "memory"))
  }
}

@implementation @_cdecl("moe_plan_init")
public func moe_plan_init(_ plan: UnsafeMutablePointer<moe_plan>?, _ struct_size: Int) {
  initialise(plan, struct_size, moe_plan())
}

@implementation @_cdecl("moe_layer_plan")
public func moe_layer_plan(
  _ layer: OpaquePointer?, _ n_tokens: Int64, _ options: UnsafePointer<moe_forward_options>?, _ taped: Int32,
  _ plan: UnsafeMutablePointer<moe_plan>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let c = layer.pointee.configuration
    try require(Int(n_tokens), "n_tokens", from: 0, to: Int(Int32.max) / c.slots)
    let plan = try required(plan, "plan")
    var wanted = try read(UnsafePointer(plan), "plan")
    var operands = Operands()
    try operands.reads(options, 1, "options")
    try operands.writes(plan, 1, "plan")
    let call = try Call(planning: options, tokens: Int(n_tokens), c)
    let found = try layer.pointee.memoryPlan(call, taped: try flag(taped, "taped"))
    wanted.forward_bytes = found.forwardScratch
    wanted.backward_bytes = found.backwardScratch
    wanted.tape_bytes = found.tape
    wanted.total_bytes = found.total
    wanted.chunk_tokens = Int64(found.chunkTokens)
    wanted.n_tokens = Int64(found.tokens)
    wanted.tape_policy = Int32(found.keepsActivations ? MOE_TAPE_FULL.rawValue : MOE_TAPE_LEAN.rawValue)
    plan.pointee = wanted
  }
}

@implementation @_cdecl("moe_forward_options_init")
public func moe_forward_options_init(_ options: UnsafeMutablePointer<moe_forward_options>?, _ struct_size: Int) {
  initialise(options, struct_size, moe_forward_options())
}

@implementation @_cdecl("moe_report_init")
public func moe_report_init(_ report: UnsafeMutablePointer<moe_report>?, _ struct_size: Int) {
  initialise(report, struct_size, moe_report())
}

@implementation @_cdecl("moe_layer_forward")
public func moe_layer_forward(
  _ layer: OpaquePointer?, _ x: UnsafeRawPointer?, _ n_tokens: Int64,
  _ options: UnsafePointer<moe_forward_options>?, _ y: UnsafeMutableRawPointer?, _ tape: OpaquePointer?,
  _ report: UnsafeMutablePointer<moe_report>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let tape = tape == nil ? nil : try own(tape, of: layer)
    do throws(Fault) {
      try forward(layer, x, n_tokens, options, y, tape, report)
    } catch {
      if let tape { layer.pointee.clear(tape) }  // there is nothing to go back from
      throw error
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
  let tokens = Int(n_tokens)
  let elements = try product(tokens, c.hidden, "n_tokens * hidden_size")
  let x = try array(x, count: elements, of: c.tokens, "x")
  let y = try array(y, count: elements, of: c.tokens, "y")
  let call = try Call(options, tokens: tokens, c)
  var details = Layer.Details()
  var asked = moe_report()
  if report != nil {
    asked = try read(report.map { UnsafePointer($0) }, "report")
    details = try Layer.Details(asked)
  }
  var operands = Operands()
  try operands.reads(x, bytes: byteCount(elements, of: c.tokens), "x")
  try operands.writes(y, bytes: byteCount(elements, of: c.tokens), "y")
  try operands.writes(tape?.pointee.lent, "the memory bound to tape")
  try operands.add(call, options, c)
  try operands.writes(report, 1, "report")
  try details.forEachArray(of: call, c) { (memory, bytes, name) throws(Fault) in
    try operands.add(Operand(memory, bytes: bytes, cText(name), writes: true, part: .ofReport))
  }
  try operands.requireApart(fromParametersOf: layer, steps: false, gradients: false)
  let found = try layer.pointee.forward(x, call, y: y, tape: tape, details: details)
  if let report {
    asked.set(found)
    report.pointee = asked
  }
}

extension Layer.Details {
  /// Where the caller wants the arrays of a report.
  init(_ asked: moe_report) throws(Fault) {
    self.init()
    tokensPerExpert = try optional(asked.tokens_per_expert, "report.tokens_per_expert")
    droppedPerExpert = try optional(asked.dropped_per_expert, "report.dropped_per_expert")
    meanProbability = try optional(asked.mean_probability, "report.mean_probability")
    indices = try optional(asked.expert_indices, "report.expert_indices")
    weights = try optional(asked.expert_weights, "report.expert_weights")
    losses = try optional(asked.losses, "report.losses")
    bySequence.counts = try optional(asked.sequence_counts, "report.sequence_counts")
    bySequence.probability = try optional(asked.sequence_probability, "report.sequence_probability")
    bySequence.valid = try optional(asked.sequence_valid, "report.sequence_valid")
  }

  /// Where there is an array, its bytes and its name within moe_report.
  func forEachArray<E: Error>(
    of call: Call, _ c: Configuration, _ body: (UnsafeMutableRawPointer?, UInt, StaticString) throws(E) -> Void
  ) throws(E) {
    let pairs = call.tokens * c.choices
    try body(tokensPerExpert, byteCount(c.experts, 8), "tokens_per_expert")
    try body(droppedPerExpert, byteCount(c.experts, 8), "dropped_per_expert")
    try body(meanProbability, byteCount(c.experts, 4), "mean_probability")
    try body(indices, byteCount(pairs, 4), "expert_indices")
    try body(weights, byteCount(pairs, 4), "expert_weights")
    try body(losses, byteCount(c.lossCount, 4), "losses")
    let sequences = call.sequences(apart: true)
    try body(bySequence.counts, byteCount(sequences * c.experts, 8), "sequence_counts")
    try body(bySequence.probability, byteCount(sequences * c.experts, 4), "sequence_probability")
    try body(bySequence.valid, byteCount(sequences, 8), "sequence_valid")
  }
}

extension moe_report {
  mutating func set(_ found: Report) {
    balance_loss = found.balanceLoss
    z_loss = found.zLoss
    aux_loss = found.auxLoss
    entropy = found.entropy
    n_dropped = Int64(found.dropped)
    n_valid = Int64(found.valid)
    max_over_mean = found.load.maxOverMean
    variation = found.load.variation
    dead_share = found.load.deadShare
  }
}

@implementation @_cdecl("moe_layer_backward")
public func moe_layer_backward(
  _ layer: OpaquePointer?, _ tape: OpaquePointer?, _ x: UnsafeRawPointer?, _ dy: UnsafeRawPointer?,
  _ d_aux_loss: Float, _ dx: UnsafeMutableRawPointer?, _ options: UnsafePointer<moe_backward_options>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let tape = try own(tape, of: layer)
    try requireTrainable(layer)
    guard layer.pointee.isFilled(tape) else {
      throw .badState("tape is empty: a forward call with this tape comes first")
    }
    let c = layer.pointee.configuration
    let elements = layer.pointee.tokens(on: tape) * c.hidden  // as forward checked it
    let x = try array(x, count: elements, of: c.tokens, "x")
    let dy = try array(dy, count: elements, of: c.tokens, "dy")
    guard d_aux_loss.isFinite else { throw .invalid("d_aux_loss = \(Double(d_aux_loss)) is not finite") }
    var call = Layer.BackwardCall()
    call.dAuxLoss = d_aux_loss
    let given = options
    if options != nil {
      let options = try read(options, "options")
      call.dMeanProbability = try options.d_mean_probability.map { (p) throws(Fault) in
        try required(p, "options.d_mean_probability")
      }
      call.dSequenceProbability = try options.d_sequence_probability.map { (p) throws(Fault) in
        try required(p, "options.d_sequence_probability")
      }
      call.dExpertWeights = try optional(options.d_expert_weights, "options.d_expert_weights")
      if call.dExpertWeights != nil && !layer.pointee.weightsWereGiven(tape) {
        throw .invalid("options.d_expert_weights: forward was given no expert_weights")
      }
      call.scratch = try lent(options.scratch, options.scratch_size, "options.scratch")
      call.step = try step(of: layer, options)
    }
    if call.step == nil { try requireGradients(layer) }
    let dx = dx == nil ? nil : try array(dx, count: elements, of: c.tokens, "dx")
    let (bytes, pairs) = (byteCount(elements, of: c.tokens), layer.pointee.tokens(on: tape) * c.choices)
    var operands = Operands()
    try operands.reads(given, 1, "options")
    try operands.reads(x, bytes: bytes, "x")
    try operands.reads(dy, bytes: bytes, "dy")
    try operands.reads(call.dMeanProbability, c.experts, "options.d_mean_probability")
    let sequences = layer.pointee.sequences(on: tape)
    try operands.reads(call.dSequenceProbability, sequences * c.experts, "options.d_sequence_probability")
    try operands.reads(tape.pointee.lent, "the memory bound to tape")
    try operands.writes(call.scratch, "options.scratch")
    try operands.writes(dx, bytes: bytes, "dx")
    try operands.writes(call.dExpertWeights, pairs, "options.d_expert_weights")
    if let optimizer = call.step?.optimizer { try operands.add(stateOf: optimizer) }
    try operands.requireApart(fromParametersOf: layer, steps: call.step != nil, gradients: true)
    try layer.pointee.backward(tape, x: x, dy: dy, dx: dx, call)
  }
}

/// The optimiser that a backward steps, or nil.
private func step(of layer: LayerPointer, _ options: moe_backward_options) throws(Fault) -> FusedCall? {
  if options.reserved != 0 { throw .invalid("options: reserved = \(Int(options.reserved)) is not 0") }
  try require(Double(options.clip_factor), "options.clip_factor", atLeast: 0)
  if options.optimizer == nil {
    if options.clip_factor != 0 {
      throw .invalid("options.clip_factor = \(Double(options.clip_factor)), but options.optimizer is NULL")
    }
    return nil
  }
  let optimizer = try handle(options.optimizer, "options.optimizer", as: Optimizer.self)
  try optimizer.pointee.requireState()
  if layer.pointee.configuration.keepsExpertGradients {
    throw .badState(
      "options.optimizer: the layer was created without MOE_UNALLOCATED_EXPERT_GRADIENTS; step after this call")
  }
  let (count, expected) = (optimizer.pointee.tensorCount, layer.pointee.trainedCount)
  if count != expected {
    throw .invalid("options.optimizer was created for \(count) tensors, but the layer has \(expected) with gradients")
  }
  for index in 0..<count {
    let parameter = layer.pointee.trained(index)
    if optimizer.pointee.count(ofTensor: index) != parameter.count {
      throw .invalid(
        "options.optimizer: its tensor \(index) has \(optimizer.pointee.count(ofTensor: index)) elements, but \(parameter.name) \(parameter.count)"
      )
    }
    if optimizer.pointee.type(ofTensor: index) != parameter.type {
      throw .invalid("options.optimizer: the dtype of its tensor \(index) is not that of \(parameter.name)")
    }
  }
  return FusedCall(optimizer, clip: options.clip_factor == 0 ? 1 : options.clip_factor)
}

/// Backward by itself adds to the gradients of all parameters.
private func requireGradients(_ layer: LayerPointer) throws(Fault) {
  for index in 0..<layer.pointee.trainedCount {
    let parameter = layer.pointee.trained(index)
    if parameter.grad == nil {
      throw .badState("\(parameter.name) has no memory for its gradient: bind it, or give options.optimizer")
    }
  }
}

private func own(_ tape: OpaquePointer?, of layer: LayerPointer) throws(Fault) -> TapePointer {
  let tape = try handle(tape, "tape", as: Tape.self)
  if !layer.pointee.owns(tape) { throw .badState("tape belongs to another layer") }
  return tape
}
