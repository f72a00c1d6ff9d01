// The safetensors format (Hugging Face, 2022):
//     8 bytes            length N of the header, little-endian
//     N bytes            JSON {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                        "__metadata__": {text: text}}, spaces behind it
//     the rest           the tensors' bytes, at begin ..< end of it, without holes

/// One safetensors file, mapped and checked.
struct SafetensorsFile {
  private let file: MappedFile
  /// [count], sorted by name; names follow them in the same block.
  let tensors: UnsafeMutablePointer<StoredTensor>
  let count: Int

  /// As the format's own library has it.
  static var largestHeader: Int { 100_000_000 }

  init(path: UnsafePointer<CChar>, allocator: Allocator) throws(Fault) {
    file = try MappedFile(path: path)
    do throws(Fault) {
      let header = try Header(file, path: path)
      var entries = 0
      var nameBytes = 0
      try header.entries { (json, name) throws(Fault) in
        try json.skip()
        entries += 1
        nameBytes += name.count + 1
      }
      count = entries
      func layout(_ arena: inout Arena) -> (UnsafeMutablePointer<StoredTensor>, UnsafeMutablePointer<CChar>) {
        (arena.take(StoredTensor.self, entries), arena.take(CChar.self, nameBytes))
      }
      var measure = Arena()
      _ = layout(&measure)
      var arena = Arena(try allocator.allocate(bytes: try measure.total()))
      let (list, names) = layout(&arena)
      tensors = list
      do throws(Fault) {
        try Self.fill(list, names, header)
        try Self.requireWhole(list, entries, header)
        try Self.sortByName(list, entries, path)
      } catch {
        allocator.deallocate(list)
        throw error
      }
    } catch {
      file.unmap()
      throw error
    }
  }

  /// Where in the file a tensor's bytes are; nil where they are another file's.
  func offset(of data: UnsafeRawPointer) -> Int? {
    let offset = data - UnsafeRawPointer(file.bytes)
    return offset >= 0 && offset < file.count ? offset : nil
  }

  var descriptor: Int32 { file.descriptor }

  func close(allocator: Allocator) {
    allocator.deallocate(tensors)
    file.unmap()
  }

  private static func fill(
    _ tensors: UnsafeMutablePointer<StoredTensor>, _ names: UnsafeMutablePointer<CChar>, _ header: Header
  ) throws(Fault) {
    var (next, name) = (tensors, names)
    try header.entries { (json, text) throws(Fault) in
      let length = text.decode(to: name)
      next.initialize(to: try header.tensor(&json, name))
      next += 1
      name += length
    }
  }

  /// Tensors follow one another from the first byte to the last, so that none overlap and nothing is hidden between them.
  private static func requireWhole(
    _ tensors: UnsafeMutablePointer<StoredTensor>, _ count: Int, _ header: Header
  ) throws(Fault) {
    heapSort(
      count,
      isLess: {
        tensors[$0].data == tensors[$1].data
          ? tensors[$0].bytes < tensors[$1].bytes : tensors[$0].data < tensors[$1].data
      },
      exchange: { swapAt(tensors, $0, $1) })
    var end = 0
    for i in 0..<count {
      let begin = tensors[i].data - header.data
      if begin < end { throw .invalid("\(tensors[i].name): overlaps another tensor: \(header.path)") }
      if begin > end {
        throw .invalid("\(tensors[i].name): begins at \(begin), the tensor before it ends at \(end): \(header.path)")
      }
      end = begin + tensors[i].bytes
    }
    if end != header.dataBytes {
      throw .invalid("tensors end at byte \(end) of \(header.dataBytes) behind the header: \(header.path)")
    }
  }

  private static func sortByName(
    _ tensors: UnsafeMutablePointer<StoredTensor>, _ count: Int, _ path: UnsafePointer<CChar>
  ) throws(Fault) {
    heapSort(
      count, isLess: { compareText(tensors[$0].name, tensors[$1].name) < 0 },
      exchange: { swapAt(tensors, $0, $1) })
    for i in 1..<max(count, 1) where compareText(tensors[i - 1].name, tensors[i].name) == 0 {
      throw .invalid("\(tensors[i].name): two tensors have this name: \(path)")
    }
  }
}

func swapAt(_ tensors: UnsafeMutablePointer<StoredTensor>, _ i: Int, _ j: Int) {
  let kept = tensors[i]
  tensors[i] = tensors[j]
  tensors[j] = kept
}

