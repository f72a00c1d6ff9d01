/// Places in memory, of 128 bytes each, that are wanted soon: products fetch them on the way.
struct WantedPlaces {
  let first: UnsafeMutablePointer<UnsafeRawPointer>  // [most]
  private(set) var count = 0

  /// Two cache lines: as much as a product fetches for each token, with which it has time to come.
  private static var bytes: Int { 128 }
  /// For 64 columns of 32 rows of four arrays of floats.
  static var most: Int { 32 * 4 * 64 * MemoryLayout<Float>.size / bytes }

  init(_ memory: UnsafeMutablePointer<UnsafeRawPointer>) { first = memory }

  mutating func append(_ start: UnsafeRawPointer, bytes: Int) {
    for offset in stride(from: 0, to: bytes, by: Self.bytes) {
      first[count] = start + offset
      count += 1
    }
  }
}
