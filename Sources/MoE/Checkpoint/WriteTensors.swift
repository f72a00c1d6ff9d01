/// Writes tensors of the caller's to a safetensors file; or, where a shard's size is given, an index and its shards.
public func writeCheckpoint(
  to path: UnsafePointer<CChar>, in context: ContextPointer, count: Int, shardBytes: Int?,
  _ tensor: (Int) throws(Fault) -> OutgoingTensor
) throws(Fault) {
  let memory = try context.pointee.allocator.allocate(OutgoingTensor.self, count: count)
  defer { context.pointee.allocator.deallocate(memory) }
  for index in 0..<count { (memory + index).initialize(to: try tensor(index)) }
  let outgoing = OutgoingList(tensors: memory, count: count)
  if let shardBytes {
    try writeShards(outgoing, to: path, mostBytes: shardBytes, in: context)
  } else {
    try writeSafetensors(outgoing, to: path, in: context)
  }
}

private struct OutgoingList: OutgoingTensors {
  let tensors: UnsafePointer<OutgoingTensor>
  let count: Int

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<count { try body(tensors[index]) }
  }
}
