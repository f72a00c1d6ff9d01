import CShims

/// Where the gradient of a matrix is written: row after row in float32, or in other strides and formats.
struct GradientMatrix {
  let data: UnsafeMutableRawPointer  // of the tensor
  let type: ElementType
  let first: Int  // element (0, 0) among the tensor's
  let rowStride: Int  // in elements
  let columnStride: Int
  /// Whether sums begin at 0, and not at what is there.
  let overwrites: Bool
  /// What takes complete sums, which are stored nowhere; `data` are then the weights.
  let step: UnsafePointer<BlockStep>?

  init(
    _ data: UnsafeMutableRawPointer, _ type: ElementType, first: Int, rowStride: Int, columnStride: Int,
    overwrites: Bool, step: UnsafePointer<BlockStep>? = nil
  ) {
    (self.data, self.type, self.first) = (data, type, first)
    (self.rowStride, self.columnStride, self.overwrites) = (rowStride, columnStride, overwrites)
    self.step = step
  }

  /// Rows of float32 without gaps, which are added to.
  init(_ floats: UnsafeMutablePointer<Float>, rowStride: Int) {
    self.init(floats, .f32, first: 0, rowStride: rowStride, columnStride: 1, overwrites: false)
  }

  /// The transpose, in the same memory.
  var turned: GradientMatrix {
    GradientMatrix(
      data, type, first: first, rowStride: columnStride, columnStride: rowStride, overwrites: overwrites)
  }

  /// Of the matrix and its transpose, the one whose rows have the smaller gaps.
  var hasTallGaps: Bool { rowStride < columnStride }

  /// Whether sums over tokens can wait in it.
  var isRowsOfFloats: Bool { type == .f32 && columnStride == 1 && step == nil }

  /// Element (row, column) of a matrix of float32.
  func floats(_ row: Int, _ column: Int) -> UnsafeMutablePointer<Float> {
    data.assumingMemoryBound(to: Float.self) + first + row * rowStride + column * columnStride
  }

  /// From an element on, of the transpose where that is what sums go to; nil where they wait elsewhere.
  func block(_ row: Int, _ column: Int) -> NextBlock? {
    if hasTallGaps { return turned.block(column, row) }
    return isRowsOfFloats ? NextBlock(floats(row, column), stride: rowStride) : nil
  }

  // MARK: a part of it, [rows, columns] from (row, column) on, as floats elsewhere

  /// What sums begin with.
  func begin(
    _ block: UnsafeMutablePointer<Float>, stride: Int, from row: Int, _ column: Int, rows: Int, columns: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    for r in 0..<rows {
      let own = block + r * stride
      if overwrites {
        own.update(repeating: 0, count: columns)
      } else {
        let stored = StoredMatrix(data, type, first: first, rowStride: rowStride, columnStride: columnStride)
        stored.read((row + r) * rowStride + column * columnStride, columns, into: own, kernels)
      }
    }
  }

  /// Sums that are complete, rounded.
  func store(
    _ block: UnsafePointer<Float>, stride: Int, to row: Int, _ column: Int, rows: Int, columns: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    for r in 0..<rows {
      write(block + r * stride, columns, (row + r) * rowStride + column * columnStride, kernels)
    }
  }

  /// Elements of a row from the element `offset` further on in memory.
  private func write(
    _ floats: UnsafePointer<Float>, _ count: Int, _ offset: Int, _ kernels: UnsafePointer<moei_kernels>
  ) {
    if columnStride == 1 { return type.fromFloats(floats, count, data, first + offset, kernels) }
    if type == .f32 {
      let target = data.assumingMemoryBound(to: Float.self) + first + offset
      for i in 0..<count { target[i * columnStride] = floats[i] }
      return
    }
    // Next to each other first: 64 at a time, of two bytes.
    let target = data.assumingMemoryBound(to: UInt16.self) + first + offset
    var beside = InlineArray<64, UInt16>(repeating: 0)
    for start in Swift.stride(from: 0, to: count, by: 64) {
      let part = min(64, count - start)
      withUnsafeMutablePointer(to: &beside) { type.fromFloats(floats + start, part, $0, 0, kernels) }
      for i in 0..<part { target[(start + i) * columnStride] = beside[i] }
    }
  }

  /// 0 in all of it.
  func clear(rows: Int, columns: Int) {
    if hasTallGaps { return turned.clear(rows: columns, columns: rows) }
    // 0 is bytes of 0 in every format.
    for row in 0..<rows {
      let start = data + type.bytes(first + row * rowStride)
      if columnStride == 1 {
        start.initializeMemory(as: UInt8.self, repeating: 0, count: type.bytes(columns))
      } else {
        for column in 0..<columns {
          (start + type.bytes(column * columnStride)).initializeMemory(
            as: UInt8.self, repeating: 0, count: type.unit)
        }
      }
    }
  }
}
