import CShims

/// A file in memory, read when it is touched and not before. Who cuts it short meanwhile makes the process fault: moe.h
/// says so.
struct MappedFile {
  let bytes: UnsafePointer<UInt8>
  let count: Int
  /// For reading without the mapping.
  let descriptor: Int32

  init(path: UnsafePointer<CChar>) throws(Fault) {
    var memory: UnsafeRawPointer?
    var size: Int64 = 0
    var descriptor: Int32 = -1
    let error = moei_file_map(path, &memory, &size, &descriptor)
    if error != 0 { throw .io("opening a file", path, error) }
    count = Int(size)
    self.descriptor = descriptor
    // An empty file has no memory; any address stands for it.
    bytes = (memory ?? UnsafeRawPointer(bitPattern: 8)!).assumingMemoryBound(to: UInt8.self)
  }

  func unmap() { moei_file_unmap(bytes, Int64(count), descriptor) }
}
