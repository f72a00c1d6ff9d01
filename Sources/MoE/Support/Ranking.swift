/// Numbers below 2^32 in the order of their priorities, the lower number first among equals: merged run by run,
/// O(n log n), without a table of pointers.
struct Ranking {
  private let keys: UnsafeMutablePointer<UInt64>  // priority, then number
  private let spare: UnsafeMutablePointer<UInt64>

  init(_ arena: inout Arena, _ most: Int) {
    keys = arena.take(UInt64.self, most)
    spare = arena.take(UInt64.self, most)
  }

  static func key(_ number: Int, _ priority: UInt32) -> UInt64 { UInt64(priority) << 32 | UInt64(number) }
  static func number(_ key: UInt64) -> Int { Int(truncatingIfNeeded: key & 0xFFFF_FFFF) }

  subscript(i: Int) -> Int { Self.number(keys[i]) }

  func set(_ i: Int, _ number: Int, _ priority: UInt32) { keys[i] = Self.key(number, priority) }

  /// A copy that `set` leaves alone, until the next sort.
  func keepAside(_ count: Int) { spare.update(from: keys, count: count) }
  func aside(_ i: Int) -> Int { Self.number(spare[i]) }

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
