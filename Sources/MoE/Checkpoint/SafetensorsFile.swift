// The safetensors format (Hugging Face, 2022):
//     8 bytes            length N of the header, little-endian
//     N bytes            JSON {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                        "__metadata__": {text: text}}, spaces behind it
//     the rest           the tensors' bytes, at begin ..< end of it, without holes

/// One safetensors file, checked. Its header is read once, into memory of its own, so that nothing that was checked can change.
struct SafetensorsFile {
  let input: InputFile
  /// Of the whole file; nil where nobody asked for it.
  private let mapping: UnsafeRawPointer?
  /// [count], sorted by name; names follow them in the same block.
  let tensors: UnsafeMutablePointer<StoredTensor>
  let count: Int

  /// As the format's own library has it.
  static var largestHeader: Int { 100_000_000 }

  init(path: UnsafePointer<CChar>, allocator: Allocator, isMapped: Bool) throws(Fault) {
    let input = try InputFile(path: path)
    do throws(Fault) {
      self = try SafetensorsFile(input, path: path, allocator: allocator, isMapped: isMapped)
    } catch {
      input.close()
      throw error
    }
  }

  private init(
    _ input: InputFile, path: UnsafePointer<CChar>, allocator: Allocator, isMapped: Bool
  ) throws(Fault) {
    self.input = input
    let header = try Header(input, path: path, allocator)
    defer { allocator.deallocate(header.text) }
    var entries = 0
    var textBytes = 0
    try header.entries { (json, name) throws(Fault) in
      textBytes += name.count + 1
      try header.visitTypes(&json) { textBytes += $0.count + 1 }
      entries += 1
    }
    count = entries
    let (list, texts) = try allocator.make { ($0.take(StoredTensor.self, entries), $0.take(CChar.self, textBytes)) }
    tensors = list
    do throws(Fault) {
      try Self.fill(list, texts, header)
      try Self.requireWhole(list, entries, header)
      try Self.sortByName(list, entries, path)
      mapping = isMapped ? try input.map() : nil
    } catch {
      allocator.deallocate(list)
      throw error
    }
  }

  /// Whether a file that is open for writing can be read.
  static func check(
    _ descriptor: Int32, path: UnsafePointer<CChar>, allocator: Allocator
  ) throws(Fault) {
    let file = try SafetensorsFile(InputFile(descriptor, path), path: path, allocator: allocator, isMapped: false)
    allocator.deallocate(file.tensors)
  }

  /// Where a tensor's bytes are in memory, if the file is still what it was.
  func data(_ tensor: StoredTensor) throws(Fault) -> UnsafeRawPointer {
    try input.requireUnchanged()
    return mapping! + tensor.offset
  }

  func close(allocator: Allocator) {
    allocator.deallocate(tensors)
    input.unmap(mapping)
    input.close()
  }

  private static func fill(
    _ tensors: UnsafeMutablePointer<StoredTensor>, _ texts: UnsafeMutablePointer<CChar>, _ header: Header
  ) throws(Fault) {
    var (next, free) = (tensors, texts)
    try header.entries { (json, text) throws(Fault) in
      let name = free
      free += text.decode(to: name)
      next.initialize(to: try header.tensor(&json, name, &free))
      next += 1
    }
  }

