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
  /// Of GGUF files: blocks, see BlockFormat.
  case q4_0 = 23
  case q4_1 = 24
  case q5_0 = 25
  case q5_1 = 26
  case q8_0 = 27
  case q2K = 28
  case q3K = 29
  case q4K = 30
  case q5K = 31
  case q6K = 32
  case iq4NL = 33
  case iq4XS = 34
  case mxfp4 = 35
  case nvfp4 = 36

  /// The numbers are the same.
  public init(_ type: ElementType) { self = StoredType(rawValue: type.rawValue) ?? .other }

  /// Numbers of a block, and its bytes; nil where elements stand by themselves.
  public var block: (numbers: Int, bytes: Int)? {
    switch self {
    case .q4_0, .iq4NL: (32, 18)
    case .q4_1: (32, 20)
    case .q5_0: (32, 22)
    case .q5_1: (32, 24)
    case .q8_0: (32, 34)
    case .q2K: (256, 84)
    case .q3K: (256, 110)
    case .q4K: (256, 144)
    case .q5K: (256, 176)
    case .q6K: (256, 210)
    case .iq4XS: (256, 136)
    case .mxfp4: (32, 17)
    case .nvfp4: (64, 36)
    default: nil
    }
  }

  /// Of an element that stands by itself.
  var bits: Int {
    switch self {
    case .f64, .i64, .u64, .c64: 64
    case .f32, .i32, .u32: 32
    case .bf16, .f16, .i16, .u16: 16
    case .i8, .u8, .bool, .f8E4M3, .f8E5M2, .f8E8M0, .f8E4M3FNUZ, .f8E5M2FNUZ, .other: 8
    case .f6E2M3, .f6E3M2: 6
    case .f4: 4
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q2K, .q3K, .q4K, .q5K, .q6K, .iq4NL, .iq4XS, .mxfp4, .nvfp4: 8
    }
  }

  /// In bytes; of elements that share bytes, of these.
  public var alignment: Int { max(1, bits / 8) }

  /// Of so many elements, if they fill whole bytes: nil where these do not fit in 63 bits.
  func bytes(_ count: Int) -> Int? {
    if let block {
      let (bytes, overflow) = (count / block.numbers).multipliedReportingOverflow(by: block.bytes)
      return overflow ? nil : bytes
    }
    let (bytes, overflow) = (count / 8).multipliedReportingOverflow(by: bits)
    return overflow ? nil : bytes + count % 8 * bits / 8
  }

  /// Whether so many elements fill whole bytes.
  func isWhole(_ count: Int) -> Bool { block.map { count % $0.numbers == 0 } ?? (count % 8 * bits % 8 == 0) }

  /// As safetensors headers have it, and what blocks are called.
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
    case .q4_0: "Q4_0"
    case .q4_1: "Q4_1"
    case .q5_0: "Q5_0"
    case .q5_1: "Q5_1"
    case .q8_0: "Q8_0"
    case .q2K: "Q2_K"
    case .q3K: "Q3_K"
    case .q4K: "Q4_K"
    case .q5K: "Q5_K"
    case .q6K: "Q6_K"
    case .iq4NL: "IQ4_NL"
    case .iq4XS: "IQ4_XS"
    case .mxfp4: "MXFP4"
    case .nvfp4: "NVFP4"
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

  func with(extent: Int, in dimension: Int) -> StoredShape {
    var own = self
    own.extents[dimension] = extent
    return own
  }

  /// What its elements take: nil where that, or their number, does not fit in 63 bits; 0 whatever the other extents are where
  /// one of them is 0.
  public func bytes(_ type: StoredType) -> Int? { elements.flatMap { type.bytes($0) } }

  /// Whether the elements fill whole bytes.
  public func fillsBytes(_ type: StoredType) -> Bool { elements.map { type.isWhole($0) } ?? true }

  /// How many there are, where that fits in 63 bits.
  var elements: Int? {
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

extension StoredShape {
  /// Without dimensions of 1 before the others.
  fileprivate var withoutLeadingOnes: StoredShape {
    var shape = StoredShape()
    for dimension in 0..<rank where shape.rank > 0 || extents[dimension] != 1 { shape.append(extents[dimension]) }
    return shape
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
  /// Of weights that several tensors hold together: what they are.
  var quantised: UnsafePointer<QuantisedMatrix>?
  /// Whether dimensions of 1 before the others may be missing, as GGUF has it.
  var isLoose = false

  /// Where another shape differs from its own; nil where it does not.
  func difference(from wanted: StoredShape) -> ShapeDifference? {
    if isLoose && shape.withoutLeadingOnes == wanted.withoutLeadingOnes { return nil }
    if shape.rank != wanted.rank { return .rank }
    for dimension in 0..<shape.rank where shape[dimension] != wanted[dimension] { return .extent(dimension) }
    return nil
  }
}

enum ShapeDifference {
  case rank
  case extent(Int)
}
