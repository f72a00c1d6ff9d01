import CShims

// A tensor that is not float32 has a master in float32, so that steps smaller than its type resolves add up.

extension ElementType {
  var hasMaster: Bool { self != .f32 }

  /// master[i] = element first + i wherever that is not the master rounded: somebody has set it since.
  func follow(
    _ data: UnsafeRawPointer, _ first: Int, _ count: Int, _ master: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    let stretch = 256  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(byteCount: bytes(stretch), alignment: 8) {
      let rounded = $0.baseAddress!
      for start in Swift.stride(from: 0, to: count, by: stretch) {
        let (some, own) = (min(stretch, count - start), data + bytes(first + start))
        fromFloats(master + start, some, rounded, 0, kernels)
        if isSame(rounded, own, bytes(some)) { continue }
        for i in 0..<some where !isSame(rounded + bytes(i), own + bytes(i), unit) {
          toFloats(data, first + start + i, 1, master + start + i, kernels)
        }
      }
    }
  }
}

private func isSame(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ bytes: Int) -> Bool {
  var (difference, byte) = (0 as UInt64, 0)
  while byte + 8 <= bytes {
    difference |= (a + byte).loadUnaligned(as: UInt64.self) ^ (b + byte).loadUnaligned(as: UInt64.self)
    byte += 8
  }
  while byte < bytes {
    difference |= UInt64((a + byte).load(as: UInt8.self) ^ (b + byte).load(as: UInt8.self))
    byte += 1
  }
  return difference == 0
}
