/// Numbers below 2^32 in the order of their priorities, the lower number first among equals: merged run by run,
/// O(n log n), without a table of pointers.
struct Ranking {
  private let keys: UnsafeMutablePointer<UInt64>  // priority, then number
  private let spare: UnsafeMutablePointer<UInt64>

  private let most: Int

  /// One for each of some threads.
  init(_ arena: inout Arena, _ most: Int, lanes: Int = 1) {
    self.most = most
    keys = arena.take(UInt64.self, lanes, most)
    spare = arena.take(UInt64.self, lanes, most)
  }

  private init(keys: UnsafeMutablePointer<UInt64>, spare: UnsafeMutablePointer<UInt64>, most: Int) {
    (self.keys, self.spare, self.most) = (keys, spare, most)
  }

  func of(_ lane: Int) -> Ranking { Ranking(keys: keys + lane * most, spare: spare + lane * most, most: most) }

  subscript(i: Int) -> Int { Int(truncatingIfNeeded: keys[i] & 0xFFFF_FFFF) }

  func set(_ i: Int, _ number: Int, _ priority: UInt32) { keys[i] = UInt64(priority) << 32 | UInt64(number) }

  /// A copy that `set` leaves alone, until the next sort.
  func keepAside(_ count: Int) { spare.update(from: keys, count: count) }
  func aside(_ i: Int) -> Int { Int(truncatingIfNeeded: spare[i] & 0xFFFF_FFFF) }

  /// Smaller for larger numbers; 0 and -0 are one.
  static func descending(_ v: Float) -> UInt32 {
    let bits = (v == 0 ? 0 : v).bitPattern
    return bits & 0x8000_0000 == 0 ? ~(bits | 0x8000_0000) : bits
  }

  func sort(_ count: Int) {
    var (from, to) = (keys, spare)
    var width = 1
    while width < count {
      var start = 0
      while start < count {
        let (middle, end) = (min(start + width, count), min(start + 2 * width, count))
        var (i, j) = (start, middle)
        for k in start..<end {
          if i < middle && (j >= end || from[i] <= from[j]) {
            to[k] = from[i]
            i += 1
          } else {
            to[k] = from[j]
            j += 1
          }
        }
        start = end
      }
      swap(&from, &to)
      width *= 2
    }
    if from != keys { keys.update(from: from, count: count) }
  }
}
