/// Tokens grouped by expert. A *pair* is one choice of one token, number t * K + slot; a *row* is its place among the
/// rows of its expert. Within an expert rows are in ascending token order, so that sums over rows are too.
struct Dispatch {
  let pairs: Int  // T * K
  let offsets: UnsafeMutablePointer<Int32>  // [E+1]: expert e has rows offsets[e] ..< offsets[e+1]
  let pairOfRow: UnsafeMutablePointer<Int32>  // [T*K]
  let rowOfPair: UnsafeMutablePointer<Int32>  // [T*K]

  init(_ arena: inout Arena, _ c: Configuration, tokens: Int) {
    pairs = tokens * c.topK
    offsets = arena.take(Int32.self, c.experts + 1)
    pairOfRow = arena.take(Int32.self, pairs)
    rowOfPair = arena.take(Int32.self, pairs)
  }

  /// A counting sort by expert: stable, O(T K + E).
  func group(_ indices: UnsafePointer<Int32>, experts: Int) {
    offsets.initialize(repeating: 0, count: experts + 1)
    for pair in 0..<pairs { offsets[Int(indices[pair]) + 1] += 1 }
    for e in 0..<experts { offsets[e + 1] += offsets[e] }
    // offsets[e] serves as the next free row of e, which leaves it at the start of e + 1; shifted back below.
    for pair in 0..<pairs {
      let expert = Int(indices[pair])
      let row = offsets[expert]
      pairOfRow[Int(row)] = Int32(truncatingIfNeeded: pair)
      rowOfPair[pair] = row
      offsets[expert] = row + 1
    }
    var e = experts
    while e > 0 {
      offsets[e] = offsets[e - 1]
      e -= 1
    }
    offsets[0] = 0
  }

  func rows(ofExpert e: Int) -> Range<Int> { Int(offsets[e])..<Int(offsets[e + 1]) }
  func count(ofExpert e: Int) -> Int { Int(offsets[e + 1] - offsets[e]) }
}
