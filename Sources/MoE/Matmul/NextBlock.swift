import CShims

/// The block of sums over tokens that will be added to after one, 32 rows of 64 floats. Its memory is far away, and comes while the
/// products of the one before are computed: a few lines for each token, since all at once would keep its own loads waiting.
struct NextBlock {
  fileprivate let start: UnsafeMutablePointer<Float>
  fileprivate let stride: Int  // floats from one row to the next

  init(_ start: UnsafeMutablePointer<Float>, stride: Int) {
    (self.start, self.stride) = (start, stride)
  }

  /// Of each row two pieces.
  fileprivate func places(in memory: UnsafeMutablePointer<UnsafeRawPointer>) -> WantedPlaces {
    var places = WantedPlaces(memory)
    for row in 0..<chunkWidth {
      places.append(start + row * stride, bytes: 2 * chunkWidth * MemoryLayout<Float>.size)
    }
    return places
  }
}

extension Precision {
  /// `productOverTokens`, on the way to the next block.
  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: NextBlock, _ kernels: Kernels
  ) {
    var memory = InlineArray<64, UnsafeRawPointer>(repeating: UnsafeRawPointer(next.start))  // two for each row
    withUnsafeMutablePointer(to: &memory) {
      let places = next.places(in: UnsafeMutableRawPointer($0).assumingMemoryBound(to: UnsafeRawPointer.self))
      productOverTokens(rows, columns, tiles, a, b, c, next: next.start, wanted: places, kernels)
    }
  }
}
