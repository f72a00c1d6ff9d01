/// A set of GGUF files, NAME-00001-of-0000N.gguf and so on, by its first one.
struct GGUFSplit {
  let count: Int
  private let memory: UnsafeMutablePointer<CChar>  // the path
  private let numberAt: Int

  /// nil where a path is none of such a set.
  init?(_ path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    guard let input = try? InputFile(path: path) else { return nil }
    defer { input.close() }
    if !GGUFHeader.begins(input) { return nil }
    let header = try GGUFHeader(input, path: path, allocator)
    defer { header.free(allocator) }
    guard let split = try header.split() else { return nil }
    if split.number != 0 {
      throw .invalid(
        "file \(split.number + 1) of \(split.count) of a GGUF model: name the first one, whose name ends in -00001-of-...: \(path)"
      )
    }
    count = split.count
    let length = textLength(path)
    // "00001-of-0000N.gguf"
    numberAt = length - 19
    let isNamed = withText {
      Self.append(5, 1, to: &$0)
      $0.append("-of-")
      Self.append(5, split.count, to: &$0)
      $0.append(".gguf")
    } body: {
      length >= 19 && compareText(path + (length - 19), $0) == 0
    }
    if !isNamed {
      throw .invalid(
        "the first of \(split.count) GGUF files, but its name does not end as \"-00001-of-0000N.gguf\": give the files their own names: \(path)"
      )
    }
    memory = try allocator.allocate(CChar.self, count: length + 1)
    memory.update(from: path, count: length + 1)
  }

  func free(_ allocator: Allocator) { allocator.deallocate(memory) }

  /// Of file `number`, from 0, until the next one.
  func path(_ number: Int) -> UnsafePointer<CChar> {
    var rest = number + 1
    for i in 0..<5 {
      memory[numberAt + 4 - i] = CChar(UInt8(ascii: "0")) + CChar(rest % 10)
      rest /= 10
    }
    return UnsafePointer(memory)
  }

  private static func append(_ digits: Int, _ number: Int, to text: inout TextBuffer) {
    var (place, rest) = (1, number)
    for _ in 1..<digits { place *= 10 }
    for _ in 0..<digits {
      text.append(min(9, rest / place))
      rest %= place
      place /= 10
    }
  }

  /// Whether file `number` is that of its set.
  func require(_ number: Int, _ allocator: Allocator) throws(Fault) {
    let path = path(number)
    let input = try InputFile(path: path)
    defer { input.close() }
    if !GGUFHeader.begins(input) { throw .invalid("no GGUF file, but number \(number + 1) of a set: \(path)") }
    let header = try GGUFHeader(input, path: path, allocator)
    defer { header.free(allocator) }
    let split = try header.split()
    if split?.number != number || split?.count != count {
      throw .invalid("its split.no and split.count are not those of file \(number + 1) of \(count): \(path)")
    }
  }
}

extension UnsafeMutablePointer where Pointee == Checkpoint {
  /// All files of a set.
  static func openSplit(
    _ split: GGUFSplit, in context: ContextPointer, isMapped: Bool
  ) throws(Fault) -> CheckpointPointer {
    let allocator = context.pointee.allocator
    let files = try allocator.allocate(TensorFile.self, count: split.count)
    defer { allocator.deallocate(files) }
    var (opened, tensors) = (0, 0)
    do throws(Fault) {
      while opened < split.count {
        if opened > 0 { try split.require(opened, allocator) }
        let path = split.path(opened)
        (files + opened).initialize(to: try TensorFile(path: path, allocator: allocator, isMapped: isMapped))
        tensors += files[opened].count
        opened += 1
      }
      return try joined(files, split.count, tensors, split.path(0), in: context)
    } catch {
      for file in 0..<opened { files[file].close(allocator: allocator) }
      throw error
    }
  }
}
