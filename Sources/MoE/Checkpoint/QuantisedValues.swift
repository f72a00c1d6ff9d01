/// The numbers of a quantised matrix in memory: each is (q - z) s, one product rounded to float32.
struct QuantisedValues {
  private let matrix: QuantisedMatrix
  private let numbers: UnsafeRawPointer
  private let scales: UnsafeRawPointer
  private let zeros: UnsafeRawPointer?
  private let order: UnsafeRawPointer?
  /// Numbers in a word, and those of its lowest bits that are one.
  private let inWord: Int
  private let mask: UInt32

  /// `data`: [matrix.bytes], aligned to 4.
  init(_ matrix: QuantisedMatrix, _ data: UnsafeRawPointer) {
    self.matrix = matrix
    numbers = data
    scales = numbers + matrix.numbers.room
    var next = scales + matrix.scales.room
    zeros = matrix.zeros.map { _ in next }
    if let part = matrix.zeros { next += part.room }
    order = matrix.order.map { _ in next }
    inWord = 32 / matrix.bits
    mask = ~0 >> UInt32(32 - matrix.bits)
  }

  func value(_ row: Int, _ column: Int) -> Float {
    let group = group(of: column)
    return number(row, column, zero(row, group)) * scale(row, group)
  }

  /// `count` numbers of a row, which does not end before.
  func read(_ row: Int, _ first: Int, _ count: Int, to out: UnsafeMutablePointer<Float>) {
    var (column, end) = (first, first)
    while column < first + count {
      let group = group(of: column)
      end = order == nil ? min(first + count, (group + 1) * matrix.blockColumns) : column + 1
      let (scale, zero) = (scale(row, group), zero(row, group))
      while column < end {
        out[column - first] = number(row, column, zero) * scale
        column += 1
      }
    }
  }

  private func word(_ data: UnsafeRawPointer, _ index: Int) -> UInt32 {
    data.loadUnaligned(fromByteOffset: 4 * index, as: UInt32.self)
  }

  private func bits(_ data: UnsafeRawPointer, _ index: Int, _ place: Int) -> Int {
    Int(word(data, index) >> UInt32(place * matrix.bits) & mask)
  }

  /// Which was checked when the file was opened; that it is among the groups is seen to here as well.
  private func group(of column: Int) -> Int {
    guard let order else { return column / matrix.blockColumns }
    return min(max(0, Int(Int32(bitPattern: word(order, column)))), matrix.groups - 1)
  }

  // MARK: numbers

  private func number(_ row: Int, _ column: Int, _ zero: Int) -> Float {
    switch matrix.scheme {
    case .packed: Float(bits(numbers, row * wordsOfRow + column / inWord, column % inWord) - zero)
    case .awq: Float(bits(numbers, column * (matrix.rows / 8) + row / 8, Self.awqPlace(row % 8)) - zero)
    case .gptq: Float(bits(numbers, column / inWord * matrix.rows + row, column % inWord) - zero)
    case .bytes: byte(row * matrix.columns + column)
    case .fp4:
      MXFP4.number(
        numbers.load(fromByteOffset: (row * matrix.columns + column) / 2, as: UInt8.self) >> UInt8(4 * (column & 1))
          & 15)
    }
  }

  private var wordsOfRow: Int { (matrix.columns + inWord - 1) / inWord }

  /// Where a word has row r of its 8.
  private static func awqPlace(_ r: Int) -> Int { r % 2 * 4 + r / 2 }

  private func byte(_ index: Int) -> Float {
    let byte = numbers.load(fromByteOffset: index, as: UInt8.self)
    switch matrix.numbers.type {
    case .i8: return Float(Int8(bitPattern: byte))
    case .f8E5M2: return float(half: UInt16(byte) << 8)
    default: return float(e4m3: byte)
    }
  }

  /// Zero point of a row in a group; of packed numbers, which begin at -2^(bits - 1), what takes them there as well.
  private func zero(_ row: Int, _ group: Int) -> Int {
    let half = 1 << (matrix.bits - 1)
    guard let zeros else { return half }
    switch matrix.scheme {
    case .packed: return bits(zeros, row / inWord * matrix.groups + group, row % inWord)
    case .awq: return bits(zeros, group * (matrix.rows / 8) + row / 8, Self.awqPlace(row % 8))
    case .gptq:
      let words = (matrix.rows + inWord - 1) / inWord
      return bits(zeros, group * words + row / inWord, row % inWord) + matrix.zeroShift
    case .bytes, .fp4: return 0
    }
  }

