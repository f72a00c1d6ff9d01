import CShims

// A cache in a file; moe_model.h lists the tensors. One list of them serves both ways.

/// Rows of a cache's sequences: the first ones of each, which a tensor holds without gaps, all heads of a token side by side.
struct SequenceRows {
  let memory: UnsafeMutableRawPointer  // [B, heads, capacity] rows
  let sequences: Int
  let heads: Int
  let capacity: Int
  let width: Int  // bytes of a row
  /// Of each sequence [B]; nil: of all as many.
  let known: UnsafePointer<Int>?
  let length: Int

  private func count(_ sequence: Int) -> Int { known.map { $0[sequence] } ?? length }

  var total: Int {
    var sum = 0
    for sequence in 0..<sequences { sum += count(sequence) }
    return sum
  }

  /// Hands over where the tensor's bytes are, one piece after the other, and how many.
  func forEach(_ body: (UnsafeMutableRawPointer, Int) throws(Fault) -> Void) throws(Fault) {
    for sequence in 0..<sequences where count(sequence) > 0 {
      let own = memory + sequence * heads * capacity * width
      if heads == 1 {
        try body(own, count(sequence) * width)
        continue
      }
      for row in 0..<count(sequence) {
        for head in 0..<heads { try body(own + (head * capacity + row) * width, width) }
      }
    }
  }
}

/// What is saved of a cache.
private struct CacheFile: OutgoingTensors {
  let cache: Cache
  let sizes: UnsafeMutablePointer<Int64>  // [2] length, capacity
  let layers: Int

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    try body(
      OutgoingTensor(name: cText("sizes"), type: .i64, shape: StoredShape(2), contents: .memory(sizes)))
    try body(
      OutgoingTensor(
        name: cText("valid"), type: .u8, shape: StoredShape(cache.sequences, cache.length), contents: .sequences(valid))
    )
    try visitLayers(body)
  }

  var valid: SequenceRows {
    SequenceRows(
      memory: cache.valid, sequences: cache.sequences, heads: 1, capacity: cache.capacity, width: 1, known: nil,
      length: cache.length)
  }

  func visitLayers(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for n in 0..<layers {
      let layer = cache.layer(n)
      try layer.forEachArray { (part, memory, width) throws(Fault) in
        if width == 0 { return }
        let rows = SequenceRows(
          memory: memory, sequences: cache.sequences, heads: layer.widths.heads, capacity: cache.capacity,
          width: width * layer.precision.bytes, known: UnsafePointer(cache.known), length: 0)
        try withText { (text: inout TextBuffer) in
          text.append("layers.")
          text.append(n)
          text.append(".")
          text.append(part)
        } body: { (name) throws(Fault) in
          try body(
            OutgoingTensor(
              name: name, type: layer.precision == .bf16 ? .bf16 : .f32,
              shape: StoredShape(rows.total, rows.heads * width), contents: .sequences(rows)))
        }
      }
    }
  }
}

extension Cache {
  public func save(to path: UnsafePointer<CChar>) throws(Fault) {
    let allocator = context.pointee.allocator
    let sizes = try allocator.allocate(Int64.self, count: 2)
    defer { allocator.deallocate(sizes) }
    (sizes[0], sizes[1]) = (Int64(length), Int64(capacity))
    try writeSafetensors(CacheFile(cache: self, sizes: sizes, layers: layers), to: path, in: context)
  }
}

extension UnsafeMutablePointer where Pointee == Cache {
  /// The cache that was saved, with room for `capacity` tokens of each sequence, or for as many as it had. `check` looks at
  /// sequences and capacity before there is memory for them.
  public static func load(
    for model: UnsafePointer<Model>, from path: UnsafePointer<CChar>, capacity wanted: Int?,
    check: (_ sequences: Int, _ capacity: Int) throws(Fault) -> Void
  ) throws(Fault) -> CachePointer {
    let context = model.pointee.context
    let checkpoint = try CheckpointPointer.open(path, in: context, isMapped: false)
    defer { checkpoint.free() }
    let stored = StoredCache(file: checkpoint.pointee, path: path, context: context)
    let (length, saved) = try stored.sizes()
    let sequences = try stored.sequences(length: length)
    let capacity = wanted ?? saved
    if capacity < length {
      throw .invalid("max_length = \(capacity) is below the \(length) tokens of each sequence in the file: \(path)")
    }
    try check(sequences, capacity)
    let cache = try create(for: model, sequences: sequences, capacity: capacity)
    do throws(Fault) {
      try stored.fill(cache, length: length, layers: model.pointee.configuration.layers)
    } catch {
      cache.free()
      throw error
    }
    return cache
  }
}

/// A file that should be a cache's.
private struct StoredCache {
  let file: Checkpoint
  let path: UnsafePointer<CChar>
  let context: ContextPointer

  /// Bytes that are read from the file at once.
  private static let stretch = 1 << 18

