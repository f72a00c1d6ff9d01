/// The smallest of the keys that come by, as many as there is room for: a heap whose root is the largest that is kept.
struct SmallestKeys {
  private let keys: UnsafeMutablePointer<UInt64>
  private let room: Int
  private(set) var count: Int

  /// In memory for `room` keys, of which `count` are kept already.
  init(_ keys: UnsafeMutablePointer<UInt64>, room: Int, count: Int) {
    (self.keys, self.room, self.count) = (keys, room, count)
  }

  /// In no order.
  subscript(i: Int) -> UInt64 { keys[i] }

  mutating func offer(_ key: UInt64) {
    if count < room {
      rise(key, from: count)
      count += 1
    } else if room > 0 && key < keys[0] {
      sink(key)
    }
  }

  private func rise(_ key: UInt64, from place: Int) {
    var place = place
    while place > 0 && keys[(place - 1) / 2] < key {
      keys[place] = keys[(place - 1) / 2]
      place = (place - 1) / 2
    }
    keys[place] = key
  }

  /// In place of the root.
  private func sink(_ key: UInt64) {
    var place = 0
    while 2 * place + 1 < count {
      var child = 2 * place + 1
      if child + 1 < count && keys[child] < keys[child + 1] { child += 1 }
      if keys[child] <= key { break }
      keys[place] = keys[child]
      place = child
    }
    keys[place] = key
  }
}
