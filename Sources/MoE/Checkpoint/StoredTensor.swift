/// What a stored tensor's elements are. Numbers as in moe_dtype.
public enum StoredType: Int32 {
  case f32 = 0
  case bf16 = 1
  case f16 = 2
  case f64 = 3
  case i64 = 4
  case i32 = 5
  case i16 = 6
  case i8 = 7
  case u64 = 8
  case u32 = 9
  case u16 = 10
  case u8 = 11
  case bool = 12
  case f8E4M3 = 13
  case f8E5M2 = 14
  case f8E8M0 = 15
  /// What this library does not know: bytes under a name.
  case other = 16
  case f4 = 17
  case f6E2M3 = 18
  case f6E3M2 = 19
  case c64 = 20
  case f8E4M3FNUZ = 21
  case f8E5M2FNUZ = 22

  /// The numbers are the same.
  public init(_ type: ElementType) { self = StoredType(rawValue: type.rawValue) ?? .other }

  /// Of an element.
  var bits: Int {
    switch self {
    case .f64, .i64, .u64, .c64: 64
    case .f32, .i32, .u32: 32
    case .bf16, .f16, .i16, .u16: 16
    case .i8, .u8, .bool, .f8E4M3, .f8E5M2, .f8E8M0, .f8E4M3FNUZ, .f8E5M2FNUZ, .other: 8
    case .f6E2M3, .f6E3M2: 6
    case .f4: 4
    }
  }

  /// In bytes; of elements that share bytes, of these.
  public var alignment: Int { max(1, bits / 8) }

  /// Of so many elements, if they fill whole bytes: nil where these do not fit in 63 bits.
  func bytes(_ count: Int) -> Int? {
    let (bytes, overflow) = (count / 8).multipliedReportingOverflow(by: bits)
    return overflow ? nil : bytes + count % 8 * bits / 8
  }

  /// Whether so many elements fill whole bytes.
  func isWhole(_ count: Int) -> Bool { count % 8 * bits % 8 == 0 }

  /// As safetensors headers have it.
  public var name: StaticString {
    switch self {
    case .f32: "F32"
    case .bf16: "BF16"
    case .f16: "F16"
    case .f64: "F64"
    case .i64: "I64"
    case .i32: "I32"
    case .i16: "I16"
    case .i8: "I8"
    case .u64: "U64"
    case .u32: "U32"
    case .u16: "U16"
    case .u8: "U8"
    case .bool: "BOOL"
    case .f8E4M3: "F8_E4M3"
    case .f8E5M2: "F8_E5M2"
    case .f8E8M0: "F8_E8M0"
    case .f4: "F4"
    case .f6E2M3: "F6_E2M3"
    case .f6E3M2: "F6_E3M2"
    case .c64: "C64"
    case .f8E4M3FNUZ: "F8_E4M3FNUZ"
    case .f8E5M2FNUZ: "F8_E5M2FNUZ"
    case .other: ""
    }
  }
}

extension ElementType {
  /// Of what parameters are written as.
  init(_ type: StoredType) { self = ElementType(rawValue: type.rawValue) ?? .f32 }
}

/// Up to 8 dimensions.
public struct StoredShape: Equatable {
  public private(set) var rank = 0
  private var extents = SIMD8<Int>(repeating: 0)

  public static var mostDimensions: Int { 8 }

  public init() {}
  public init(_ a: Int) { append(a) }
  public init(_ a: Int, _ b: Int) {
    append(a)
    append(b)
  }
  public init(_ a: Int, _ b: Int, _ c: Int) {
    self.init(a, b)
    append(c)
  }

  public subscript(dimension: Int) -> Int { extents[dimension] }

  /// There is room for it: the caller has looked.
  public mutating func append(_ extent: Int) {
    extents[rank] = extent
    rank += 1
  }

  /// What its elements take: nil where that, or their number, does not fit in 63 bits; 0 whatever the other extents are where
  /// one of them is 0.
  public func bytes(_ type: StoredType) -> Int? { elements.flatMap { type.bytes($0) } }

  /// Whether the elements fill whole bytes.
  public func fillsBytes(_ type: StoredType) -> Bool { elements.map { type.isWhole($0) } ?? true }

  private var elements: Int? {
    var product = 1
    var empty = false
    for dimension in 0..<rank where extents[dimension] == 0 { empty = true }
    if empty { return 0 }
    for dimension in 0..<rank {
      let (next, overflow) = product.multipliedReportingOverflow(by: extents[dimension])
      if overflow { return nil }
      product = next
    }
    return product
  }
}

/// A tensor in a checkpoint's files: row-major without gaps, at any address.
public struct StoredTensor {
  public let name: UnsafePointer<CChar>
  public let type: StoredType
  /// As the file has it.
  public let typeName: UnsafePointer<CChar>
  public let shape: StoredShape
  /// Number among the checkpoint's.
  var file: Int32
  /// In the file.
  let offset: Int
  public let bytes: Int
}
