import CShims

/// A file as memory: parameters and optimiser states that are larger than memory, in training.
public struct SharedFile {
  fileprivate let context: ContextPointer
  public let memory: UnsafeMutableRawPointer
  fileprivate let bytes: Int
  fileprivate let descriptor: Int32

  /// What was written reaches the disk.
  public func flush() throws(Fault) {
    let error = moei_file_flush(memory, Int64(bytes), descriptor)
    if error != 0 { throw .io("writing a mapped file", descriptor, error) }
  }
}

public typealias SharedFilePointer = UnsafeMutablePointer<SharedFile>

extension UnsafeMutablePointer where Pointee == SharedFile {
  /// `bytes` is at least 1.
  public static func create(
    _ path: UnsafePointer<CChar>, bytes: Int, in context: ContextPointer
  ) throws(Fault) -> SharedFilePointer {
    // The handle first: when there is no memory for it, there is no file to take back.
    let handle = try context.pointee.allocator.allocate(SharedFile.self, count: 1)
    var (size, memory, descriptor): (Int64, UnsafeMutableRawPointer?, Int32) = (Int64(bytes), nil, -1)
    let error = moei_file_share(path, &size, &memory, &descriptor)
    guard error == 0, let memory else {
      context.pointee.allocator.deallocate(handle)
      if error == Int32(MOEI_FILE_OTHER_SIZE) {
        throw .invalid("size = \(bytes), but the file has \(Int(size)) bytes: \(path)")
      }
      throw .io("mapping a file", path, error)
    }
    handle.initialize(to: SharedFile(context: context, memory: memory, bytes: bytes, descriptor: descriptor))
    context.retain()
    return handle
  }

  public func free() {
    let context = pointee.context
    moei_file_unmap(pointee.memory, Int64(pointee.bytes))
    moei_file_close(pointee.descriptor)
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
