import CShims

extension Checkpoint {
  /// How a tensor's elements become those of another type; nil where they are of it.
  private func form(_ tensor: StoredTensor, as type: StoredType) throws(Fault) -> StoredForm? {
    if type == tensor.type { return nil }
    if type == .f32, let form = StoredForm(tensor.type) { return form }
    throw .invalid(
      "\(tensor.name): its dtype is \(tensor.typeName), which cannot be read as \(type.name); convert it elsewhere")
  }

  /// What `read` writes, or why it would not.
  public func bytes(_ tensor: StoredTensor, as type: StoredType) throws(Fault) -> Int {
    if try form(tensor, as: type) == nil { return tensor.bytes }
    guard let bytes = tensor.shape.bytes(type) else {
      throw .invalid("\(tensor.name): as \(type.name) it does not fit in 63 bits")
    }
    return bytes
  }

  /// Copies a tensor's elements: as they are, or as float32. On an error `memory` may hold some of them.
  public func read(_ tensor: StoredTensor, as type: StoredType, to memory: UnsafeMutableRawPointer) throws(Fault) {
    guard let form = try form(tensor, as: type) else { return try read(tensor, to: memory) }
    // The bytes behind the room for the numbers they become: no number is written over bytes that are still wanted.
    let values = memory.assumingMemoryBound(to: Float.self)
    let count = tensor.shape.elements ?? 0
    let raw = memory + (4 * count - tensor.bytes)
    try read(tensor, to: raw)
    widen(StoredValues(form: form, data: raw, type: tensor.type), count, to: values)
  }

  /// In stretches, through memory beside both, since the kernels' arrays do not overlap.
  private func widen(_ stored: StoredValues, _ count: Int, to values: UnsafeMutablePointer<Float>) {
    let stretch = 256
    withUnsafeTemporaryAllocation(of: Float.self, capacity: stretch) { some in
      for first in stride(from: 0, to: count, by: stretch) {
        let length = min(stretch, count - first)
        stored.read(first, stride: 1, count: length, to: some.baseAddress!)
        (values + first).update(from: some.baseAddress!, count: length)
      }
    }
  }

  func read(_ tensor: StoredTensor, to memory: UnsafeMutableRawPointer) throws(Fault) {
    try read(tensor, from: 0, count: tensor.bytes, to: memory)
  }

  /// So many bytes of it.
  func read(
    _ tensor: StoredTensor, from first: Int, count: Int, to memory: UnsafeMutableRawPointer
  ) throws(Fault) {
    try get(tensor.file, tensor.offset + first, count, to: memory)
  }

  /// Some elements from a place, with what scales them, to `raw`, [place.bytes(count)]: as values to read from.
  func values(_ place: StoredPlace, _ count: Int, raw: UnsafeMutableRawPointer) throws(Fault) -> StoredValues {
    var fault: Fault?
    let values = place.fetch(count, to: raw) { file, offset, bytes, memory in
      do throws(Fault) { try get(file, offset, bytes, to: memory) } catch { fault = error }
      return fault == nil
    }
    if let fault { throw fault }
    return values!
  }

  /// Elements from a place, as they are.
  func read(_ place: StoredPlace, _ count: Int, to memory: UnsafeMutableRawPointer) throws(Fault) {
    try get(place.file, place.offset, place.bytes(count), to: memory)
  }

  private func get(_ file: Int32, _ offset: Int, _ bytes: Int, to memory: UnsafeMutableRawPointer) throws(Fault) {
    let error = input(file).read(offset, bytes, to: memory)
    if error != 0 { throw .io("reading a tensor", input(file).descriptor, error) }
  }

  /// Hands over the elements of a tensor one after the other, read some at a time: their number, and where they are, aligned.
  func forEachElement(
    _ tensor: StoredTensor, _ body: (Int, UnsafeRawPointer) throws(Fault) -> Void
  ) throws(Fault) {
    let (input, size, stretch) = (input(tensor.file), tensor.type.alignment, 512)
    for start in stride(from: 0, to: tensor.bytes, by: stretch) {
      let bytes = min(stretch, tensor.bytes - start)
      var fault: Fault?
      withUnsafeTemporaryAllocation(byteCount: stretch, alignment: 8) { memory in
        let some = memory.baseAddress!
        do throws(Fault) {
          let error = input.read(tensor.offset + start, bytes, to: some)
          if error != 0 { throw .io("reading a tensor", input.descriptor, error) }
          for at in stride(from: 0, to: bytes, by: size) { try body((start + at) / size, some + at) }
        } catch {
          fault = error
        }
      }
      if let fault { throw fault }
    }
  }
}
