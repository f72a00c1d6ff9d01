// The GGUF format (llama.cpp, 2023), version 2 and 3, little-endian:
//     "GGUF", u32 version, u64 tensors, u64 keys
//     keys       text, u32 type, value        text: u64 length, bytes; array: u32 type, u64 length, values
//     tensors    text, u32 dimensions, u64 of each, the fastest first, u32 type, u64 offset
//     the tensors' bytes, from the next multiple of the alignment on, each at a multiple of it

/// Walks through the header of a GGUF file, in memory that holds its beginning.
struct GGUFReader {
  let start: UnsafePointer<UInt8>
  /// Bytes in memory.
  private let count: Int
  private let path: UnsafePointer<CChar>
  private(set) var at = 0
  /// Whether it wanted to go on behind what is in memory.
  private(set) var isShort = false

  init(_ start: UnsafePointer<UInt8>, count: Int, path: UnsafePointer<CChar>) {
    (self.start, self.count, self.path) = (start, count, path)
  }

  func fault(_ what: StaticString) -> Fault { .invalid("GGUF at byte \(at): \(what): \(path)") }

  /// Passes over so many bytes, which are there.
  mutating func skip(_ bytes: Int) throws(Fault) {
    if bytes < 0 || bytes > count - at {
      isShort = true
      throw fault("the file has been cut short, or a length in it is wrong; fetch or copy it again")
    }
    at += bytes
  }

  mutating func u32() throws(Fault) -> UInt32 {
    let place = at
    try skip(4)
    return UnsafeRawPointer(start + place).loadUnaligned(as: UInt32.self)
  }

  mutating func u64() throws(Fault) -> UInt64 {
    let place = at
    try skip(8)
    return UnsafeRawPointer(start + place).loadUnaligned(as: UInt64.self)
  }

  /// A number of things that are in the file.
  mutating func length() throws(Fault) -> Int {
    let given = try u64()
    guard let length = Int(exactly: given) else { throw fault("a length does not fit in 63 bits") }
    return length
  }

  mutating func text() throws(Fault) -> JSONText {
    let length = try length()
    let place = at
    try skip(length)
    return JSONText(start: start + place, count: length)
  }

  /// A name: letters, digits and signs of ASCII.
  mutating func name(atMost most: Int) throws(Fault) -> JSONText {
    let name = try text()
    if name.count == 0 || name.count > most { throw fault("a name is empty, or too long") }
    for i in 0..<name.count where name.start[i] <= 0x20 || name.start[i] > 0x7E {
      throw fault("a name has other characters than those of ASCII")
    }
    return name
  }

  mutating func type() throws(Fault) -> GGUFType {
    let number = try u32()
    guard let type = GGUFType(rawValue: number) else { throw fault("a value has an unknown type") }
    return type
  }

  mutating func skipValue(_ type: GGUFType, depth: Int = 0) throws(Fault) {
    if let bytes = type.bytes { return try skip(bytes) }
    if type == .text {
      _ = try text()
      return
    }
    if depth == 3 { throw fault("arrays are nested too deeply") }
    let own = try self.type()
    let elements = try length()
    if let bytes = own.bytes {
      let (all, overflow) = elements.multipliedReportingOverflow(by: bytes)
      if overflow { throw fault("an array is longer than the file") }
      return try skip(all)
    }
    for _ in 0..<elements { try skipValue(own, depth: depth + 1) }
  }
}

/// What a value in the header is. Numbers as in the format.
enum GGUFType: UInt32 {
  case u8 = 0
  case i8, u16, i16, u32, i32, f32, bool, text, array, u64, i64, f64

  /// nil where its length stands with it.
  var bytes: Int? {
    switch self {
    case .u8, .i8, .bool: 1
    case .u16, .i16: 2
    case .u32, .i32, .f32: 4
    case .u64, .i64, .f64: 8
    case .text, .array: nil
    }
  }
}
