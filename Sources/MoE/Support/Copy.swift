extension UnsafeMutablePointer where Pointee: BitwiseCopyable {
  /// In place of the standard library's, which in Embedded Swift takes element by element, each with a call.
  func update(from source: UnsafePointer<Pointee>, count: Int) {
    UnsafeMutableRawPointer(self).copyMemory(from: source, byteCount: count * MemoryLayout<Pointee>.stride)
  }
}
