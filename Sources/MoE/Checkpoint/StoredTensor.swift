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

  static var known: Int32 { 16 }

  public init(_ type: ElementType) {
    switch type {
    case .f32: self = .f32
    case .bf16: self = .bf16
    }
  }

  public var size: Int {
    switch self {
    case .f64, .i64, .u64: 8
    case .f32, .i32, .u32: 4
    case .bf16, .f16, .i16, .u16: 2
    case .i8, .u8, .bool, .f8E4M3, .f8E5M2, .f8E8M0, .other: 1
    }
  }

  /// As safetensors headers have it.
  var name: StaticString {
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
    case .other: ""
    }
  }
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

  /// Elements times `size`, or nil where that does not fit in 63 bits; 0 elements whatever the other extents are.
  public func bytes(_ size: Int) -> Int? {
    var product = size
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
