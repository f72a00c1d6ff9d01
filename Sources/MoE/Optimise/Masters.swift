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
        if moei_is_same(rounded, own, Int64(bytes(some))) != 0 { continue }
        for i in 0..<some where moei_is_same(rounded + bytes(i), own + bytes(i), Int64(unit)) == 0 {
          toFloats(data, first + start + i, 1, master + start + i, kernels)
        }
      }
    }
  }
}
