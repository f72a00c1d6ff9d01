extension UnsafeMutablePointer where Pointee == Context {
  /// Memory of the boundary's own, for what it keeps: freed with `release`.
  public func memory<T>(_ type: T.Type, count: Int) throws(Fault) -> UnsafeMutablePointer<T> {
    try pointee.allocator.allocate(type, count: count)
  }

  public func release<T>(_ memory: UnsafeMutablePointer<T>?) { pointee.allocator.deallocate(memory) }
}
