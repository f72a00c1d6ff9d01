import CShims

/// How a chunk's elements lie: [m][32] as products of features read them, and as sums over tokens do.
protocol ChunkElements {
  static func load(_ array: UnsafeRawPointer, _ place: Int) -> V
  /// What storing makes of values.
  static func rounded(_ v: V) -> V
  /// Rounded values.
  static func store(_ v: V, _ array: UnsafeMutableRawPointer, _ place: Int)
  /// Whether sums over tokens read pairs of rows; if not they read the same array.
  static var pairsRows: Bool { get }
  /// Rounded values of two rows, the first of them number r, side by side.
  static func storePair(_ first: V, _ second: V, _ array: UnsafeMutableRawPointer, _ r: Int, _ column: Int)
}

enum FloatChunk: ChunkElements {
  static var pairsRows: Bool { false }
  @_transparent static func load(_ array: UnsafeRawPointer, _ place: Int) -> V {
    (array + place &* 4).loadUnaligned(as: V.self)
  }
  @_transparent static func rounded(_ v: V) -> V { v }
  @_transparent static func store(_ v: V, _ array: UnsafeMutableRawPointer, _ place: Int) {
    (array + place &* 4).storeBytes(of: v, as: V.self)
  }
  @_transparent static func storePair(
    _ first: V, _ second: V, _ array: UnsafeMutableRawPointer, _ r: Int, _ column: Int
  ) {}
}

enum HalfChunk: ChunkElements {
  static var pairsRows: Bool { true }
  @_transparent static func load(_ array: UnsafeRawPointer, _ place: Int) -> V {
    moei_from_bf16((array + place &* 2).assumingMemoryBound(to: UInt16.self))
  }
  @_transparent static func rounded(_ v: V) -> V { upperHalves(moei_round_to_bf16(v)) }
  @_transparent static func store(_ v: V, _ array: UnsafeMutableRawPointer, _ place: Int) {
    moei_store_upper_halves(
      unsafeBitCast(v, to: Words.self), (array + place &* 2).assumingMemoryBound(to: UInt16.self))
  }
  @_transparent static func storePair(
    _ first: V, _ second: V, _ array: UnsafeMutableRawPointer, _ r: Int, _ column: Int
  ) {
    let words = unsafeBitCast(first, to: Words.self) &>> 16 | unsafeBitCast(second, to: Words.self)
    (array + (r / 2 &* 32 &+ column) &* 4).storeBytes(of: words, as: Words.self)
  }
}
