import CMoE
import CShims
import MoE

// A model's life and parameters.

@implementation @_cdecl("moe_model_create")
public func moe_model_create(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_model_config>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = try read(config, "config")
    let out = try required(out, "out")
    let c = try ModelConfiguration(config)
    var (moe, dense) = (moe_layer_config(), moe_layer_config())
    let hasDense = c.hasFeedForward && c.moeEvery != 1
    if c.moeEvery != nil { moe = try moe_layer_config(moeOf: config, c) }
    if hasDense { dense = try moe_layer_config(denseOf: config) }
    try withLayer(c.moeEvery == nil ? nil : moe) { (moe) throws(Fault) in
      if let moe, c.pooledCoefficient > 0, !moe.hasGate {
        throw .invalid("pooled_balance_coef = \(c.pooledCoefficient), but the router has no gate")
      }
      try withLayer(hasDense ? dense : nil) { (dense) throws(Fault) in
        out.pointee = OpaquePointer(try ModelPointer.create(c, moe: moe, dense: dense, in: context))
      }
    }
  }
}

/// A layer's configuration, whose lists live as long as `body` runs.
private func withLayer(
  _ config: moe_layer_config?, _ body: (Configuration.Values?) throws(Fault) -> Void
) throws(Fault) {
  guard let config else { return try body(nil) }
  var groups = GroupList()
  try groups.fill(config)
  try groups.withPointer { (groups, count) throws(Fault) in
    try body(try Configuration.Values(config, groups, count: count))
  }
}

@implementation @_cdecl("moe_model_free")
public func moe_model_free(_ model: OpaquePointer?) {
  guard let model else { return }
  ModelPointer(model).free()
}

@implementation @_cdecl("moe_model_parameter_count")
public func moe_model_parameter_count(_ model: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try required(count, "count").pointee = Int64(model.pointee.parameterCount)
  }
}

@implementation @_cdecl("moe_model_parameter")
public func moe_model_parameter(
  _ model: OpaquePointer?, _ index: Int64, _ tensor: UnsafeMutablePointer<moe_tensor>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let tensor = try required(tensor, "tensor")
    let size = try requireSize(tensor, "tensor")
    tensor.pointee = moe_tensor(try parameter(of: model, index), struct_size: size)
  }
}

@implementation @_cdecl("moe_model_find_parameter")
public func moe_model_find_parameter(
  _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ index: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let name = try required(name, "name")
    let index = try required(index, "index")
    guard let found = model.pointee.find(name) else {
      throw .invalid("name: the model has no parameter called \(name)")
    }
    index.pointee = Int64(found)
  }
}

@implementation @_cdecl("moe_model_bind_parameter")
public func moe_model_bind_parameter(
  _ model: OpaquePointer?, _ index: Int64, _ data: UnsafeMutableRawPointer?, _ grad: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let bound = try Binding(try parameter(of: model, index), data, grad)
    model.pointee.bind(Int(index), data: bound.data, grad: bound.grad)
  }
}

@implementation @_cdecl("moe_model_zero_grad")
public func moe_model_zero_grad(_ model: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try requireTrainable(model)
    model.pointee.zeroGrad()
  }
}

@implementation @_cdecl("moe_model_layer")
public func moe_model_layer(
  _ model: OpaquePointer?, _ n: Int64, _ layer: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let layer = try required(layer, "layer")
    try require(Int(n), "n", from: 0, to: model.pointee.configuration.layers - 1)
    guard let found = model.pointee.layer(Int(n)) else {
      throw .invalid("n = \(Int(n)): the layers of norm_place = MOE_NORM_NONE have no ffn")
    }
    layer.pointee = OpaquePointer(found)
  }
}

func requireTrainable(_ model: ModelPointer) throws(Fault) {
  if !model.pointee.configuration.trainable { throw .badState("the model was created inference_only") }
}

private func parameter(of model: ModelPointer, _ index: Int64) throws(Fault) -> Parameter {
  try require(Int(index), "index", from: 0, to: model.pointee.parameterCount - 1)
  return model.pointee.parameter(Int(index))
}
