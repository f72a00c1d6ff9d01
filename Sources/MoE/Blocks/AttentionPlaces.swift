// Windows and chunks: keys that a query does not see because they lie too far before it.

extension AttentionMasks {
  /// Whether a query may be hidden from keys because they lie too far before it.
  var hideEarly: Bool { window > 0 || chunk > 0 }

  /// The first key that window and chunk leave to each query of a range, 0 where there are neither: key `first[i]` for the i-th.
  /// It never falls from one query to the next. Places are counted over real keys, so that padding moves nothing.
  func fillFirstKeys(_ first: UnsafeMutablePointer<Int>, _ sequence: Int, _ queries: Range<Int>) {
    guard hideEarly else { return first.update(repeating: 0, count: queries.count) }
    // Query s has the place of key s + U - S; the first ones have none where there are fewer keys.
    let keyOfFirst = queries.lowerBound + keys - self.queries
    guard let valid else {
      for i in 0..<queries.count {
        let key = max(0, keyOfFirst + i)
        first[i] = key - min(key, reach(key))
      }
      return
    }
    var walk = PlaceWalk(self, valid + sequence * keys, key: max(0, keyOfFirst))
    for i in 0..<queries.count {
      if keyOfFirst + i > walk.key { walk.advance() }
      first[i] = walk.first
    }
  }

  /// So many real keys before a place are seen from it.
  fileprivate func reach(_ place: Int) -> Int {
    min(window > 0 ? window - 1 : Int.max, chunk > 0 ? place % chunk : Int.max)
  }
}

/// The first key that is seen from one key's place, going up from key to key of a sequence with padding.
private struct PlaceWalk {
  private(set) var key: Int
  private(set) var first: Int
  private let masks: AttentionMasks
  private let valid: AttentionMasks.Bytes
  private var place = 0  // real keys before `key`; of chunks alone, since counting them takes time
  private var kept = 0  // real keys from `first` up to `key`

  init(_ masks: AttentionMasks, _ valid: AttentionMasks.Bytes, key: Int) {
    (self.masks, self.valid, self.key) = (masks, valid, key)
    if masks.chunk > 0 {
      for before in 0..<key { place &+= valid[before] != 0 ? 1 : 0 }
    }
    first = key
    let reach = masks.reach(place)
    while kept < reach && first > 0 {
      first -= 1
      kept += valid[first] != 0 ? 1 : 0
    }
  }

  mutating func advance() {
    let isReal = valid[key] != 0 ? 1 : 0
    key += 1
    kept += isReal
    place += isReal
    let reach = masks.reach(place)
    while kept > reach {
      kept -= valid[first] != 0 ? 1 : 0
      first += 1
    }
  }
}
