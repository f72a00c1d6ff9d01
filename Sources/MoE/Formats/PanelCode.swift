import CShims

/// Weights of few bits in blocks of 32 outputs (see moei_code).
struct PanelCode: Equatable {
  /// Which kernels: a MOEI_CODE.
  let number: Int
  /// Contraction indices of a block, a multiple of 32 that divides 256.
  let inputs: Int
  let blockBytes: Int
  /// So many contraction indices belong together: matrices without a multiple of that many are refused.
  var unit = 1
  /// Inputs that share a scale, where they are fewer than a block's.
  var inputsOfScale: Int?
  /// What rows of a block have in common.
  var sharing = Sharing.nothing
  enum Sharing: UInt8 {
    case nothing
    case scaleOfScales
    case scales
  }
  /// Whether a scale is one for a whole row. Of tokens that become integers it is then, too.
  var hasRowScales = false
  /// So many products of integers fit in 32 bits: 128 127 131072 < 2^31.
  static var mostInARow: Int { 1 << 17 }

  func kernels(_ kernels: UnsafePointer<moei_kernels>) -> UnsafePointer<moei_code> {
    moei_code_of(kernels, Int32(truncatingIfNeeded: number))
  }

  func bytes(_ depth: Int) -> Int { (depth + inputs - 1) / inputs * blockBytes }

  /// Rows of a matrix as a file has them, as a panel, without loss. False where a scale is not finite, or more than the code
  /// can hold.
  func pack(
    _ stored: moei_stored, rows: Int, depth: Int, into panel: UnsafeMutableRawPointer,
    _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    panel.initializeMemory(as: UInt8.self, repeating: 0, count: bytes(depth))
    return withUnsafePointer(to: stored) {
      self.kernels(kernels).pointee.pack(Int64(inputs), Int64(rows), Int64(depth), $0, panel) != 0
    }
  }

  /// The first `rows` rows of a matrix as a panel. False where a scale is not finite.
  func encode(
    _ matrix: StoredMatrix, rows: Int, depth: Int, into panel: UnsafeMutableRawPointer,
    _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    panel.initializeMemory(as: UInt8.self, repeating: 0, count: bytes(depth))
    var encoding = PanelEncoding(code: self, matrix: matrix, rows: rows, depth: depth, kernels: kernels)
    if hasRowScales { encoding.findLargest() }
    return encoding.run(into: panel)
  }

  /// At most 32 contraction indices of a panel, the first a multiple of 32, as floats [count][32 outputs].
  func decode(
    _ panel: UnsafeRawPointer, from index: Int, _ count: Int, into square: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    let first = index % inputs
    self.kernels(kernels).pointee.decode(
      Int64(inputs), Int64(first), Int64(count), panel + bytes(index - first), square)
  }

  /// A panel as `rows` rows of floats, `stride` apart.
  func decode(
    _ panel: UnsafeRawPointer, rows: Int, depth: Int, into matrix: UnsafeMutablePointer<Float>, stride: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    var memory = InlineArray<1024, Float>(repeating: 0)
    withUnsafeMutablePointer(to: &memory) {
      let square = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for p in Swift.stride(from: 0, to: depth, by: chunkWidth) {
        let count = min(chunkWidth, depth - p)
        decode(panel, from: p, count, into: square, kernels)
        for row in 0..<rows {
          for i in 0..<count { matrix[row * stride + p + i] = square[i * chunkWidth + row] }
        }
      }
    }
  }
}

/// From floats to a panel.
private struct PanelEncoding {
  let code: PanelCode
  let matrix: StoredMatrix
  let rows: Int
  let depth: Int
  let kernels: UnsafePointer<moei_kernels>
  var largest = InlineArray<32, Float>(repeating: 0)  // magnitude of each row

  init(code: PanelCode, matrix: StoredMatrix, rows: Int, depth: Int, kernels: UnsafePointer<moei_kernels>) {
    (self.code, self.matrix, self.rows, self.depth, self.kernels) = (code, matrix, rows, depth, kernels)
  }

  mutating func findLargest() {
    var memory = InlineArray<256, Float>(repeating: 0)
    for row in 0..<rows {
      withUnsafeMutablePointer(to: &memory) {
        let floats = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
        for p in stride(from: 0, to: depth, by: 256) {
          let part = matrix.from(row: row).from(column: p)
          let count = min(256, depth - p)
          part.read(0, count, into: floats, kernels)
          let own = moei_largest(floats, Int64(count))
          if !(own <= largest[row]) && largest[row] == largest[row] { largest[row] = own }
        }
      }
    }
  }

  func run(into panel: UnsafeMutableRawPointer) -> Bool {
    var isFinite = true
    for p in stride(from: 0, to: depth, by: code.inputs) {
      let count = min(code.inputs, depth - p)
      let block = panel + code.bytes(p)
      let part = matrix.from(column: p)
      if part.type == .f32 && part.columnStride == 1 {
        isFinite = encode(0..<rows, count, F32.elements(of: part), part.rowStride, block) && isFinite
      } else {
        isFinite = encodeByFloats(part, count, block) && isFinite
      }
    }
    return isFinite
  }

  /// A block as floats first, as many rows at once as there is room for: all, but of the longest blocks, whose rows are
  /// scaled one by one.
  @inline(never) private func encodeByFloats(
    _ part: StoredMatrix, _ count: Int, _ block: UnsafeMutableRawPointer
  ) -> Bool {
    var memory = InlineArray<4096, Float>(repeating: 0)
    let atOnce = 4096 / code.inputs
    return withUnsafeMutablePointer(to: &memory) {
      let floats = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      var isFinite = true
      for first in stride(from: 0, to: rows, by: atOnce) {
        let range = first..<min(first + atOnce, rows)
        for row in range {
          part.read(row * part.rowStride, count, into: floats + (row - first) * code.inputs, kernels)
        }
        isFinite = encode(range, count, floats, code.inputs, block) && isFinite
      }
      return isFinite
    }
  }

  private func encode(
    _ range: Range<Int>, _ count: Int, _ floats: UnsafePointer<Float>, _ stride: Int,
    _ block: UnsafeMutableRawPointer
  ) -> Bool {
    withUnsafePointer(to: largest) {
      code.kernels(kernels).pointee.encode(
        Int64(code.inputs), Int64(range.lowerBound), Int64(range.count), Int64(count), floats, Int64(stride),
        UnsafeRawPointer($0).assumingMemoryBound(to: Float.self), block) != 0
    }
  }
}
