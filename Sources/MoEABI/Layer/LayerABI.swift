import CMoE
import CShims
import MoE

@implementation @_cdecl("moe_layer_config_init")
public func moe_layer_config_init(_ config: UnsafeMutablePointer<moe_layer_config>?, _ struct_size: Int) {
  initialise(config, struct_size, moe_layer_config())
}

@implementation @_cdecl("moe_layer_create")
public func moe_layer_create(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_layer_config>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = try read(config, "config")
    let out = try required(out, "out")
    var groups = GroupList()
    try groups.fill(config)
    try groups.withPointer { (groups, count) throws(Fault) in
      let configuration = try Configuration.Values(config, groups, count: count)
      out.pointee = OpaquePointer(try LayerPointer.create(configuration, in: context))
    }
  }
}

@implementation @_cdecl("moe_layer_free")
public func moe_layer_free(_ layer: OpaquePointer?) {
  guard let layer else { return }
  LayerPointer(layer).free()
}

@implementation @_cdecl("moe_layer_initialize")
public func moe_layer_initialize(_ layer: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in try handle(layer, "layer", as: Layer.self).pointee.initialise() }
}

@implementation @_cdecl("moe_layer_update_selection_bias")
public func moe_layer_update_selection_bias(
  _ layer: OpaquePointer?, _ tokens_per_expert: UnsafePointer<Int64>?, _ rate: Float, _ zero_sum: Int32
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let counts = try required(tokens_per_expert, "tokens_per_expert")
    try require(Double(rate), "rate", atLeast: 0)
    let zeroSum = try flag(zero_sum, "zero_sum")
    if !layer.pointee.configuration.choice.selectionBias {
      throw .badState("the layer was created without selection_bias")
    }
    for e in 0..<layer.pointee.configuration.experts where counts[e] < 0 {
      throw .invalid("tokens_per_expert[\(e)] = \(Int(counts[e])) is negative")
    }
    var operands = Operands()
    try operands.reads(counts, layer.pointee.configuration.experts, "tokens_per_expert")
    try operands.requireApart(fromParametersOf: layer, steps: true, gradients: false)
    layer.pointee.updateSelectionBias(counts, rate: rate, zeroSum: zeroSum)
  }
}

// MARK: parameters

@implementation @_cdecl("moe_layer_parameter_count")
public func moe_layer_parameter_count(_ layer: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try required(count, "count").pointee = Int64(layer.pointee.parameterCount)
  }
}

@implementation @_cdecl("moe_layer_parameter")
public func moe_layer_parameter(
  _ layer: OpaquePointer?, _ index: Int64, _ tensor: UnsafeMutablePointer<moe_tensor>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let tensor = try required(tensor, "tensor")
    let size = try requireSize(tensor, "tensor")
    tensor.pointee = moe_tensor(try parameter(of: layer, index), struct_size: size)
  }
}

@implementation @_cdecl("moe_layer_find_parameter")
public func moe_layer_find_parameter(
  _ layer: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ index: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let name = try required(name, "name")
    let index = try required(index, "index")
    for i in 0..<layer.pointee.parameterCount where equal(layer.pointee.parameter(i).name, name) {
      index.pointee = Int64(i)
      return
    }
    throw .invalid("name: the layer has no parameter called \(name)")
  }
}

@implementation @_cdecl("moe_layer_bind_parameter")
public func moe_layer_bind_parameter(
  _ layer: OpaquePointer?, _ index: Int64, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let parameter = try parameter(of: layer, index)
    if grad != nil && !layer.pointee.configuration.trainable {
      throw .invalid("grad must be NULL: the layer was created inference_only")
    }
    let bound = try Binding(parameter, data, grad)
    if layer.pointee.isOffloaded && parameter.isUnallocated {
      throw .badState("\(parameter.name) is offloaded: there is nothing to bind")
    }
    layer.pointee.bind(Int(index), data: bound.data, grad: bound.grad)
  }
}

@implementation @_cdecl("moe_layer_prepare")
public func moe_layer_prepare(_ layer: OpaquePointer?, _ prepared: Int32) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    guard let preparation = Layer.Preparation(rawValue: prepared) else {
      throw .invalid("prepared = \(Int(prepared)) is not a moe_prepared")
    }
    if let type = preparation.type, !layer.pointee.configuration.groups[0].weights.canBePrepared(as: type) {
      throw .invalid("prepared = MOE_PREPARED_F32, but the layer's weights are bfloat16")
    }
    try layer.pointee.prepare(preparation)
  }
}

@implementation @_cdecl("moe_layer_zero_grad")
public func moe_layer_zero_grad(_ layer: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    try requireTrainable(layer)
    layer.pointee.zeroGrad()
  }
}

func requireTrainable(_ layer: LayerPointer) throws(Fault) {
  if !layer.pointee.configuration.trainable { throw .badState("the layer was created inference_only") }
}

/// The caller's memory for a parameter, checked.
struct Binding {
  let data: UnsafeMutableRawPointer
  let grad: UnsafeMutablePointer<Float>?

  init(
    _ parameter: Parameter, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    guard data != nil else { throw .invalid("data is NULL") }
    self.data = try array(data, count: parameter.count, of: parameter.type, "data")
    self.grad = try optional(grad, "grad")
    if grad != nil && !parameter.hasGradient {
      throw .invalid("grad must be NULL: \(parameter.name) has no gradient")
    }
    var operands = Operands()
    try operands.writes(self.data, bytes: UInt(parameter.bytes), "data")
    try operands.writes(grad ?? parameter.grad, parameter.count, "grad")
  }
}

private func parameter(of layer: LayerPointer, _ index: Int64) throws(Fault) -> Parameter {
  try require(Int(index), "index", from: 0, to: layer.pointee.parameterCount - 1)
  return layer.pointee.parameter(Int(index))
}

extension Operands {
  /// `steps`: the call changes parameters; `gradients`: it adds to their gradients.
  func requireApart(fromParametersOf layer: LayerPointer, steps: Bool, gradients: Bool) throws(Fault) {
    for index in 0..<layer.pointee.parameterCount {
      try requireApart(from: layer.pointee.parameter(index), steps: steps, gradients: gradients)
    }
  }
}

func equal(_ a: UnsafePointer<CChar>, _ b: UnsafePointer<CChar>) -> Bool {
  var i = 0
  while a[i] != 0 && a[i] == b[i] { i += 1 }
  return a[i] == b[i]
}
