import CShims

/// Queries, keys and values in bfloat16, which is what attention multiplies: half the memory of the projections that they were made
/// of. Those of a head follow each other, so that attention, which goes head by head, reads memory from one end to the other.
struct RoundedHeads {
  let query: RoundedRows  // [heads, T, D]
  let key: RoundedRows  // [key heads, T, D]
  let value: RoundedRows  // [key heads, T, Dv]

  private init(_ arena: inout Arena, tokens: Int, heads: Int, keyHeads: Int, headSize: Int, valueSize: Int) {
    query = RoundedRows(&arena, tokens: tokens, heads: heads, width: headSize)
    key = RoundedRows(&arena, tokens: tokens, heads: keyHeads, width: headSize)
    value = RoundedRows(&arena, tokens: tokens, heads: keyHeads, width: valueSize)
  }

  /// In front of its rows: on a small stack it is dear, and so is each copy of it.
  static func place(
    _ arena: inout Arena, tokens: Int, heads: Int, keyHeads: Int, headSize: Int, valueSize: Int
  ) -> UnsafeMutablePointer<RoundedHeads> {
    let place = arena.take(RoundedHeads.self, 1)
    let heads = RoundedHeads(
      &arena, tokens: tokens, heads: heads, keyHeads: keyHeads, headSize: headSize, valueSize: valueSize)
    if !arena.isMeasuring { place.initialize(to: heads) }
    return place
  }

  /// From float32 in rows of tokens, `stride` floats apart.
  func fill(
    query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>, stride: Int,
    in context: ContextPointer
  ) throws(Fault) {
    let job = RoundingJob(
      kernels: context.kernels, rounded: self, query: query, key: key, value: value, stride: stride)
    try context.measure(.attention) { () throws(Fault) in
      try context.run((self.query.tokens + RoundingJob.run - 1) / RoundingJob.run, job)
    }
  }
}

/// Rows of all heads, head by head.
struct RoundedRows {
  let tokens: Int  // T
  let heads: Int
  let width: Int
  private let start: UnsafeMutablePointer<UInt16>  // [heads, T, width]

  fileprivate init(_ arena: inout Arena, tokens: Int, heads: Int, width: Int) {
    (self.tokens, self.heads, self.width) = (tokens, heads, width)
    start = arena.take(UInt16.self, heads * tokens, width)
  }

  /// Of token t; the next token's row follows it.
  func row(_ head: Int, _ t: Int) -> UnsafeMutablePointer<UInt16> { start + (head * tokens + t) * width }
}

private struct RoundingJob: Job {
  let kernels: UnsafePointer<moei_kernels>
  let rounded: RoundedHeads
  let query: UnsafePointer<Float>  // [T, heads, D], rows of tokens `stride` floats apart
  let key: UnsafePointer<Float>  // [T, key heads, D], likewise
  let value: UnsafePointer<Float>  // [T, key heads, Dv], likewise
  let stride: Int

  /// Tokens of one item.
  static let run = 64

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let tokens = item * Self.run..<min(rounded.query.tokens, (item + 1) * Self.run)
    round(tokens, query, rounded.query)
    round(tokens, key, rounded.key)
    round(tokens, value, rounded.value)
  }

  private func round(_ tokens: Range<Int>, _ rows: UnsafePointer<Float>, _ rounded: RoundedRows) {
    for head in 0..<rounded.heads {
      for t in tokens {
        kernels.pointee.to_bf16(
          Int64(rounded.width), rows + (t * stride + head * rounded.width), rounded.row(head, t))
      }
    }
  }
}
