import CShims

/// A matrix of weights as it is stored: row after row, or in other strides.
struct StoredMatrix {
  let data: UnsafeRawPointer  // of the tensor
  let type: ElementType
  let first: Int  // element (0, 0) among the tensor's
  let rowStride: Int  // in elements
  let columnStride: Int

  init(_ data: UnsafeRawPointer, _ type: ElementType, first: Int = 0, rowStride: Int, columnStride: Int = 1) {
    (self.data, self.type, self.first) = (data, type, first)
    (self.rowStride, self.columnStride) = (rowStride, columnStride)
  }

  /// The part that begins with the element `offset` further on in memory.
  func from(_ offset: Int) -> StoredMatrix {
    StoredMatrix(data, type, first: first + offset, rowStride: rowStride, columnStride: columnStride)
  }
  /// The part that begins with that row or column.
  func from(row: Int) -> StoredMatrix { from(row * rowStride) }
  func from(column: Int) -> StoredMatrix { from(column * columnStride) }

  /// Its transpose, in the same memory.
  var turned: StoredMatrix {
    StoredMatrix(data, type, first: first, rowStride: columnStride, columnStride: rowStride)
  }

  /// Where a byte is that element (0, 0) is part of.
  var address: UnsafeRawPointer { data + type.bytes(first) }

  /// Whether such elements are rows of floats as BLAS takes them: they do not overlap, and its strides have 32 bits.
  static func isRows(of columns: Int, _ type: ElementType, rowStride: Int, columnStride: Int) -> Bool {
    type == .f32 && columnStride == 1 && rowStride >= columns && rowStride <= Int32.max
  }

  /// So many elements of a row as floats, from the element `offset` further on in memory.
  func read(
    _ offset: Int, _ count: Int, into floats: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    if columnStride == 1 { return type.toFloats(data, first + offset, count, floats, kernels) }
    if type == .f32 {
      let source = data.assumingMemoryBound(to: Float.self) + first + offset
      for i in 0..<count { floats[i] = source[i * columnStride] }
      return
    }
    // Put next to each other first: 64 at a time, of two bytes.
    let source = data.assumingMemoryBound(to: UInt16.self) + first + offset
    var beside = InlineArray<64, UInt16>(repeating: 0)
    for start in stride(from: 0, to: count, by: 64) {
      let part = min(64, count - start)
      for i in 0..<part { beside[i] = source[(start + i) * columnStride] }
      withUnsafePointer(to: &beside) { type.toFloats($0, 0, part, floats + start, kernels) }
    }
  }
}