  // MARK: scales

  private func scale(_ row: Int, _ group: Int) -> Float {
    let isTransposed = matrix.scheme == .awq || matrix.scheme == .gptq
    let index = isTransposed ? group * matrix.rows + row : row / matrix.blockRows * matrix.groups + group
    let own = scale(index)
    if let divisor = matrix.divisor { return own / divisor }
    return matrix.factor.map { own * $0 } ?? own
  }

  private func scale(_ index: Int) -> Float {
    switch matrix.scales.type {
    case .f32: scales.loadUnaligned(fromByteOffset: 4 * index, as: Float.self)
    case .bf16: Float(bitPattern: UInt32(scales.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self)) << 16)
    case .f16: float(half: scales.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self))
    case .f8E4M3: float(e4m3: scales.load(fromByteOffset: index, as: UInt8.self))
    default: MXFP4.scale(scales.load(fromByteOffset: index, as: UInt8.self))
    }
  }
}

// Rows as they are written down, for codes that hold them.
extension QuantisedValues {
  /// The numbers of a row, each in a byte: those of 4 bits, and of 8 in words, as numbers from 0 on.
  func copyNumbers(_ row: Int, to out: UnsafeMutablePointer<UInt8>) {
    let columns = matrix.columns
    switch matrix.scheme {
    case .packed: copyWords(row * wordsOfRow, step: 1, to: out)
    case .gptq: copyWords(row, step: matrix.rows, to: out)
    case .awq:
      let place = UInt32(4 * Self.awqPlace(row % 8))
      for column in 0..<columns {
        out[column] = UInt8(truncatingIfNeeded: word(numbers, column * (matrix.rows / 8) + row / 8) >> place & 15)
      }
    case .bytes: UnsafeMutableRawPointer(out).copyMemory(from: numbers + row * columns, byteCount: columns)
    case .fp4: spreadPairs(numbers + row * columns / 2, columns, to: out)
    }
  }

  /// Words along the columns.
  private func copyWords(_ first: Int, step: Int, to out: UnsafeMutablePointer<UInt8>) {
    for start in stride(from: 0, to: matrix.columns, by: inWord) {
      var word = word(numbers, first + start / inWord * step)
      for i in start..<min(start + inWord, matrix.columns) {
        out[i] = UInt8(truncatingIfNeeded: word & mask)
        word >>= UInt32(matrix.bits)
      }
    }
  }

  /// The scales of a row, one for each `inputs` columns, which have the same.
  func copyScales(_ row: Int, inputs: Int, count: Int, to out: UnsafeMutablePointer<Float>) {
    for i in 0..<count { out[i] = scale(row, min(i * inputs / matrix.blockColumns, matrix.groups - 1)) }
  }

  /// Its zero points, likewise.
  func copyZeros(_ row: Int, inputs: Int, count: Int, to out: UnsafeMutablePointer<UInt8>) {
    for i in 0..<count {
      out[i] = UInt8(truncatingIfNeeded: zero(row, min(i * inputs / matrix.blockColumns, matrix.groups - 1)))
    }
  }

  /// Scales of a byte, as they are.
  func copyScaleBytes(_ row: Int, to out: UnsafeMutablePointer<UInt8>) {
    UnsafeMutableRawPointer(out).copyMemory(from: scales + row * matrix.groups, byteCount: matrix.groups)
  }
}

/// Numbers of 4 bits, two in a byte, the earlier one in the lower half, one in a byte each.
func spreadPairs(_ bytes: UnsafeRawPointer, _ count: Int, to out: UnsafeMutablePointer<UInt8>) {
  let bytes = bytes.assumingMemoryBound(to: UInt8.self)
  for i in 0..<count / 2 {
    out[2 * i] = bytes[i] & 15
    out[2 * i + 1] = bytes[i] >> 4
  }
}
