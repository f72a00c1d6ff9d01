// The safetensors format (Hugging Face, 2022):
//     8 bytes            length N of the header, little-endian
//     N bytes            JSON {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                        "__metadata__": {text: text}}, spaces behind it
//     the rest           the tensors' bytes, at begin ..< end of it, without holes

/// The format. A header is read once, into memory of its own, so that nothing that was checked can change.
enum Safetensors {
  /// As the format's own library has it.
  static var largestHeader: Int { 100_000_000 }

  /// The tensors of a file, checked, sorted by name; names follow them in the same block.
  static func tensors(
    _ input: InputFile, path: UnsafePointer<CChar>, _ allocator: Allocator
  ) throws(Fault) -> TensorTable {
    let header = try Header(input, path: path, allocator)
    defer { allocator.deallocate(header.text) }
    var entries = 0
    var textBytes = 0
    try header.entries { (json, name) throws(Fault) in
      textBytes += name.count + 1
      try header.visitTypes(&json) { textBytes += $0.count + 1 }
      entries += 1
    }
    let (list, texts) = try allocator.make { ($0.take(StoredTensor.self, entries), $0.take(CChar.self, textBytes)) }
    do throws(Fault) {
      try fill(list, texts, header)
      try requireWhole(list, entries, header)
      try TensorTable(list, entries).sortByName(path)
    } catch {
      allocator.deallocate(list)
      throw error
    }
    return TensorTable(list, entries)
  }

  /// Whether a file that is open for writing can be read.
  static func check(
    _ descriptor: Int32, path: UnsafePointer<CChar>, allocator: Allocator
  ) throws(Fault) {
    let table = try tensors(InputFile(descriptor, path), path: path, allocator)
    allocator.deallocate(table.tensors)
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
    TensorTable(tensors, count).sortByOffset()
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
    let isPlausible = count >= 8 && length <= UInt64(Safetensors.largestHeader) && first.1 == UInt8(ascii: "{")
    if !isPlausible, let fault = FileKind.fault(file, path) { throw fault }
    if count < 8 { throw .invalid("\(file.count) bytes are no safetensors file: \(path)") }
    if length > UInt64(Safetensors.largestHeader) {
      throw .invalid(
        "header of \(length) bytes, more than \(Safetensors.largestHeader): no safetensors file: \(path)")
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
      if type != .other && type.block == nil && text == type.name {
        self = type
        return
      }
      number += 1
    }
    self = .other
  }
}
