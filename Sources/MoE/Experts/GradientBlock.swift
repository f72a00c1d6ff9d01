import CShims

/// One block of up to 32 x 64 elements of a gradient, for some tiles of tokens: A^T B is added to it, for one chunk of A and one
/// or two of B.
struct GradientBlock<P: Precision> {
  let tiles: moei_tiles
  let begins: Bool  // with the first of the tokens
  let ends: Bool  // with the last of them
  let block: UnsafeMutablePointer<Float>  // [32,64] where sums wait that cannot do so in the gradient
  let wanted: UnsafeMutablePointer<UnsafeRawPointer>  // [WantedPlaces.most], where there are steps
  let kernels: UnsafePointer<moei_kernels>

  typealias Chunk = TileChunk<P.Element>
  private static var width: Int { 2 * chunkWidth }
  /// Floats of a block.
  static var size: Int { chunkWidth * width }

  /// To the elements from (row, column) on. `next`: nil where sums wait elsewhere.
  func add(
    _ rows: Int, _ a: Chunk, _ columns: Int, _ b: Chunk, to gradient: GradientMatrix, _ row: Int, _ column: Int,
    next: NextBlock?
  ) {
    // A product does not mind which factor comes first, nor does a chain of them.
    if gradient.hasTallGaps {
      for first in stride(from: 0, to: columns, by: chunkWidth) {
        let half = GradientBlock(
          tiles: tiles, begins: begins, ends: ends, block: block + first, wanted: wanted, kernels: kernels)
        half.add(
          min(chunkWidth, columns - first), Chunk(b.start, width: b.width, b.chunk + first / chunkWidth), rows, a,
          to: gradient.turned, column + first, row, next: next)
      }
      return
    }
    if gradient.isRowsOfFloats {
      let place = gradient.floats(row, column)
      if begins && gradient.overwrites {
        for r in 0..<rows { (place + r * gradient.rowStride).update(repeating: 0, count: columns) }
      }
      return P.productOverTokens(
        rows, columns, tiles, a, b, StridedTargets(place, stride: gradient.rowStride),
        next: next ?? NextBlock(place, stride: gradient.rowStride), kernels)
    }
    if begins {
      gradient.begin(block, stride: Self.width, from: row, column, rows: rows, columns: columns, kernels)
    }
    let sums = StridedTargets(block, stride: Self.width)
    if ends, let step = gradient.step {
      let own = BlockGradient(
        sums: block, sumsStride: Self.width, rows: rows, columns: columns,
        first: gradient.first + row * gradient.rowStride + column, rowStride: gradient.rowStride)
      P.productOverTokens(
        rows, columns, tiles, a, b, sums, next: block, wanted: step.pointee.tensor.places(own, in: wanted), kernels)
      return step.pointee.run(own)
    }
    P.productOverTokens(rows, columns, tiles, a, b, sums, next: block, wanted: nil, kernels)
    if ends { gradient.store(block, stride: Self.width, to: row, column, rows: rows, columns: columns, kernels) }
  }
}
