import CMoE
import MoE

// Parameters of layers and of models: what is written once for both, then the functions of each.

/// What can be done with the parameters of whoever has some.
private struct OwnedParameters<Owner: ParameterOwner> {
  let owner: UnsafeMutablePointer<Owner>

  init(of pointer: OpaquePointer?) throws(Fault) { owner = try handle(pointer, Owner.noun, as: Owner.self) }

  func count(_ out: UnsafeMutablePointer<Int64>?) throws(Fault) {
    try required(out, "count").pointee = Int64(owner.pointee.parameterCount)
  }

  func describe(_ index: Int64, _ tensor: UnsafeMutablePointer<moe_tensor>?) throws(Fault) {
    let tensor = try required(tensor, "tensor")
    let size = try requireSize(tensor, "tensor")
    tensor.pointee = moe_tensor(try self[index], struct_size: size)
  }

  func find(_ name: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<Int64>?) throws(Fault) {
    let name = try required(name, "name")
    let out = try required(out, "index")
    guard let found = owner.pointee.find(name) else {
      throw .invalid("name: the \(Owner.noun) has no parameter called \(name)")
    }
    out.pointee = Int64(found)
  }

  func bind(
    _ index: Int64, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    let parameter = try self[index]
    if grad != nil && !owner.pointee.isTrainable {
      throw .invalid("grad must be NULL: the \(Owner.noun) was created inference_only")
    }
    if grad != nil && parameter.isBuffer {
      throw .invalid("grad must be NULL: \(parameter.name) has no gradient")
    }
    var operands = Operands()
    let data = try operands.writes(data, parameter.count, of: parameter.type, "data")
    let grad = try operands.writes(optional: grad, parameter.count, "grad")
    // A gradient that stays where it is must not be where the values go either.
    if grad == nil { try operands.requireApart(from: Operand(gradientOf: parameter, writes: true)) }
    try owner.pointee.requireBindable(parameter)
    owner.pointee.bind(Int(index), data: data, grad: grad)
  }

  func zeroGrad() throws(Fault) {
    try requireTrainable(owner)
    owner.pointee.zeroGrad()
  }

  private subscript(index: Int64) -> Parameter {
    get throws(Fault) {
      try require(Int(index), "index", from: 0, to: owner.pointee.parameterCount - 1)
      return owner.pointee.parameter(Int(index))
    }
  }
}

extension OwnedParameters where Owner == Model {
  func freeze(_ index: Int64) throws(Fault) {
    try requireTrainable(owner)
    let parameter = try self[index]
    if parameter.isBuffer {
      throw .invalid("index = \(Int(index)): \(parameter.name) is a buffer, which has no gradient to give up")
    }
    owner.pointee.freeze(Int(index))
  }
}

func requireTrainable<Owner: ParameterOwner>(_ owner: UnsafeMutablePointer<Owner>) throws(Fault) {
  if !owner.pointee.isTrainable { throw .badState("the \(Owner.noun) was created inference_only") }
}

func own<Owner: ParameterOwner>(
  _ tape: OpaquePointer?, of owner: UnsafeMutablePointer<Owner>
) throws(Fault) -> UnsafeMutablePointer<Owner.CallTape> {
  let tape = try handle(tape, "tape", as: Owner.CallTape.self)
  if !owner.pointee.owns(tape) { throw .badState("tape belongs to another \(Owner.noun)") }
  return tape
}

extension Operands {
  /// `steps`: the call changes parameters; `gradients`: it adds to their gradients.
  func requireApart<Owner: ParameterOwner>(
    fromParametersOf owner: UnsafeMutablePointer<Owner>, steps: Bool = false, gradients: Bool = false
  ) throws(Fault) {
    for index in 0..<owner.pointee.parameterCount {
      try requireApart(from: owner.pointee.parameter(index), steps: steps, gradients: gradients)
    }
  }
}

// MARK: layers

@implementation @_cdecl("moe_layer_parameter_count")
public func moe_layer_parameter_count(_ layer: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Layer>(of: layer).count(count) }
}

@implementation @_cdecl("moe_layer_parameter")
public func moe_layer_parameter(
  _ layer: OpaquePointer?, _ index: Int64, _ tensor: UnsafeMutablePointer<moe_tensor>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Layer>(of: layer).describe(index, tensor) }
}

@implementation @_cdecl("moe_layer_find_parameter")
public func moe_layer_find_parameter(
  _ layer: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ index: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Layer>(of: layer).find(name, index) }
}

@implementation @_cdecl("moe_layer_bind_parameter")
public func moe_layer_bind_parameter(
  _ layer: OpaquePointer?, _ index: Int64, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Layer>(of: layer).bind(index, data, grad) }
}

@implementation @_cdecl("moe_layer_zero_grad")
public func moe_layer_zero_grad(_ layer: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Layer>(of: layer).zeroGrad() }
}

// MARK: models

@implementation @_cdecl("moe_model_parameter_count")
public func moe_model_parameter_count(_ model: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).count(count) }
}

@implementation @_cdecl("moe_model_parameter")
public func moe_model_parameter(
  _ model: OpaquePointer?, _ index: Int64, _ tensor: UnsafeMutablePointer<moe_tensor>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).describe(index, tensor) }
}

@implementation @_cdecl("moe_model_find_parameter")
public func moe_model_find_parameter(
  _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ index: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).find(name, index) }
}

@implementation @_cdecl("moe_model_bind_parameter")
public func moe_model_bind_parameter(
  _ model: OpaquePointer?, _ index: Int64, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).bind(index, data, grad) }
}

@implementation @_cdecl("moe_model_freeze")
public func moe_model_freeze(_ model: OpaquePointer?, _ index: Int64) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).freeze(index) }
}

@implementation @_cdecl("moe_model_zero_grad")
public func moe_model_zero_grad(_ model: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in try OwnedParameters<Model>(of: model).zeroGrad() }
}
