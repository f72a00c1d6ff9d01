import CMoE
import MoE

@implementation @_cdecl("moe_checkpoint_open")
public func moe_checkpoint_open(
  _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let path = try required(path, "path")
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try CheckpointPointer.open(path, in: context))
  }
}

@implementation @_cdecl("moe_checkpoint_free")
public func moe_checkpoint_free(_ checkpoint: OpaquePointer?) {
  guard let checkpoint else { return }
  CheckpointPointer(checkpoint).free()
}

@implementation @_cdecl("moe_checkpoint_tensor_count")
public func moe_checkpoint_tensor_count(
  _ checkpoint: OpaquePointer?, _ count: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
    try required(count, "count").pointee = Int64(checkpoint.pointee.count)
  }
}

@implementation @_cdecl("moe_checkpoint_tensor")
public func moe_checkpoint_tensor(
  _ checkpoint: OpaquePointer?, _ index: Int64, _ tensor: UnsafeMutablePointer<moe_stored_tensor>?
) -> moe_status {
  attempt { () throws(Fault) in
    let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
    let tensor = try required(tensor, "tensor")
    let size = try requireSize(tensor, "tensor")
    try require(Int(index), "index", from: 0, to: checkpoint.pointee.count - 1)
    let found = checkpoint.pointee[Int(index)]
    tensor.pointee = moe_stored_tensor(found, try checkpoint.pointee.data(found), struct_size: size)
  }
}

@implementation @_cdecl("moe_checkpoint_find_tensor")
public func moe_checkpoint_find_tensor(
  _ checkpoint: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ index: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
    let name = try required(name, "name")
    let index = try required(index, "index")
    guard let found = checkpoint.pointee.find(name) else {
      throw checkpoint.pointee.missing(name)
    }
    index.pointee = Int64(found)
  }
}

@implementation @_cdecl("moe_checkpoint_read_tensor")
public func moe_checkpoint_read_tensor(
  _ checkpoint: OpaquePointer?, _ index: Int64, _ dtype: Int32, _ data: UnsafeMutableRawPointer?, _ size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
    try require(Int(index), "index", from: 0, to: checkpoint.pointee.count - 1)
    let tensor = checkpoint.pointee[Int(index)]
    guard let type = StoredType(rawValue: dtype) else {
      throw .invalid("dtype = \(Int(dtype)) is not a moe_dtype")
    }
    let bytes = try checkpoint.pointee.bytes(tensor, as: type)
    if size != bytes {
      throw .invalid("size = \(size), but \(tensor.name) comes to \(bytes) bytes")
    }
    if bytes == 0 { return }
    guard let data else { throw .invalid("data is NULL") }
    if Int(bitPattern: data) % type.alignment != 0 { throw .invalid("data is not aligned to \(type.alignment) bytes") }
    try checkpoint.pointee.read(tensor, as: type, to: data)
  }
}

@implementation @_cdecl("moe_checkpoint_write")
public func moe_checkpoint_write(
  _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ tensors: UnsafePointer<moe_stored_tensor>?,
  _ count: Int64
) -> moe_status {
  attempt { () throws(Fault) in try write(context, path, tensors, count, shardBytes: nil) }
}

@implementation @_cdecl("moe_checkpoint_write_sharded")
public func moe_checkpoint_write_sharded(
  _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ tensors: UnsafePointer<moe_stored_tensor>?,
  _ count: Int64, _ max_shard_size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    try write(context, path, tensors, count, shardBytes: try shardBytes(max_shard_size))
  }
}

private func shardBytes(_ size: Int) throws(Fault) -> Int {
  guard let most = limit(size) else { throw .invalid("max_shard_size = 0 is below 1") }
  return most
}

private func write(
  _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ tensors: UnsafePointer<moe_stored_tensor>?,
  _ count: Int64, shardBytes: Int?
) throws(Fault) {
  let context = try handle(context, "context", as: Context.self)
  let path = try required(path, "path")
  try require(Int(count), "count", from: 0, to: Int(Int32.max))
  let tensors = try array(tensors, count: Int(count), "tensors")
  let distance = count == 0 ? 0 : try requireSize(tensors, "tensors[0]")
  func tensor(_ index: Int) -> UnsafePointer<moe_stored_tensor> {
    (UnsafeRawPointer(tensors) + index * distance).assumingMemoryBound(to: moe_stored_tensor.self)
  }
  for index in 0..<Int(count) {
    let size = try requireSize(tensor(index), "tensors")
    if size != distance {
      throw .invalid("tensors[\(index)]: struct_size = \(size) differs from tensors[0]'s \(distance)")
    }
    _ = try OutgoingTensor(tensor(index).pointee, index)
  }
  try writeCheckpoint(to: path, in: context, count: Int(count), shardBytes: shardBytes) { (index) throws(Fault) in
    try OutgoingTensor(tensor(index).pointee, index)
  }
}

