import CShims

/// A file that is open for reading, and what it was like then. It is read with pread: a disk's error, or a file that was cut
/// short or written to meanwhile, is then a status, where through a mapping it would be a fault of the process.
struct InputFile {
  let descriptor: Int32
  private let stamp: moei_stamp

  var count: Int { Int(stamp.size) }

  init(path: UnsafePointer<CChar>, action: StaticString = "opening a file") throws(Fault) {
    var (file, stamp): (Int32, moei_stamp) = (-1, moei_stamp())
    let error = moei_file_open(path, &file, &stamp)
    if error != 0 { throw .io(action, path, error) }
    (descriptor, self.stamp) = (file, stamp)
  }

  /// nil where there is none.
  static func ifThere(_ path: UnsafePointer<CChar>) throws(Fault) -> InputFile? {
    var (file, stamp): (Int32, moei_stamp) = (-1, moei_stamp())
    let error = moei_file_open(path, &file, &stamp)
    if error == Int32(MOEI_FILE_ABSENT) { return nil }
    if error != 0 { throw .io("opening a file", path, error) }
    return InputFile(file, stamp)
  }

  /// A file that is open already, as it is now; the descriptor stays its opener's.
  init(_ descriptor: Int32, _ path: UnsafePointer<CChar>) throws(Fault) {
    var stamp = moei_stamp()
    let error = moei_file_stamp(descriptor, &stamp)
    if error != 0 { throw .io("reading a file", path, error) }
    (self.descriptor, self.stamp) = (descriptor, stamp)
  }

  private init(_ descriptor: Int32, _ stamp: moei_stamp) { (self.descriptor, self.stamp) = (descriptor, stamp) }

  /// Another descriptor of the file, to be closed by itself.
  func duplicate() throws(Fault) -> InputFile {
    var copy: Int32 = -1
    let error = moei_file_duplicate(descriptor, &copy)
    if error != 0 { throw .io("opening a file", descriptor, error) }
    return InputFile(copy, stamp)
  }

  func close() { moei_file_close(descriptor) }

  /// Whether the file is still the one that was opened, as far as its size and the time of its last change tell: 0 or an error.
  func check() -> Int32 { moei_file_check(descriptor, stamp) }

  func requireUnchanged() throws(Fault) {
    let error = check()
    if error != 0 { throw .io("reading a file", descriptor, error) }
  }

  /// 0 or an error, also where the file has changed.
  func read(_ offset: Int, _ bytes: Int, to memory: UnsafeMutableRawPointer) -> Int32 {
    let error = moei_file_read(descriptor, memory, Int64(bytes), Int64(offset))
    return error != 0 ? error : check()
  }

  func map() throws(Fault) -> UnsafeRawPointer? {
    var memory: UnsafeRawPointer?
    let error = moei_file_map(descriptor, stamp.size, &memory)
    if error != 0 { throw .io("mapping a file", descriptor, error) }
    return memory
  }

  func unmap(_ memory: UnsafeRawPointer?) {
    if let memory { moei_file_unmap(memory, stamp.size) }
  }

  /// `bytes` bytes from `offset` on, in memory of their own: who writes to the file meanwhile does not change them.
  func text(_ offset: Int, _ bytes: Int, _ allocator: Allocator) throws(Fault) -> UnsafeMutablePointer<UInt8> {
    let memory = try allocator.allocate(UInt8.self, count: bytes)
    let error = read(offset, bytes, to: memory)
    if error == 0 { return memory }
    allocator.deallocate(memory)
    throw .io("reading a file", descriptor, error)
  }
}

extension Fault {
  /// What the system said about an open file.
  static func io(_ action: StaticString, _ file: Int32, _ error: Int32) -> Fault {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 512) { path in
      moei_file_name(file, path.baseAddress!, 512)
      return .io(action, UnsafePointer(path.baseAddress!), error)
    }
  }

  /// The fault of a call that had begun to overwrite what a file was to be read into.
  func whileOverwriting(_ what: StaticString) -> Fault {
    reworded { "\(what) partly old and partly the file's, load again: \($0)" }
  }
}