/// Position of a name among tensors sorted by name.
func find(_ name: UnsafePointer<CChar>, in tensors: UnsafePointer<StoredTensor>, count: Int) -> Int? {
  var (low, high) = (0, count)
  while low < high {
    let middle = (low + high) / 2
    let order = compareText(tensors[middle].name, name)
    if order == 0 { return middle }
    if order < 0 { low = middle + 1 } else { high = middle }
  }
  return nil
}

/// Where the header lies, and what lies behind it.
private struct Header {
  let path: UnsafePointer<CChar>
  let data: UnsafeRawPointer
  let dataBytes: Int
  private let text: UnsafePointer<UInt8>
  private let length: Int

  init(_ file: MappedFile, path: UnsafePointer<CChar>) throws(Fault) {
    self.path = path
    if file.count < 8 { throw .invalid("\(file.count) bytes are no safetensors file: \(path)") }
    var length: UInt64 = 0
    for i in 0..<8 { length |= UInt64(file.bytes[i]) << UInt64(8 * i) }
    if length > UInt64(SafetensorsFile.largestHeader) {
      throw .invalid("header of \(length) bytes, more than \(SafetensorsFile.largestHeader): \(path)")
    }
    if length > UInt64(file.count - 8) {
      throw .invalid("header of \(length) bytes in a file of \(file.count): \(path)")
    }
    self.length = Int(length)
    text = file.bytes + 8
    data = UnsafeRawPointer(text + self.length)
    dataBytes = file.count - 8 - self.length
  }

  /// Hands over the name of every tensor; `body` reads what is said of it.
  func entries(_ body: (inout JSONReader, JSONText) throws(Fault) -> Void) throws(Fault) {
    var json = JSONReader(text, count: length, path: path)
    var hasMetadata = false
    try json.members { (json, name) throws(Fault) in
      if name == "__metadata__" {
        if hasMetadata { throw json.fault("there is metadata twice") }
        hasMetadata = true
        try json.members { (json, _) throws(Fault) in _ = try json.text() }
      } else {
        try body(&json, name)
      }
    }
    try json.end()
  }

  func tensor(_ json: inout JSONReader, _ name: UnsafePointer<CChar>) throws(Fault) -> StoredTensor {
    var type: StoredType?
    var shape: StoredShape?
    var offsets: (begin: Int, end: Int)?
    try json.members { (json, key) throws(Fault) in
      if key == "dtype" && type == nil {
        type = try Self.type(&json)
      } else if key == "shape" && shape == nil {
        shape = try Self.shape(&json)
      } else if key == "data_offsets" && offsets == nil {
        try json.expect(UInt8(ascii: "["), "an array is expected")
        let begin = try json.wholeNumber()
        try json.expect(UInt8(ascii: ","), "two offsets are expected")
        offsets = (begin, try json.wholeNumber())
        try json.expect(UInt8(ascii: "]"), "two offsets are expected")
      } else {
        throw json.fault("dtype, shape and data_offsets are expected, once each")
      }
    }
    guard let type, let shape, let offsets else {
      throw json.fault("dtype, shape and data_offsets are expected, once each")
    }
    guard let bytes = shape.bytes(type.size) else { throw .invalid("\(name): shape does not fit in 63 bits: \(path)") }
    guard offsets.begin <= offsets.end && offsets.end <= dataBytes else {
      throw .invalid(
        "\(name): data_offsets \(offsets.begin) to \(offsets.end) in \(dataBytes) bytes behind the header: \(path)")
    }
    if offsets.end - offsets.begin != bytes {
      throw .invalid(
        "\(name): data_offsets hold \(offsets.end - offsets.begin) bytes, dtype and shape \(bytes): \(path)")
    }
    // The mapping begins on a page, so what counts is the place in the file.
    if Int(bitPattern: data + offsets.begin) % type.size != 0 {
      throw .invalid("\(name): not aligned to its elements of \(type.size) bytes: \(path)")
    }
    return StoredTensor(name: name, type: type, shape: shape, data: data + offsets.begin, bytes: bytes)
  }

  private static func type(_ json: inout JSONReader) throws(Fault) -> StoredType {
    let text = try json.text()
    for number in 0..<StoredType.count {
      if let type = StoredType(rawValue: number), text == type.name { return type }
    }
    throw json.fault("the dtype is unknown")
  }

  private static func shape(_ json: inout JSONReader) throws(Fault) -> StoredShape {
    var shape = StoredShape()
    try json.elements { (json) throws(Fault) in
      if shape.rank == StoredShape.mostDimensions { throw json.fault("there are more than 8 dimensions") }
      shape.append(try json.wholeNumber())
    }
    return shape
  }
}