  private func tensor(
    _ name: UnsafePointer<CChar>, _ type: StoredType, or other: StoredType? = nil
  ) throws(Fault) -> StoredTensor {
    guard let found = file.tensor(name) else {
      throw .invalid("\(name): the file does not have it, so it is no cache, or one of another model: \(path)")
    }
    if found.type != type && found.type != other {
      throw .invalid("\(name): \(found.typeName) in the file, \(type.name) in a cache: \(path)")
    }
    return found
  }

  func sizes() throws(Fault) -> (length: Int, capacity: Int) {
    let found = try tensor(cText("sizes"), .i64)
    if found.shape != StoredShape(2) { throw .invalid("sizes: a cache has two of them: \(path)") }
    var (length, capacity) = (0, 0)
    try file.forEachElement(found) { (place, element) throws(Fault) in
      let size = Int(element.load(as: Int64.self))
      if place == 0 { length = size } else { capacity = size }
    }
    if length < 0 || capacity < 1 || length > capacity || capacity > Int(Int32.max) {
      throw .invalid("sizes: \(length) tokens of at most \(capacity) is no cache's: \(path)")
    }
    return (length, capacity)
  }

  func sequences(length: Int) throws(Fault) -> Int {
    let found = try tensor(cText("valid"), .u8)
    if found.shape.rank != 2 || found.shape[0] < 1 || found.shape[1] != length {
      throw .invalid("valid: a cache has one number for each of \(length) tokens of each sequence: \(path)")
    }
    return found.shape[0]
  }

  func fill(_ cache: CachePointer, length: Int, layers: Int) throws(Fault) {
    let valid = CacheFile(cache: cache.pointee, sizes: nowhere, layers: layers).valid.ofLength(length)
    try read(try tensor(cText("valid"), .u8), to: valid, of: .u8)
    try valid.forEach { (start, bytes) throws(Fault) in
      for i in 0..<bytes where start.load(fromByteOffset: i, as: UInt8.self) > 1 {
        throw .invalid("valid: a number is neither 0 nor 1: \(path)")
      }
    }
    cache.truncate(length)  // counts the real ones
    var expected = 2
    try CacheFile(cache: cache.pointee, sizes: nowhere, layers: layers).visitLayers { (wanted) throws(Fault) in
      guard case .sequences(let rows) = wanted.contents else { return }
      // Another processor's may have been rounded, or not: attention rounds alike.
      let found = try tensor(wanted.name, wanted.type, or: wanted.type == .f32 ? .bf16 : .f32)
      if found.shape != wanted.shape {
        throw .invalid(
          "\(wanted.name): \(found.shape) in the file, \(wanted.shape) in a cache of this model: \(path)")
      }
      try read(found, to: rows, of: wanted.type)
      expected += 1
    }
    if file.count != expected {
      throw .invalid("\(file.count) tensors in the file, a cache of this model has \(expected): \(path)")
    }
  }

  private var nowhere: UnsafeMutablePointer<Int64> { UnsafeMutablePointer(bitPattern: MemoryLayout<Int64>.alignment)! }

  private func read(_ tensor: StoredTensor, to rows: SequenceRows, of type: StoredType) throws(Fault) {
    let (from, to) = (tensor.type.alignment, type.alignment)  // bytes of an element
    let input = file.input(tensor.file)
    let allocator = context.pointee.allocator
    let stretch = try allocator.allocate(bytes: Self.stretch)
    defer { allocator.deallocate(stretch) }
    var (read, begin, end) = (0, 0, 0)  // of the tensor, and what of the stretch is not yet where it belongs
    try rows.forEach { (start, bytes) throws(Fault) in
      let elements = bytes / to
      var done = 0
      while done < elements {
        if begin == end {
          (begin, end) = (0, min(Self.stretch, tensor.bytes - read))
          let error = input.read(tensor.offset + read, end, to: stretch)
          if error != 0 { throw .io("reading a tensor", input.descriptor, error) }
          read += end
        }
        let some = min(elements - done, (end - begin) / from)
        put(some, stretch + begin, tensor.type, to: start + done * to, type)
        (done, begin) = (done + some, begin + some * from)
      }
    }
  }

  private func put(
    _ count: Int, _ source: UnsafeMutableRawPointer, _ found: StoredType, to out: UnsafeMutableRawPointer,
    _ type: StoredType
  ) {
    let kernels = context.kernels
    switch (found, type) {
    case (.f32, .bf16):
      kernels.pointee.to_bf16(
        Int64(count), source.assumingMemoryBound(to: Float.self), out.assumingMemoryBound(to: UInt16.self))
    case (.bf16, .f32):
      kernels.pointee.from_bf16(
        Int64(count), source.assumingMemoryBound(to: UInt16.self), out.assumingMemoryBound(to: Float.self))
    default: out.copyMemory(from: source, byteCount: count * type.alignment)
    }
  }
}

extension SequenceRows {
  fileprivate func ofLength(_ length: Int) -> SequenceRows {
    SequenceRows(
      memory: memory, sequences: sequences, heads: heads, capacity: capacity, width: width, known: known,
      length: length)
  }
}