  /// Tensors follow one another from the first byte to the last, so that none overlap and nothing is hidden between them.
  private static func requireWhole(
    _ tensors: UnsafeMutablePointer<StoredTensor>, _ count: Int, _ header: Header
  ) throws(Fault) {
    heapSort(
      count,
      isLess: {
        tensors[$0].offset == tensors[$1].offset
          ? tensors[$0].bytes < tensors[$1].bytes : tensors[$0].offset < tensors[$1].offset
      },
      exchange: { swapAt(tensors, $0, $1) })
    var end = 0
    for i in 0..<count {
      let begin = tensors[i].offset - header.dataStart
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

/// The header, in memory of its own, and what lies behind it in the file.
private struct Header {
  let path: UnsafePointer<CChar>
  let text: UnsafeMutablePointer<UInt8>
  private let length: Int
  /// In the file.
  let dataStart: Int
  let dataBytes: Int

  init(_ file: InputFile, path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    self.path = path
    length = try Self.length(file, path)
    dataStart = 8 + length
    dataBytes = file.count - dataStart
    text = try file.text(8, length, allocator)
  }

  private static func length(_ file: InputFile, _ path: UnsafePointer<CChar>) throws(Fault) -> Int {
    // The length and the byte behind it, which begins an object.
    var first: (UInt64, UInt8) = (0, UInt8(ascii: "{"))
    let count = min(9, file.count)
    let error = count < 8 ? 0 : withUnsafeMutableBytes(of: &first) { file.read(0, count, to: $0.baseAddress!) }
    if error != 0 { throw .io("reading a file", path, error) }
    let length = UInt64(littleEndian: first.0)
    let isPlausible = count >= 8 && length <= UInt64(SafetensorsFile.largestHeader) && first.1 == UInt8(ascii: "{")
    if !isPlausible, let fault = FileKind.fault(file, path) { throw fault }
    if count < 8 { throw .invalid("\(file.count) bytes are no safetensors file: \(path)") }
    if length > UInt64(SafetensorsFile.largestHeader) {
      throw .invalid(
        "header of \(length) bytes, more than \(SafetensorsFile.largestHeader): no safetensors file: \(path)")
    }
    if length > UInt64(file.count - 8) {
      throw .invalid(
        "header of \(length) bytes in a file of \(file.count): it has been cut short, fetch or copy it again: \(path)")
    }
    return Int(length)
  }

  /// Hands over the name of every tensor; `body` reads what is said of it.
  func entries(_ body: (inout JSONReader, JSONText) throws(Fault) -> Void) throws(Fault) {
    var json = JSONReader(UnsafePointer(text), count: length, path: path)
    var hasMetadata = false
    try json.members { (json, name) throws(Fault) in
      if name == "__metadata__" {
        if hasMetadata { throw json.fault("there is metadata twice") }
        hasMetadata = true
        if try json.takeNull() { return }
        try json.members { (json, _) throws(Fault) in _ = try json.text() }
      } else {
        try body(&json, name)
      }
    }
    try json.end()
  }

  /// Passes over what is said of a tensor, and hands over the names of types that have to be kept.
  func visitTypes(_ json: inout JSONReader, _ body: (JSONText) -> Void) throws(Fault) {
    if !json.isObject { return try json.skip() }
    try json.members { (json, key) throws(Fault) in
      guard key == "dtype", json.isText else { return try json.skip() }
      let type = try json.text()
      if StoredType(named: type) == .other { body(type) }
    }
  }

  /// `free`: room for the name of a type.
  func tensor(
    _ json: inout JSONReader, _ name: UnsafePointer<CChar>, _ free: inout UnsafeMutablePointer<CChar>
  ) throws(Fault) -> StoredTensor {
    var (type, typeName): (StoredType?, UnsafePointer<CChar>?)
    var shape: StoredShape?
    var offsets: (begin: Int, end: Int)?
    try json.members { (json, key) throws(Fault) in
      if key == "dtype" && type == nil {
        let text = try json.text()
        let found = StoredType(named: text)
        (type, typeName) = (found, found == .other ? UnsafePointer(free) : cText(found.name))
        if found == .other { free += text.decode(to: free) }
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
    guard let type, let typeName, let shape, let offsets else {
      throw json.fault("dtype, shape and data_offsets are expected, once each")
    }
    try requirePlace(offsets, name)
    let bytes = offsets.end - offsets.begin
    guard let size = shape.bytes(type) else { throw .invalid("\(name): shape does not fit in 63 bits: \(path)") }
    if !shape.fillsBytes(type) {
      throw .invalid("\(name): its elements of \(typeName) do not fill whole bytes: \(path)")
    }
    // How large the elements of an unknown type are is unknown too.
    if size != bytes && type != .other {
      throw .invalid("\(name): data_offsets hold \(bytes) bytes, dtype and shape \(size): \(path)")
    }
    return StoredTensor(
      name: name, type: type, typeName: typeName, shape: shape, file: 0, offset: dataStart + offsets.begin,
      bytes: bytes)
  }

  private func requirePlace(_ offsets: (begin: Int, end: Int), _ name: UnsafePointer<CChar>) throws(Fault) {
    if offsets.begin > offsets.end {
      throw .invalid("\(name): data_offsets \(offsets.begin) to \(offsets.end) go backwards: \(path)")
    }
    if offsets.end > dataBytes {
      throw .invalid(
        "\(name): data_offsets \(offsets.begin) to \(offsets.end), but only \(dataBytes) bytes behind the header: the file has been cut short, fetch or copy it again: \(path)"
      )
    }
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

extension StoredType {
  /// `other` where no type that is known is called so.
  fileprivate init(named text: JSONText) {
    var number: Int32 = 0
    while let type = StoredType(rawValue: number) {
      if type != .other && text == type.name {
        self = type
        return
      }
      number += 1
    }
    self = .other
  }
}
