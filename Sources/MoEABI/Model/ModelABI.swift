import CMoE
import CShims
import MoE

// A model's life and layers.

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
