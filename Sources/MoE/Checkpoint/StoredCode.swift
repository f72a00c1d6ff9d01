import CShims

// Which code has exactly the numbers that a file has, and rows of them on their way into its panels.

extension StoredPlace {
  /// Of rows of so many columns; nil where no code has these numbers.
  func code(columns: Int) -> PanelCode? {
    switch form {
    case .mxfp4: .mxfp4
    case .blocks: columns % (type.block?.numbers ?? 1) == 0 ? type.code : nil
    case .matrix: matrix!.pointee.columns == columns ? matrix!.pointee.code : nil
    case .f32, .bf16, .f16, .f8E4M3, .f8E5M2, .f8E8M0: nil
    }
  }

  /// Whether rows share what the code keeps once for all rows of a panel.
  func shareScales(_ a: Int, _ b: Int) -> Bool {
    guard let matrix = matrix?.pointee, matrix.scheme == .bytes, matrix.numbers.type != .i8 else { return true }
    return a / matrix.blockRows == b / matrix.blockRows
  }
}

extension StoredType {
  /// Of blocks.
  fileprivate var code: PanelCode? {
    switch self {
    case .q8_0: .int8
    case .q4_0: .int4(group: 32)
    case .iq4NL: .iq4NL
    case .q4K: .q4K
    case .q6K: .q6K
    case .mxfp4: .mxfp4
    case .nvfp4: .nvfp4
    default: nil
    }
  }
}

extension QuantisedMatrix {
  fileprivate var code: PanelCode? {
    if order != nil { return nil }
    switch scheme {
    case .packed, .awq, .gptq: return bits == 4 ? ofNibbles : bits == 8 ? ofWords : nil
    case .bytes: return ofBytes
    case .fp4: return ofFloats
    }
  }

  /// Columns of a scale in panels: as many as share one, or a part of them.
  private var inputs: Int? {
    if groups == 1 || blockColumns % 128 == 0 { return 128 }
    return blockColumns % 64 == 0 ? 64 : blockColumns % 32 == 0 ? 32 : nil
  }

  private var ofNibbles: PanelCode? {
    guard let inputs else { return nil }
    if zeros == nil && scales.type == .f16 { return .int4(group: inputs) }
    if zeros == nil && scales.type == .bf16 && inputs == 32 { return .int4BF16 }
    return .int4Zero(group: inputs)
  }

  /// Numbers of 8 bits in words.
  private var ofWords: PanelCode? { scheme == .packed && zeros == nil && groups == 1 ? .int8Row : nil }

  private var ofBytes: PanelCode? {
    switch numbers.type {
    case .i8: groups == 1 ? .int8Row : nil
    case .f8E4M3: groups == 1 || blockColumns % 128 == 0 ? .fp8 : nil
    default: nil
    }
  }

  private var ofFloats: PanelCode? {
    if blockRows != 1 { return nil }
    if scales.type == .f8E4M3 { return blockColumns == 16 ? .nvfp4 : nil }
    let hasPowers = scales.type == .u8 || scales.type == .f8E8M0
    let isWhole = blockColumns == 32 && columns % 32 == 0
    return hasPowers && isWhole && divisor == nil && factor == nil ? .mxfp4 : nil
  }
}

/// Up to 32 rows, gathered as codes want them.
struct StoredRows {
  private let code: PanelCode
  private let columns: Int
  private let numbers: UnsafeMutablePointer<UInt8>  // [32, row]
  private let row: Int  // bytes
  private let scales: UnsafeMutablePointer<Float>  // [32, parts]
  private let bytes: UnsafeMutablePointer<UInt8>  // [32, parts]
  private let parts: Int  // of a row: no scale or byte is for fewer numbers

  init(_ arena: inout Arena, _ code: PanelCode, columns: Int) {
    (self.code, self.columns) = (code, columns)
    row = columns + columns / 16  // Q8_0 has 17 bytes for 16 numbers
    parts = (columns - 1) / 16 + 1
    numbers = arena.take(UInt8.self, chunkWidth, row)
    scales = arena.take(Float.self, chunkWidth, parts)
    bytes = arena.take(UInt8.self, chunkWidth, parts)
  }

  /// Row number `i` becomes row `from` of what was read.
  func gather(_ values: StoredValues, row from: Int, as i: Int) {
    let numbers = numbers + i * row
    switch values.form {
    case .blocks:
      let length = values.type.bytes(columns) ?? 0
      UnsafeMutableRawPointer(numbers).copyMemory(from: values.data + from * length, byteCount: length)
    case .mxfp4:
      spreadPairs(values.data + from * columns / 2, columns, to: numbers)
      let powers = columns / MXFP4.block
      UnsafeMutableRawPointer(bytes + i * parts).copyMemory(from: values.scales! + from * powers, byteCount: powers)
    case .matrix: gather(values.matrix!.pointee, values.data, values.first / columns + from, i, numbers)
    case .f32, .bf16, .f16, .f8E4M3, .f8E5M2, .f8E8M0: break
    }
  }

  private func gather(
    _ matrix: QuantisedMatrix, _ data: UnsafeRawPointer, _ from: Int, _ i: Int, _ numbers: UnsafeMutablePointer<UInt8>
  ) {
    let own = QuantisedValues(matrix, data)
    own.copyNumbers(from, to: numbers)
    if matrix.scheme == .fp4 { return own.copyScaleBytes(from, to: bytes + i * parts) }
    if matrix.scheme == .packed && matrix.bits == 8 {
      // From numbers that begin at 0 to those around it.
      for column in 0..<columns { numbers[column] ^= 0x80 }
    }
    let inputs = code.hasRowScales ? columns : code.inputs
    let count = (columns - 1) / inputs + 1
    own.copyScales(from, inputs: inputs, count: count, to: scales + i * parts)
    if matrix.bits == 4 { own.copyZeros(from, inputs: inputs, count: count, to: bytes + i * parts) }
  }

  /// The first `rows` of them. False where a scale is not finite.
  func pack(
    rows: Int, of values: StoredValues, into panel: UnsafeMutableRawPointer, _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    let isOfBlocks = values.form == .blocks
    let stored = moei_stored(
      numbers: numbers, row: Int64(row), scales: isOfBlocks ? nil : UnsafePointer(scales), scales_row: Int64(parts),
      bytes: isOfBlocks ? nil : UnsafePointer(bytes), bytes_row: Int64(parts),
      factor: values.matrix?.pointee.factor ?? 1, divisor: values.matrix?.pointee.divisor ?? 1)
    return code.pack(stored, rows: rows, depth: columns, into: panel, kernels)
  }
}
