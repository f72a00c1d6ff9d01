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
    let configuration = try Configuration(try read(config, "config"))
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try LayerPointer.create(configuration, in: context))
  }
}

@implementation @_cdecl("moe_layer_free")
public func moe_layer_free(_ layer: OpaquePointer?) {
  guard let layer else { return }
  LayerPointer(layer).free()
}

extension Configuration {
  fileprivate init(_ config: moe_layer_config) throws(Fault) {
    let largest = Int(Int32.max)
    try require(Int(config.hidden_size), "hidden_size", from: 1, to: largest)
    guard let kind = ExpertKind(rawValue: config.expert_kind) else {
      throw .invalid("expert_kind = \(Int(config.expert_kind)) is not a moe_expert_kind")
    }
    let intermediate = try intermediateSize(config, kind)
    try require(intermediate, "intermediate_size", from: 1, to: largest)
    try require(Int(config.n_experts), "n_experts", from: 1, to: largest)
    try require(Int(config.top_k), "top_k", from: 1, to: largest)
    if config.top_k > config.n_experts {
      throw .invalid("top_k = \(Int(config.top_k)) exceeds n_experts = \(Int(config.n_experts))")
    }
    // 2^62 at most, so the first product fits; the largest tensor's bytes may not.
    let largestMatrix = Int(config.hidden_size) * intermediate
    let elements = try product(largestMatrix, Int(config.n_experts), "hidden_size * intermediate_size * n_experts")
    _ = try product(elements, 4, "the size of hidden_size * intermediate_size * n_experts floats")
    let choice = try TokenChoice(config)
    guard config.activation >= 0 && config.activation <= 5 else {
      throw .invalid("activation = \(Int(config.activation)) is not a moe_activation")
    }
    let weightType = try elementType(config.weight_dtype, "weight_dtype")
    let tokenType = try elementType(config.io_dtype, "io_dtype")
    let inferenceOnly = try flag(config.inference_only, "inference_only")
    try requireShare(Double(config.dropout), "dropout")
    if kind == .linear && config.dropout != 0 {
      throw .invalid("dropout = \(Double(config.dropout)), but expert_kind is MOE_EXPERT_LINEAR")
    }
    if kind == .linear && config.activation != 0 {
      throw .invalid("activation = \(Int(config.activation)), but expert_kind is MOE_EXPERT_LINEAR")
    }
    try require(Double(config.balance_coef), "balance_coef", atLeast: 0)
    try require(Double(config.z_coef), "z_coef", atLeast: 0)
    self.init(
      hidden: Int(config.hidden_size), intermediate: intermediate, experts: Int(config.n_experts),
      topK: Int(config.top_k), choice: choice,
      routerBias: try bias(config.router_bias, "router_bias", default: true), kind: kind,
      activation: try between(config), expertBias: try bias(config.expert_bias, "expert_bias", default: kind != .gated),
      weights: weightType, tokens: tokenType, trainable: !inferenceOnly, dropout: config.dropout,
      balanceCoefficient: config.balance_coef, zCoefficient: config.z_coef, seed: config.seed)
  }
}

private func intermediateSize(_ config: moe_layer_config, _ kind: Configuration.ExpertKind) throws(Fault) -> Int {
  if kind != .linear { return Int(config.intermediate_size) }
  guard config.intermediate_size == 0 || config.intermediate_size == config.hidden_size else {
    throw .invalid(
      "intermediate_size = \(Int(config.intermediate_size)) of linear experts is neither 0 nor hidden_size = \(Int(config.hidden_size))"
    )
  }
  return Int(config.hidden_size)
}

/// What experts do between their products.
private func between(_ config: moe_layer_config) throws(Fault) -> moei_activation {
  func check(_ value: Float, _ name: StaticString) throws(Fault) {
    try require(Double(value), name, atLeast: 0)
    if value != 0 && config.expert_kind != Int32(MOE_EXPERT_GATED.rawValue) {
      throw .invalid("\(name) = \(Double(value)), but expert_kind is not MOE_EXPERT_GATED")
    }
  }
  try check(config.glu_limit, "glu_limit")
  try check(config.glu_alpha, "glu_alpha")
  try check(config.glu_offset, "glu_offset")
  if config.glu_alpha != 0 && config.activation != Int32(MOE_ACTIVATION_SILU.rawValue) {
    throw .invalid("glu_alpha = \(Double(config.glu_alpha)), but activation is not MOE_ACTIVATION_SILU")
  }
  return moei_activation(
    kind: config.activation, alpha: config.glu_alpha == 0 ? 1 : config.glu_alpha,
    limit: config.glu_limit == 0 ? .infinity : config.glu_limit, offset: config.glu_offset)
}

private func bias(_ value: Int32, _ name: StaticString, default: Bool) throws(Fault) -> Bool {
  switch value {
  case Int32(MOE_BIAS_DEFAULT.rawValue): return `default`
  case Int32(MOE_BIAS_OFF.rawValue): return false
  case Int32(MOE_BIAS_ON.rawValue): return true
  default: throw .invalid("\(name) = \(Int(value)) is not a moe_bias")
  }
}

private func elementType(_ value: Int32, _ name: StaticString) throws(Fault) -> ElementType {
  guard let type = ElementType(rawValue: value) else { throw .invalid("\(name) = \(Int(value)) is not a moe_dtype") }
  return type
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
    guard data != nil else { throw .invalid("data is NULL") }
    let data = try array(data, count: parameter.count, of: parameter.type, "data")
    let grad = try optional(grad, "grad")
    if grad != nil && !layer.pointee.configuration.trainable {
      throw .invalid("grad must be NULL: the layer was created inference_only")
    }
    if grad != nil && parameter.grad == nil {
      throw .invalid("grad must be NULL: \(parameter.name) has no gradient")
    }
    try requireApart(grad ?? parameter.grad, 4 * parameter.count, "grad", data, parameter.bytes, "data")
    layer.pointee.bind(Int(index), data: data, grad: grad)
  }
}

@implementation @_cdecl("moe_layer_prepare")
public func moe_layer_prepare(_ layer: OpaquePointer?, _ prepared: Int32) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    guard let preparation = Layer.Preparation(rawValue: prepared) else {
      throw .invalid("prepared = \(Int(prepared)) is not a moe_prepared")
    }
    if preparation == .f32 && layer.pointee.configuration.weights == .bf16 {
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

private func parameter(of layer: LayerPointer, _ index: Int64) throws(Fault) -> Parameter {
  try require(Int(index), "index", from: 0, to: layer.pointee.parameterCount - 1)
  return layer.pointee.parameter(Int(index))
}

private func equal(_ literal: StaticString, _ text: UnsafePointer<CChar>) -> Bool {
  for i in 0..<literal.utf8CodeUnitCount where UInt8(bitPattern: text[i]) != literal.utf8Start[i] { return false }
  return text[literal.utf8CodeUnitCount] == 0
}
