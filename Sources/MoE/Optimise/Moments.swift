import CShims

/// The moments of one tensor, stored as float32 or as bfloat16. The latter are widened run by run, stepped in float32 and
/// rounded up or down by chance, so that their mean is what float32 would hold: a second moment that changes by 1 - beta2
/// of itself would otherwise round back to what it was, at every step [Zamirai et al. 2020, arXiv:2010.06192].
struct Moments {
  let start: UnsafeMutableRawPointer  // [rows, count] of `type`
  let type: ElementType
  let rows: Int  // 1 or 2
  let count: Int
  let random: Random
  /// Of the tensor's first element; element i has word firstWord + i, half for either moment. A multiple of 4.
  let firstWord: Int

  /// Words a tensor takes up: four come at a time.
  static func words(_ count: Int) -> Int { (count + 3) / 4 * 4 }

  /// Elements that are widened at a time: a multiple of the 32 words that are made at once, and with the words of up to three
  /// elements before them at most 1024 bytes on the stack.
  private static var run: Int { 224 }

  /// Calls `body` for all elements from `first` on, piece by piece: where a piece begins behind `first`, how long it is, and
  /// its moments in float32 (the second ones mean nothing where there is one).
  func update(
    _ first: Int, _ count: Int,
    _ body: (_ offset: Int, _ count: Int, UnsafeMutablePointer<Float>, UnsafeMutablePointer<Float>) -> Void
  ) {
    if type == .f32 {
      let moments = start.assumingMemoryBound(to: Float.self) + first
      return body(0, count, moments, moments + (rows - 1) * self.count)
    }
    withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.run) { one in
      withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.run) { two in
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: Self.run + 3) { words in
          let (one, two, words) = (one.baseAddress!, two.baseAddress!, words.baseAddress!)
          let skipped = first % 4
          for offset in stride(from: 0, to: count, by: Self.run) {
            let piece = min(Self.run, count - offset)
            widen(0, first + offset, piece, one)
            if rows == 2 { widen(1, first + offset, piece, two) }
            body(offset, piece, one, two)
            random.fill(words, from: firstWord + first + offset - skipped, count: skipped + piece)
            round(0, first + offset, piece, words + skipped, one)
            if rows == 2 { round(1, first + offset, piece, words + skipped, two) }
          }
        }
      }
    }
  }

  private func row(_ row: Int, _ first: Int) -> UnsafeMutablePointer<UInt16> {
    start.assumingMemoryBound(to: UInt16.self) + row * count + first
  }

  private func widen(_ row: Int, _ first: Int, _ count: Int, _ out: UnsafeMutablePointer<Float>) {
    random.kernels.pointee.from_bf16(Int64(count), self.row(row, first), out)
  }

  /// The lower halves of the words are the first moment's, the upper ones the second's.
  private func round(
    _ row: Int, _ first: Int, _ count: Int, _ words: UnsafeMutablePointer<UInt32>, _ values: UnsafeMutablePointer<Float>
  ) {
    random.kernels.pointee.to_bf16_by_chance(
      Int64(count), words, Int32(truncatingIfNeeded: 16 * row), values, self.row(row, first))
  }
}
