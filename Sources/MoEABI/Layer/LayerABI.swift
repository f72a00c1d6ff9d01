import CMoE
import CShims
import MoE

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
    var operands = Operands()
    let experts = layer.pointee.configuration.experts
    let counts = try operands.reads(tokens_per_expert, experts, "tokens_per_expert")
    try require(Double(rate), "rate", atLeast: 0)
    let zeroSum = try flag(zero_sum, "zero_sum")
    if !layer.pointee.configuration.choice.selectionBias {
      throw .badState("the layer was created without selection_bias")
    }
    for e in 0..<experts where counts[e] < 0 {
      throw .invalid("tokens_per_expert[\(e)] = \(Int(counts[e])) is negative")
    }
    try operands.requireApart(fromParametersOf: layer, steps: true)
    layer.pointee.updateSelectionBias(counts, rate: rate, zeroSum: zeroSum)
  }
}

@implementation @_cdecl("moe_layer_prepare")
public func moe_layer_prepare(_ layer: OpaquePointer?, _ prepared: Int32) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let weights = layer.pointee.configuration.groups[0].weights
    try layer.pointee.prepare(try Layer.Preparation(prepared, of: weights, "layer"))
  }
}

extension Layer.Preparation {
  /// A moe_prepared for the weights of a layer or model, which `owner` says.
  init(_ prepared: Int32, of weights: ElementType, _ owner: StaticString) throws(Fault) {
    guard let own = Layer.Preparation(rawValue: prepared) else {
      throw .invalid("prepared = \(Int(prepared)) is not a moe_prepared")
    }
    try own.requireInMemory("prepared")
    if let form = own.form, !weights.canBePrepared(as: form) {
      throw .invalid("prepared = MOE_PREPARED_F32, but the \(owner)'s weights are bfloat16")
    }
    self = own
  }
}
