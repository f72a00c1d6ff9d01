/// The header of a GGUF file: its keys, and where its tensors are described. It is read once, into memory of its own, so that
/// nothing that was checked can change.
struct GGUFHeader {
  private struct Key {
    let name: JSONText
    let type: GGUFType
    let value: UnsafePointer<UInt8>
  }

  let path: UnsafePointer<CChar>
  private let text: UnsafeMutablePointer<UInt8>
  private let keys: UnsafeMutablePointer<Key>  // [keyCount], sorted by name
  private let keyCount: Int
  let tensorCount: Int
  /// Where they are described, and where their bytes begin.
  private let tensorsAt: GGUFReader
  private let length: Int

  /// Vocabularies take some megabytes.
  private static var largest: Int { 1 << 28 }
  private static var mostKeys: Int { 1 << 16 }
  private static var longestName: Int { 255 }

  static func begins(_ input: InputFile) -> Bool {
    var first: UInt32 = 0
    if input.count < 4 { return false }
    let error = withUnsafeMutableBytes(of: &first) { input.read(0, 4, to: $0.baseAddress!) }
    return error == 0 && first == 0x4655_4747
  }

  /// Whether a path is that of a file that begins so; a folder is none, nor is what cannot be opened.
  static func isFile(_ path: UnsafePointer<CChar>) -> Bool {
    guard let input = try? InputFile(path: path) else { return false }
    defer { input.close() }
    return begins(input)
  }

  /// Of a file that begins so. More of it is read where what was read does not hold all keys.
  init(_ input: InputFile, path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    var size = min(input.count, 1 << 20)
    while true {
      let text = try input.text(0, size, allocator)
      var reader = GGUFReader(text, count: size, path: path)
      do throws(Fault) {
        self = try GGUFHeader(text, &reader, path, allocator)
        return
      } catch {
        allocator.deallocate(text)
        if !reader.isShort || size == input.count { throw error }
        if size == Self.largest {
          throw .invalid("a GGUF header of more than \(Self.largest) bytes: \(path): it holds more than a model")
        }
      }
      size = min(input.count, Self.largest, 8 * size)
    }
  }

  private init(
    _ text: UnsafeMutablePointer<UInt8>, _ reader: inout GGUFReader, _ path: UnsafePointer<CChar>,
    _ allocator: Allocator
  ) throws(Fault) {
    (self.text, self.path) = (text, path)
    let counts = try Self.counts(&reader)
    (tensorCount, keyCount) = counts
    let first = reader
    for _ in 0..<keyCount {
      _ = try reader.name(atMost: Self.longestName)
      try reader.skipValue(try reader.type())
    }
    tensorsAt = reader
    for _ in 0..<tensorCount { try Self.skipTensor(&reader) }
    length = reader.at
    keys = try allocator.allocate(Key.self, count: keyCount)
    do throws(Fault) {
      try fill(first)
    } catch {
      allocator.deallocate(keys)
      throw error
    }
  }

  func free(_ allocator: Allocator) {
    allocator.deallocate(keys)
    allocator.deallocate(text)
  }

  private static func counts(_ reader: inout GGUFReader) throws(Fault) -> (tensors: Int, keys: Int) {
    _ = try reader.u32()
    let version = try reader.u32()
    if version == 1 { throw reader.fault("version 1, of 2023: convert the model again with a newer llama.cpp") }
    if version & 0xFFFF == 0 { throw reader.fault("numbers are big-endian: convert the model for this machine") }
    if version != 2 && version != 3 { throw reader.fault("its version is neither 2 nor 3") }
    let (tensors, keys) = (try reader.length(), try reader.length())
    if keys > mostKeys { throw reader.fault("it says that it has more than 65536 keys") }
    return (tensors, keys)
  }

  private static func skipTensor(_ reader: inout GGUFReader) throws(Fault) {
    _ = try reader.name(atMost: longestName)
    let rank = try reader.u32()
    if rank > 4 { throw reader.fault("a tensor has more than 4 dimensions") }
    try reader.skip(8 * Int(rank) + 12)
  }

  private func fill(_ reader: GGUFReader) throws(Fault) {
    var reader = reader
    let keys = keys
    for index in 0..<keyCount {
      let name = try reader.name(atMost: Self.longestName)
      let type = try reader.type()
      (keys + index).initialize(to: Key(name: name, type: type, value: reader.start + reader.at))
      try reader.skipValue(type)
    }
    heapSort(
      keyCount, isLess: { Self.order(keys[$0].name, keys[$1].name) < 0 },
      exchange: {
        let kept = keys[$0]
        keys[$0] = keys[$1]
        keys[$1] = kept
      })
    for index in 1..<max(keyCount, 1) where keys[index - 1].name == keys[index].name {
      throw .invalid("\(keys[index].name): two keys have this name: \(path)")
    }
  }

  private static func order(_ a: JSONText, _ b: JSONText) -> Int {
    let count = min(a.count, b.count)
    for i in 0..<count where a.start[i] != b.start[i] { return Int(a.start[i]) - Int(b.start[i]) }
    return a.count - b.count
  }

  // MARK: keys

  func value(_ name: UnsafePointer<CChar>) -> GGUFValue? {
    let name = JSONText(name)
    var (low, high) = (0, keyCount)
    while low < high {
      let middle = (low + high) / 2
      let order = Self.order(keys[middle].name, name)
      if order == 0 { return GGUFValue(keys[middle].type, keys[middle].value) }
      if order < 0 { low = middle + 1 } else { high = middle }
    }
    return nil
  }

  func value(_ name: StaticString) -> GGUFValue? { value(cText(name)) }

  func forEachName(_ body: (JSONText) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<keyCount { try body(keys[index].name) }
  }

