/// One value of a GGUF file's keys.
struct GGUFValue {
  let type: GGUFType
  private let bytes: UnsafePointer<UInt8>

  init(_ type: GGUFType, _ bytes: UnsafePointer<UInt8>) { (self.type, self.bytes) = (type, bytes) }

  private func load<T: BitwiseCopyable>(_ type: T.Type) -> T { UnsafeRawPointer(bytes).loadUnaligned(as: type) }

  /// nil where it is no whole number.
  var whole: Int? {
    switch type {
    case .u8: Int(load(UInt8.self))
    case .i8: Int(load(Int8.self))
    case .u16: Int(load(UInt16.self))
    case .i16: Int(load(Int16.self))
    case .u32: Int(load(UInt32.self))
    case .i32: Int(load(Int32.self))
    case .u64: Int(exactly: load(UInt64.self))
    case .i64: load(Int.self)
    case .f32, .f64, .bool, .text, .array: nil
    }
  }

  /// nil where it is no number.
  var number: Double? {
    switch type {
    case .f32: Double(load(Float.self))
    case .f64: load(Double.self)
    default: whole.map { Double($0) }
    }
  }

  var flag: Bool? { type == .bool ? bytes[0] != 0 : nil }

  var text: JSONText? {
    type == .text ? JSONText(start: bytes + 8, count: load(Int.self)) : nil
  }

  /// Of an array whose elements take so many bytes each; else nil.
  private var elements: (type: GGUFType, count: Int, bytes: Int)? {
    guard type == .array, let own = GGUFType(rawValue: load(UInt32.self)), let size = own.bytes else { return nil }
    return (own, UnsafeRawPointer(bytes + 4).loadUnaligned(as: Int.self), size)
  }

  /// The value itself; of an array that of its elements, where all are the same and there are some.
  var single: GGUFValue? {
    guard type == .array else { return self }
    guard let elements, elements.count > 0 else { return nil }
    let first = GGUFValue(elements.type, bytes + 12)
    for index in 1..<elements.count {
      for i in 0..<elements.bytes where bytes[12 + index * elements.bytes + i] != bytes[12 + i] { return nil }
    }
    return first
  }
}
