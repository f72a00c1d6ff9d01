import CMoE
import MoE

// Backward with an optimiser that steps the experts as their gradients come.

/// The optimiser that a backward steps, or nil.
func fusedStep(of layer: LayerPointer, _ options: moe_backward_options) throws(Fault) -> FusedCall? {
  if options.optimizer == nil {
    if options.clip_factor != 0 {
      throw .invalid("options.clip_factor = \(Double(options.clip_factor)), but options.optimizer is NULL")
    }
    return nil
  }
  if options.frozen_experts != 0 {
    throw .invalid(
      "options.frozen_experts = 1 beside options.optimizer, which steps experts by their gradients: give one")
  }
  let optimizer = try handle(options.optimizer, "options.optimizer", as: Optimizer.self)
  if layer.pointee.ranks != nil {
    throw .badState("options.optimizer: the layer's experts are spread over ranks; step after this call")
  }
  if layer.pointee.configuration.keepsExpertGradients {
    throw .badState(
      "options.optimizer: the layer was created without MOE_UNALLOCATED_EXPERT_GRADIENTS; step after this call")
  }
  try requireTensors(of: layer, optimizer, "options.optimizer")
  return FusedCall(optimizer, clip: options.clip_factor == 0 ? 1 : options.clip_factor)
}

/// Refuses an optimiser, called `name`, of other tensors than the trained parameters.
func requireTensors<Owner: ParameterOwner>(
  of owner: UnsafeMutablePointer<Owner>, _ optimizer: OptimizerPointer, _ name: StaticString
) throws(Fault) {
  try optimizer.pointee.requireState()
  var count = 0
  for index in 0..<owner.pointee.parameterCount {
    let parameter = owner.pointee.parameter(index)
    if parameter.isInBlocks && !parameter.isBuffer {
      throw .badState(
        "\(name) cannot step \(parameter.name) within backward, which is prepared in few bits: leave optimizer NULL and step what is not frozen after this call, or prepare MOE_PREPARED_NONE and make a new optimizer"
      )
    }
    if parameter.isTrained { count += 1 }
  }
  let own = optimizer.pointee.tensorCount
  if own != count {
    throw .invalid("\(name) was created for \(own) tensors, but the \(Owner.noun) has \(count) with gradients")
  }
  var next = 0
  for index in 0..<owner.pointee.parameterCount where owner.pointee.parameter(index).isTrained {
    try requireSame(optimizer, tensor: next, name, owner.pointee.parameter(index))
    next += 1
  }
}

private func requireSame(
  _ optimizer: OptimizerPointer, tensor: Int, _ name: StaticString, _ parameter: Parameter
) throws(Fault) {
  if optimizer.pointee.count(ofTensor: tensor) != parameter.count {
    throw .invalid(
      "\(name): its tensor \(tensor) has \(optimizer.pointee.count(ofTensor: tensor)) elements, but \(parameter.name) \(parameter.count)"
    )
  }
  if optimizer.pointee.type(ofTensor: tensor) != parameter.type {
    throw .invalid("\(name): the dtype of its tensor \(tensor) is not that of \(parameter.name)")
  }
  try requireWhole(optimizer.pointee.matrix(ofTensor: tensor), name, parameter)
}

/// What is stepped matrix by matrix has to lie whole in one expert, of which backward has the gradients.
private func requireWhole(
  _ matrix: Optimizer.Matrix?, _ name: StaticString, _ parameter: Parameter
) throws(Fault) {
  guard let matrix, matrix.count > 0, parameter.isOfMatrices else { return }
  if parameter.count / parameter.shape.0 % matrix.count != 0 {
    throw .invalid(
      "\(name) steps \(parameter.name) as a matrix of \(matrix.rows) rows and \(matrix.columns) columns, which several experts share, and backward steps expert by expert; have AdamW step it (by_adamw)"
    )
  }
}

/// Backward by itself adds to the gradients of all parameters but frozen ones. `frozenExperts`: not to those of experts; nor to those
/// that need none.
func requireGradients<Owner: ParameterOwner>(
  _ owner: UnsafeMutablePointer<Owner>, frozenExperts: Bool = false, needsNone: (Int) -> Bool = { _ in false }
) throws(Fault) {
  for index in 0..<owner.pointee.parameterCount {
    let parameter = owner.pointee.parameter(index)
    if !parameter.isTrained || frozenExperts && parameter.isOfMatrices || needsNone(index) { continue }
    if parameter.grad == nil {
      throw .badState("\(parameter.name) has no memory for its gradient: bind it, or give an optimizer")
    }
  }
}