  /// Of a set of files: which this one is, from 0, of how many.
  func split() throws(Fault) -> (number: Int, count: Int)? {
    guard let given = value("split.count") else { return nil }
    guard let count = given.whole, let number = value("split.no")?.whole, count >= 0, number >= 0,
      number < max(count, 1)
    else { throw .invalid("split.no and split.count are not numbers of files: \(path)") }
    return count > 1 ? (number, count) : nil
  }

  // MARK: tensors

  /// Of a file, checked, sorted by name.
  static func tensors(
    _ input: InputFile, path: UnsafePointer<CChar>, _ allocator: Allocator
  ) throws(Fault) -> TensorTable {
    let header = try GGUFHeader(input, path: path, allocator)
    defer { header.free(allocator) }
    return try header.tensors(fileBytes: input.count, allocator)
  }

  private func alignment() throws(Fault) -> Int {
    guard let value = value("general.alignment") else { return 32 }
    guard let alignment = value.whole, alignment >= 1, alignment <= 1 << 30, alignment & (alignment - 1) == 0 else {
      throw .invalid("general.alignment is not a power of two up to 2^30: \(path)")
    }
    return alignment
  }

  private func tensors(fileBytes: Int, _ allocator: Allocator) throws(Fault) -> TensorTable {
    let alignment = try alignment()
    let (dataStart, names) = ((length + alignment - 1) & ~(alignment - 1), length - tensorsAt.at)
    let isOfSet = try split() != nil
    if tensorCount == 0 && !isOfSet {
      throw .invalid("a GGUF file without tensors, such as one of a vocabulary alone: \(path): name the model's")
    }
    let (list, texts) = try allocator.make {
      ($0.take(StoredTensor.self, tensorCount), $0.take(CChar.self, names))
    }
    let table = TensorTable(list, tensorCount)
    do throws(Fault) {
      var (reader, free) = (tensorsAt, texts)
      for index in 0..<tensorCount {
        let tensor = try tensor(&reader, &free, dataStart, alignment)
        try requireInside(tensor, dataStart, fileBytes)
        (list + index).initialize(to: tensor)
      }
      try requireApart(table)
      try table.sortByName(path)
    } catch {
      allocator.deallocate(list)
      throw error
    }
    return table
  }

  private func tensor(
    _ reader: inout GGUFReader, _ free: inout UnsafeMutablePointer<CChar>, _ dataStart: Int, _ alignment: Int
  ) throws(Fault) -> StoredTensor {
    let own = try reader.name(atMost: Self.longestName)
    let name = UnsafePointer(free)
    for i in 0..<own.count { free[i] = CChar(bitPattern: own.start[i]) }
    free[own.count] = 0
    free += own.count + 1
    var extents = SIMD4<Int>(repeating: 1)
    let rank = Int(try reader.u32())
    for dimension in 0..<rank { extents[dimension] = try reader.length() }
    var shape = StoredShape()
    for dimension in 0..<rank { shape.append(extents[rank - 1 - dimension]) }
    let number = try reader.u32()
    guard let type = StoredType(gguf: number) else {
      throw .invalid(
        "\(name): its type, number \(Int(number)), is not supported: Q2_K to Q8_0, IQ4_NL, IQ4_XS, MXFP4, NVFP4 and floats are; quantise the model again: \(path)"
      )
    }
    let offset = try reader.length()
    if let block = type.block, extents[0] % block.numbers != 0 {
      throw .invalid(
        "\(name): rows of \(extents[0]) numbers are not whole blocks of \(block.numbers) in \(type.name): \(path)")
    }
    guard let bytes = shape.bytes(type) else { throw .invalid("\(name): its size does not fit in 63 bits: \(path)") }
    let (place, overflow) = offset.addingReportingOverflow(dataStart)
    if overflow || offset % alignment != 0 {
      throw .invalid("\(name): its offset \(offset) is not a multiple of the alignment \(alignment): \(path)")
    }
    var tensor = StoredTensor(
      name: name, type: type, typeName: cText(type.name), shape: shape, file: 0, offset: place, bytes: bytes)
    tensor.isLoose = true
    return tensor
  }

  private func requireInside(_ tensor: StoredTensor, _ dataStart: Int, _ fileBytes: Int) throws(Fault) {
    if tensor.offset > fileBytes || tensor.bytes > fileBytes - tensor.offset {
      throw .invalid(
        "\(tensor.name): \(tensor.bytes) bytes at \(tensor.offset), but the file has \(fileBytes): it has been cut short, fetch or copy it again: \(path)"
      )
    }
  }

  /// No two overlap.
  private func requireApart(_ table: TensorTable) throws(Fault) {
    table.sortByOffset()
    for i in 1..<max(table.count, 1)
    where table.tensors[i].offset < table.tensors[i - 1].offset + table.tensors[i - 1].bytes {
      throw .invalid("\(table.tensors[i].name): overlaps \(table.tensors[i - 1].name): \(path)")
    }
  }
}

extension StoredType {
  /// By its number in GGUF files.
  init?(gguf number: UInt32) {
    switch number {
    case 0: self = .f32
    case 1: self = .f16
    case 2: self = .q4_0
    case 3: self = .q4_1
    case 6: self = .q5_0
    case 7: self = .q5_1
    case 8: self = .q8_0
    case 10: self = .q2K
    case 11: self = .q3K
    case 12: self = .q4K
    case 13: self = .q5K
    case 14: self = .q6K
    case 20: self = .iq4NL
    case 23: self = .iq4XS
    case 24: self = .i8
    case 25: self = .i16
    case 26: self = .i32
    case 27: self = .i64
    case 28: self = .f64
    case 30: self = .bf16
    case 39: self = .mxfp4
    case 40: self = .nvfp4
    default: return nil
    }
  }
}
