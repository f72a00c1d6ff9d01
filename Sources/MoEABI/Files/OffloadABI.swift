import CMoE
import MoE

// Experts in a checkpoint's files.

@implementation @_cdecl("moe_layer_offload")
public func moe_layer_offload(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ layout: Int32, _ layer_number: Int64, _ resident_limit: Int
) -> moe_status {
  attempt { () throws(Fault) in try offload(layer, checkpoint, try numbered(layout, layer_number), resident_limit) }
}

@implementation @_cdecl("moe_layer_offload_prefix")
public func moe_layer_offload_prefix(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ layout: Int32, _ prefix: UnsafePointer<CChar>?,
  _ resident_limit: Int
) -> moe_status {
  attempt { () throws(Fault) in try offload(layer, checkpoint, try prefixed(layout, prefix), resident_limit) }
}

private func offload(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ target: (Layout, LayerPlace),
  _ limit: Int
) throws(Fault) {
  let layer = try handle(layer, "layer", as: Layer.self)
  let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
  let (layout, place) = target
  try requireOffloadable(layer)
  try layer.pointee.offload(
    checkpoint.pointee, layout, place, residentLimit: ResidentLimit(bytes: Int(clamping: UInt(bitPattern: limit))))
}

private func requireOffloadable(_ layer: LayerPointer) throws(Fault) {
  if layer.pointee.ranks != nil { throw .badState("the layer's experts are spread over ranks: bind memory to them") }
  if layer.pointee.isOffloaded { throw .badState("the layer is offloaded already") }
  if layer.pointee.configuration.keepsExpertWeights {
    throw .badState("the layer was created without MOE_UNALLOCATED_EXPERT_WEIGHTS")
  }
  guard layer.pointee.offloadedGroup != nil else {
    throw .invalid("layer: exactly one group of its experts must have matrices, to be offloaded")
  }
  for index in 0..<layer.pointee.parameterCount {
    let parameter = layer.pointee.parameter(index)
    if parameter.isUnallocated && parameter.data != nil { throw .badState("\(parameter.name) has been bound") }
  }
}

@implementation @_cdecl("moe_layer_offload_statistics")
public func moe_layer_offload_statistics(
  _ layer: OpaquePointer?, _ statistics: UnsafeMutablePointer<moe_offload_statistics>?
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let statistics = try required(statistics, "statistics")
    let size = try requireSize(statistics, "statistics")
    guard let found = layer.pointee.offloadStatistics else { throw .badState("the layer is not offloaded") }
    statistics.pointee = moe_offload_statistics(
      struct_size: size, hits: Int64(found.hits), misses: Int64(found.misses), bytes_read: Int64(found.bytes),
      n_slots: Int64(found.slots))
  }
}
