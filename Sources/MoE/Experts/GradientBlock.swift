import CShims

/// One block of 32 x 32 elements of a gradient, for some tiles of tokens: A^T B is added to it.
struct GradientBlock<P: Precision> {
  let tiles: moei_tiles
  let begins: Bool  // with the first of the tokens
  let ends: Bool  // with the last of them
  let block: UnsafeMutablePointer<Float>  // [32,32] where sums wait that cannot do so in the gradient
  let kernels: UnsafePointer<moei_kernels>

  typealias Chunk = TileChunk<P.Element>

  /// To the elements from (row, column) on. `next`: the element whose block comes next.
  func add(
    _ rows: Int, _ a: Chunk, _ columns: Int, _ b: Chunk, to gradient: GradientMatrix, _ row: Int, _ column: Int,
    next: (Int, Int)
  ) {
    // A product does not mind which factor comes first, nor does a chain of them.
    if gradient.hasTallGaps {
      return add(columns, b, rows, a, to: gradient.turned, column, row, next: (next.1, next.0))
    }
    if gradient.isRowsOfFloats {
      let place = gradient.floats(row, column)
      if begins && gradient.overwrites {
        for r in 0..<rows { (place + r * gradient.rowStride).update(repeating: 0, count: columns) }
      }
      return P.productOverTokens(
        rows, columns, tiles, a, b, StridedTargets(place, stride: gradient.rowStride),
        next: gradient.floats(next.0, next.1), kernels)
    }
    if begins {
      gradient.begin(block, stride: chunkWidth, from: row, column, rows: rows, columns: columns, kernels)
    }
    P.productOverTokens(
      rows, columns, tiles, a, b, StridedTargets(block, stride: chunkWidth), next: block, kernels)
    if ends { gradient.store(block, stride: chunkWidth, to: row, column, rows: rows, columns: columns, kernels) }
  }
}
