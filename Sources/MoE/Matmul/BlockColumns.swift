import CShims

/// 32 columns, or fewer, of a matrix [outputs, inputs] that is packed for products with W^T, in blocks or as float32. Gradients of
/// what such a product reads are products with W: their contraction runs over the outputs, which lie side by side in the panels.
struct BlockColumns {
  /// Of 32 outputs each.
  enum Panels {
    case alike(UnsafeRawPointer, bytes: Int, FormNumber)
    case matrix(PanelMatrixPointer)

    fileprivate func panel(_ number: Int) -> (start: UnsafeRawPointer, form: PanelForm) {
      switch self {
      case .alike(let start, let bytes, let form): (start + number * bytes, form.form)
      case .matrix(let matrix): (UnsafeRawPointer(matrix.pointee.start(number)), matrix.pointee.forms[number])
      }
    }
  }

  let panels: Panels
  let first: Int  // column, a multiple of 32
  let count: Int

  /// [rows][32]: each square of 32 outputs is decoded as it lies, and turned.
  func decode(
    _ rows: Range<Int>, into panel: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    var memory = InlineArray<1024, Float>(repeating: 0)  // [columns][32 outputs]
    withUnsafeMutablePointer(to: &memory) {
      let decoded = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for row in stride(from: 0, to: rows.count, by: chunkWidth) {
        let (start, form) = panels.panel((rows.lowerBound + row) / chunkWidth)
        var square = UnsafePointer(decoded)
        if let code = form.code {
          code.decode(start, from: first, count, into: decoded, kernels)
        } else {
          square = start.assumingMemoryBound(to: Float.self) + first * chunkWidth
        }
        kernels.pointee.pack_transposed(
          Int64(count), Int64(min(chunkWidth, rows.count - row)), square, Int64(chunkWidth), panel + row * chunkWidth)
      }
    }
  }
}