extension moe_stored_tensor {
  fileprivate init(_ tensor: StoredTensor, _ memory: UnsafeRawPointer, struct_size: Int) {
    self.init()
    self.struct_size = struct_size
    name = tensor.name
    dtype = tensor.type.rawValue
    rank = Int32(truncatingIfNeeded: tensor.shape.rank)
    let s = tensor.shape
    shape = (
      Int64(s[0]), Int64(s[1]), Int64(s[2]), Int64(s[3]), Int64(s[4]), Int64(s[5]), Int64(s[6]), Int64(s[7])
    )
    data = memory
    size = tensor.bytes
    dtype_name = tensor.typeName
  }

  fileprivate func extent(_ dimension: Int) -> Int64 {
    switch dimension {
    case 0: shape.0
    case 1: shape.1
    case 2: shape.2
    case 3: shape.3
    case 4: shape.4
    case 5: shape.5
    case 6: shape.6
    default: shape.7
    }
  }
}

extension OutgoingTensor {
  /// Number `index` of the caller's tensors, checked.
  fileprivate init(_ tensor: moe_stored_tensor, _ index: Int) throws(Fault) {
    guard let name = tensor.name, name.pointee != 0 else { throw .invalid("tensors[\(index)]: name is NULL or empty") }
    guard let type = StoredType(rawValue: tensor.dtype) else {
      throw .invalid("tensors[\(index)]: dtype = \(Int(tensor.dtype)) is not a moe_dtype")
    }
    if type.block != nil {
      throw .invalid(
        "tensors[\(index)]: dtype = \(type.name): safetensors files have no such blocks, GGUF has; write F32 or BF16")
    }
    guard tensor.rank >= 0 && tensor.rank <= StoredShape.mostDimensions else {
      throw .invalid("tensors[\(index)]: rank = \(Int(tensor.rank)) is not 0 to \(StoredShape.mostDimensions)")
    }
    var shape = StoredShape()
    for dimension in 0..<Int(tensor.rank) {
      let extent = Int(tensor.extent(dimension))
      if extent < 0 { throw .invalid("tensors[\(index)]: shape[\(dimension)] = \(extent) is negative") }
      shape.append(extent)
    }
    guard let product = shape.bytes(type) else {
      throw .invalid("tensors[\(index)]: the bytes of shape do not fit in 63 bits")
    }
    if !shape.fillsBytes(type) {
      throw .invalid("tensors[\(index)]: its elements of \(type.name) do not fill whole bytes")
    }
    let bytes = type == .other ? try Self.otherBytes(tensor, index) : product
    if type != .other && tensor.size != 0 && tensor.size != bytes {
      throw .invalid("tensors[\(index)]: size = \(tensor.size), but dtype and shape come to \(bytes)")
    }
    if tensor.data == nil && bytes > 0 { throw .invalid("tensors[\(index)]: data is NULL") }
    // A tensor of no bytes has no memory; any address stands for it.
    self.init(
      name: name, type: type, typeName: type == .other ? tensor.dtype_name : nil, shape: shape, bytes: bytes,
      data: tensor.data ?? UnsafeRawPointer(name))
  }

  /// Of a type that only has a name.
  private static func otherBytes(_ tensor: moe_stored_tensor, _ index: Int) throws(Fault) -> Int {
    guard let name = tensor.dtype_name, name.pointee != 0 else {
      throw .invalid("tensors[\(index)]: dtype = MOE_DTYPE_OTHER, but dtype_name is NULL or empty")
    }
    let size = tensor.size
    if size < 0 { throw .invalid("tensors[\(index)]: size does not fit in 63 bits") }
    return size
  }
}

// MARK: layers

@implementation @_cdecl("moe_layer_load")
public func moe_layer_load(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ layout: Int32, _ layer_number: Int64
) -> moe_status {
  attempt { () throws(Fault) in try load(layer, checkpoint, try numbered(layout, layer_number)) }
}

@implementation @_cdecl("moe_layer_load_prefix")
public func moe_layer_load_prefix(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ layout: Int32, _ prefix: UnsafePointer<CChar>?
) -> moe_status {
  attempt { () throws(Fault) in try load(layer, checkpoint, try prefixed(layout, prefix)) }
}

private func load(
  _ layer: OpaquePointer?, _ checkpoint: OpaquePointer?, _ target: (Layout, LayerPlace)
) throws(Fault) {
  let layer = try handle(layer, "layer", as: Layer.self)
  let checkpoint = try handle(checkpoint, "checkpoint", as: Checkpoint.self)
  let (layout, place) = target
  try layer.pointee.requireWhole()
  try layer.pointee.requireMemory()
  try layer.pointee.load(checkpoint.pointee, layout, place)
}

@implementation @_cdecl("moe_layer_save")
public func moe_layer_save(
  _ layer: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ layout: Int32, _ layer_number: Int64, _ dtype: Int32
) -> moe_status {
  attempt { () throws(Fault) in try save(layer, path, try numbered(layout, layer_number), dtype, shardBytes: nil) }
}

