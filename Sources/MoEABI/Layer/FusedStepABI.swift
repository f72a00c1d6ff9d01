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
    if parameter.isFrozen {
      throw .badState(
        "options.optimizer would step \(parameter.name), which is prepared in few bits and so stays as it is: leave optimizer NULL and step what is not frozen after this call, or prepare MOE_PREPARED_NONE"
      )
    }
    if optimizer.pointee.count(ofTensor: index) != parameter.count {
      throw .invalid(
        "options.optimizer: its tensor \(index) has \(optimizer.pointee.count(ofTensor: index)) elements, but \(parameter.name) \(parameter.count)"
      )
    }
    if optimizer.pointee.type(ofTensor: index) != parameter.type {
      throw .invalid("options.optimizer: the dtype of its tensor \(index) is not that of \(parameter.name)")
    }
    try requireWhole(optimizer.pointee.matrix(ofTensor: index), parameter)
  }
  return FusedCall(optimizer, clip: options.clip_factor == 0 ? 1 : options.clip_factor)
}

/// What is stepped matrix by matrix has to lie whole in one expert, of which backward has the gradients.
private func requireWhole(_ matrix: Optimizer.Matrix?, _ parameter: Parameter) throws(Fault) {
  guard let matrix, matrix.count > 0, parameter.isOfMatrices else { return }
  if parameter.count / parameter.shape.0 % matrix.count != 0 {
    throw .invalid(
      "options.optimizer steps \(parameter.name) as a matrix of \(matrix.rows) rows and \(matrix.columns) columns, which several experts share, and backward steps expert by expert; have AdamW step it (by_adamw)"
    )
  }
}

/// Backward by itself adds to the gradients of all parameters but frozen ones, those of frozen experts among them.
func requireGradients(_ layer: LayerPointer, frozenExperts: Bool) throws(Fault) {
  for index in 0..<layer.pointee.trainedCount {
    let parameter = layer.pointee.trained(index)
    if parameter.isFrozen || frozenExperts && parameter.isOfMatrices { continue }
    if parameter.grad == nil {
      throw .badState("\(parameter.name) has no memory for its gradient: bind it, or give options.optimizer")
    }
  }
}
