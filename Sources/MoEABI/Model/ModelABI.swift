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
    try createModel(context, config) { out.pointee = OpaquePointer($0) }
  }
}

/// `startsRandom`: false where all parameters will be overwritten. `allocates`: false where nobody asks for more than their shapes.
/// `spread`: over which ranks the experts are.
func createModel(
  _ context: ContextPointer, _ config: moe_model_config, startsRandom: Bool = true, allocates: Bool = true,
  over spread: Spreading? = nil, _ body: (ModelPointer) -> Void
) throws(Fault) {
  let layers = try LayerList(config)
  var c = try ModelConfiguration(config, layers)
  (c.startsRandom, c.allocates) = (startsRandom && allocates, allocates)
  try withRotaries(config, &c) { (c) throws(Fault) in
    var c = c
    try c.readLatent(config)
    try withFeedForwards(config, layers) { (moe, dense) throws(Fault) in
      let description = ModelDescription(config, headSize: c.headSize)
      let wanted = try spread.map { (spread) throws(Fault) in
        guard let moe else { throw .invalid("moe is NULL: a model without experts has nothing to spread over ranks") }
        return try spread.wanted(config, moe)
      }
      let model = try ModelPointer.create(
        c, moe: moe, dense: dense, layer: { layers.layer($0, c) }, room: description.bytes, over: wanted, in: context)
      description.write(to: model.pointee.room)
      body(model)
    }
  }
}

/// What the ffn's are; nil where no layer has one of that kind.
private func withFeedForwards(
  _ config: moe_model_config, _ layers: LayerList,
  _ body: (Configuration.Values?, Configuration.Values?) throws(Fault) -> Void
) throws(Fault) {
  var (moe, dense) = (moe_layer_config(), moe_layer_config())
  if layers.hasMoE { moe = try moe_layer_config(moeOf: config) }
  if layers.hasDense { dense = try moe_layer_config(denseOf: config, width: layers.widestDense) }
  try withLayer(layers.hasMoE ? moe : nil) { (moe) throws(Fault) in
    if let moe, config.pooled_balance_coef > 0, !moe.hasGate {
      throw .invalid("pooled_balance_coef = \(config.pooled_balance_coef), but the router has no gate")
    }
    try withLayer(layers.hasDense ? dense : nil) { (dense) throws(Fault) in try body(moe, dense) }
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

@implementation @_cdecl("moe_model_configuration")
public func moe_model_configuration(
  _ model: OpaquePointer?, _ config: UnsafeMutablePointer<moe_model_config>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let config = try required(config, "config")
    let size = try requireSize(UnsafePointer(config), "config")
    config.pointee = ModelDescription.read(model.pointee.room)
    config.pointee.struct_size = size
  }
}

@implementation @_cdecl("moe_model_prepare")
public func moe_model_prepare(_ model: OpaquePointer?, _ prepared: Int32) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try model.pointee.prepare(try Layer.Preparation(prepared, of: model.pointee.configuration.weights, "model"))
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