@implementation @_cdecl("moe_layer_save_sharded")
public func moe_layer_save_sharded(
  _ layer: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ layout: Int32, _ layer_number: Int64, _ dtype: Int32,
  _ max_shard_size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    try save(layer, path, try numbered(layout, layer_number), dtype, shardBytes: try shardBytes(max_shard_size))
  }
}

@implementation @_cdecl("moe_layer_save_prefix")
public func moe_layer_save_prefix(
  _ layer: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ layout: Int32, _ prefix: UnsafePointer<CChar>?,
  _ dtype: Int32, _ max_shard_size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    let bytes = max_shard_size == 0 ? nil : try shardBytes(max_shard_size)
    try save(layer, path, try prefixed(layout, prefix), dtype, shardBytes: bytes)
  }
}

private func save(
  _ layer: OpaquePointer?, _ path: UnsafePointer<CChar>?,
  _ target: (Layout, LayerPlace), _ dtype: Int32, shardBytes: Int?
) throws(Fault) {
  let layer = try handle(layer, "layer", as: Layer.self)
  let path = try required(path, "path")
  let (layout, place) = target
  let type = try elementType(dtype, "dtype")
  try layer.pointee.requireWhole()
  try layer.pointee.requireMemory()
  try layer.pointee.save(to: path, layout, place, type: type, shardBytes: shardBytes)
}

private func layout(_ number: Int32) throws(Fault) -> Layout {
  guard let found = Layout(rawValue: number) else { throw .invalid("layout = \(Int(number)) is not a moe_layout") }
  return found
}

func numbered(_ layout: Int32, _ number: Int64) throws(Fault) -> (Layout, LayerPlace) {
  let found = try MoEABI.layout(layout)
  if number == Int64(MOE_NO_LAYER_NUMBER) && found.isLibmoe { return (found, .bare) }
  try require(Int(number), "layer_number", from: 0, to: Int(Int32.max))
  return (found, .number(Int(number)))
}

func prefixed(_ layout: Int32, _ prefix: UnsafePointer<CChar>?) throws(Fault) -> (Layout, LayerPlace) {
  let found = try MoEABI.layout(layout)
  let prefix = try required(prefix, "prefix")
  // So that whole names fit where they are put together.
  var length = 0
  while prefix[length] != 0 && length <= longestPrefix { length += 1 }
  if length > longestPrefix { throw .invalid("prefix: more than \(longestPrefix) bytes") }
  return (found, .prefix(prefix))
}

private var longestPrefix: Int { 160 }

@implementation @_cdecl("moe_layer_upcycle")
public func moe_layer_upcycle(
  _ layer: OpaquePointer?, _ dense: UnsafePointer<moe_tensor>?, _ count: Int64
) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let list = try TensorList(dense, count: count)
    try layer.pointee.requireWhole()
    try layer.pointee.requireMemory()
    if layer.pointee.configuration.groupsAreListed {
      throw .invalid("layer: experts of expert_groups cannot be copies of one network")
    }
    var wanted = 0
    try layer.pointee.forEachExpertParameter { (parameter, name) throws(Fault) in
      wanted += 1
      guard let index = list.index(of: name) else { throw .invalid("dense: there is no tensor called \(name)") }
      try list.requireData(index)
      let (_, rows, columns) = parameter.shape
      if list.shape(index) != (parameter.rank > 2 ? StoredShape(rows, columns) : StoredShape(rows)) {
        throw .invalid("tensors[\(index)] (\(name)): shape is not that of one expert")
      }
    }
    if wanted != list.count { try refuseExtra(of: list, layer, wanted) }
    var operands = Operands()
    try list.addStructs(to: &operands)
    for index in 0..<list.count {
      try operands.add(list.dataOperand(index, writes: false))
      // It is looked at while parameters are written.
      try operands.reads(list.name(index), textLength(list.name(index)!) + 1, "the name of a tensor of dense")
    }
    try operands.requireApart(fromParametersOf: layer, steps: true)
    layer.pointee.upcycle { name in
      let index = list.index(of: name)!
      return (UnsafeRawPointer(list.data(index)), list.type(index))
    }
  }
}

/// Names the first tensor that the layer's experts have not.
private func refuseExtra(of list: TensorList, _ layer: LayerPointer, _ wanted: Int) throws(Fault) {
  for index in 0..<list.count {
    let name = list.name(index)
    var isWanted = false
    layer.pointee.forEachExpertParameter { (_, own) in if list.index(of: own) == index { isWanted = true } }
    if !isWanted {
      throw .invalid(
        """
        dense: tensors[\(index)] (\(name)): count = \(list.count), but an expert of the layer has \(wanted) parameters, \
        and this is none of them
        """)
    }
  }
}
