/// Writes tensors of the caller's to a safetensors file; or, where a shard's size is given, an index and its shards.
public func writeCheckpoint(
  to path: UnsafePointer<CChar>, in context: ContextPointer, count: Int, shardBytes: Int?,
  _ tensor: (Int) throws(Fault) -> StoredTensor
) throws(Fault) {
  let memory = try context.pointee.allocator.allocate(StoredTensor.self, count: count)
  defer { context.pointee.allocator.deallocate(memory) }
  for index in 0..<count { (memory + index).initialize(to: try tensor(index)) }
  let outgoing = StoredList(tensors: memory, count: count)
  if let shardBytes {
    try writeShards(outgoing, to: path, mostBytes: shardBytes, in: context)
  } else {
    try writeSafetensors(outgoing, to: path, in: context)
  }
}

private struct StoredList: OutgoingTensors {
  let tensors: UnsafePointer<StoredTensor>
  let count: Int

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<count {
      let tensor = tensors[index]
      try body(
        OutgoingTensor(name: tensor.name, type: tensor.type, shape: tensor.shape, contents: .memory(tensor.data)))
    }
  }
}
