import CShims

// What moments are rounded by: one word for each element of a tensor, made as fast as memory brings the element. Philox
// draws two keys for 2^16 elements at a time; from there on a word is a hash of the element's place among them, with two
// multiplications: Wellons' lowbias32, found by search for the least bias that two leave [2018, "Prospecting for hash
// functions"]. It gets the places as a Weyl sequence, times the golden ratio, since neighbours' words would depend on each other
// otherwise; the second key stands before the second multiplication.

struct Chance {
  /// Elements whose words have the same keys.
  private static var span: Int { 1 << 16 }
  private static var golden: UInt32 { 0x9E37_79B9 }

  /// For so many elements the keys go on.
  let left: Int
  private let key0, key1: Words
  private var places: Words

  /// Words for a tensor's elements from number moments.element + `i` on.
  @inline(__always) init(_ moments: moei_moments, _ i: Int) {
    let element = moments.element &+ UInt64(truncatingIfNeeded: i)
    let place = Int(truncatingIfNeeded: element) & (Self.span &- 1)
    left = Self.span &- place
    let drawn = philox(moments.random, moments.tensor &<< 32 | element &>> 16).0
    key0 = Words(repeating: drawn[0])
    key1 = Words(repeating: drawn[1])
    let lanes = Words(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    places = (lanes &+ UInt32(truncatingIfNeeded: place)) &* Self.golden
  }

  /// The words of the next 16 elements.
  @inline(__always) mutating func next() -> Words {
    var word = places ^ key0
    places = places &+ 16 &* Self.golden
    word = (word ^ (word &>> 16)) &* 0x7FEB_352D
    word = (word ^ (word &>> 15) ^ key1) &* 0x846C_A68B
    return word ^ (word &>> 16)
  }
}
