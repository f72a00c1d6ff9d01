import CShims

/// 32 columns, or fewer, of a matrix [outputs, inputs] that is packed in blocks for products with W^T. Gradients of what such
/// a product reads are products with W: their contraction runs over the outputs, which lie side by side in the panels.
struct BlockColumns {
  let panels: UnsafeRawPointer  // of 32 outputs each
  let panelBytes: Int
  let code: PanelCode
  let first: Int  // column, a multiple of 32
  let count: Int

  /// [rows][32]: each square of 32 outputs is decoded as it lies, and turned.
  func decode(
    _ rows: Range<Int>, into panel: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    var memory = InlineArray<1024, Float>(repeating: 0)  // [columns][32 outputs]
    withUnsafeMutablePointer(to: &memory) {
      let square = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for row in stride(from: rows.lowerBound, to: rows.upperBound, by: chunkWidth) {
        code.decode(panels + row / chunkWidth * panelBytes, from: first, count, into: square, kernels)
        kernels.pointee.pack_transposed(
          Int64(count), Int64(min(chunkWidth, rows.upperBound - row)), square, Int64(chunkWidth),
          panel + (row - rows.lowerBound) * chunkWidth)
      }
    }
  }
}
