/// Writes tensors of the caller's to a safetensors file.
public func writeCheckpoint(
  to path: UnsafePointer<CChar>, in context: ContextPointer, count: Int,
  _ tensor: (Int) throws(Fault) -> StoredTensor
) throws(Fault) {
  let memory = try context.pointee.allocator.allocate(StoredTensor.self, count: count)
  defer { context.pointee.allocator.deallocate(memory) }
  for index in 0..<count { (memory + index).initialize(to: try tensor(index)) }
  try writeSafetensors(StoredList(tensors: memory, count: count), to: path, in: context)
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
