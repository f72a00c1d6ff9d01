/// Sorts elements 0 ..< count in place, O(n log n) whatever their order, without memory of its own.
public func heapSort(_ count: Int, isLess: (Int, Int) -> Bool, exchange: (Int, Int) -> Void) {
  func siftDown(_ root: Int, _ end: Int) {
    var root = root
    while 2 * root + 1 < end {
      var child = 2 * root + 1
      if child + 1 < end && isLess(child, child + 1) { child += 1 }
      if !isLess(root, child) { return }
      exchange(root, child)
      root = child
    }
  }
  for root in stride(from: count / 2 - 1, through: 0, by: -1) { siftDown(root, count) }
  for end in stride(from: count - 1, to: 0, by: -1) {
    exchange(0, end)
    siftDown(0, end)
  }
}
