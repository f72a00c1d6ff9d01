/// The parameters that an offloaded layer keeps in memory, read before anything of the layer changes: an error leaves it as it
/// was.
struct Staged {
  private let loading: Loading
  private let memory: UnsafeMutableRawPointer

  init(_ loading: Loading, in context: ContextPointer) throws(Fault) {
    self.loading = loading
    let allocator = context.pointee.allocator
    let raw = try allocator.allocate(bytes: try loading.rawBytes(inMemory: true, in: context))
    defer { allocator.deallocate(raw) }
    var bytes = 0
    try Self.forEach(loading) { (entry) throws(Fault) in bytes += Self.bytes(entry) }
    let memory = try allocator.allocate(bytes: bytes)
    self.memory = memory
    do throws(Fault) {
      var place = memory
      try Self.forEach(loading) { (entry) throws(Fault) in
        try loading.copy(entry, raw: raw, in: context) { part in
          place + (part == 0 ? 0 : entry.matrices.first.bytes)
        }
        place += Self.bytes(entry)
      }
    } catch {
      allocator.deallocate(memory)
      throw error
    }
  }

  func free(_ allocator: Allocator) { allocator.deallocate(memory) }

  func commit() {
    var place = memory
    // What went through once goes through again: nothing is read.
    try? Self.forEach(loading) { (entry) throws(Fault) in
      for part in 0..<entry.matrices.parts {
        let parameter = entry.matrices.part(part)
        UnsafeMutableRawPointer(parameter.data!).copyMemory(from: place, byteCount: parameter.bytes)
        place += parameter.bytes
      }
    }
  }

  private static func forEach(
    _ loading: Loading, _ body: (LayerTensors.Entry) throws(Fault) -> Void
  ) throws(Fault) {
    try loading.tensors.entries { (entry) throws(Fault) in
      if !loading.tensors.layer.comesFromFile(entry.matrices.first) { try body(entry) }
    }
  }

  private static func bytes(_ entry: LayerTensors.Entry) -> Int {
    entry.matrices.first.bytes + (entry.matrices.second?.bytes ?? 0)
  }
}
