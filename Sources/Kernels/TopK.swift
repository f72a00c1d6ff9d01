/// The k largest of n scores, largest first, the lowest index first among equals. Partial selection: 16 scores at a time
/// are compared with the last of the best so far, and only those above it find their place among them.
@inline(never) func topK(_ n: Int, _ k: Int, _ z: Source, _ indices: UnsafeMutablePointer<Int32>, _ chosen: Target) {
  var i = 0
  while i < k {
    insert(z[i], i, i, indices, chosen)
    i &+= 1
  }
  while i < n {
    let left = n &- i
    var above = bits(load(z + i, left) .> chosen[k &- 1])
    // The lanes beyond the array are 0, which may be above.
    if left < 16 { above &= 1 &<< UInt32(truncatingIfNeeded: left) &- 1 }
    while above != 0 {
      let next = i &+ above.trailingZeroBitCount
      above &= above &- 1
      // Those before it in the sixteen may have raised the bar.
      if z[next] > chosen[k &- 1] { insert(z[next], next, k &- 1, indices, chosen) }
    }
    i &+= 16
  }
}

/// Puts a score among the best, behind its equals; the one at `last`, if there is one, falls out.
@inline(__always) private func insert(
  _ score: Float, _ index: Int, _ last: Int, _ indices: UnsafeMutablePointer<Int32>, _ chosen: Target
) {
  var place = last
  while place > 0 && score > chosen[place &- 1] {
    chosen[place] = chosen[place &- 1]
    indices[place] = indices[place &- 1]
    place &-= 1
  }
  chosen[place] = score
  indices[place] = Int32(truncatingIfNeeded: index)
}
