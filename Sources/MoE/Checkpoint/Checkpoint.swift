import CShims

/// A safetensors or GGUF file, or several that an index file or a GGUF header holds together; read-only. Mapped for those who want a tensor's memory;
/// what is copied is read with pread.
public struct Checkpoint {
  fileprivate let context: ContextPointer
  fileprivate let files: UnsafeMutablePointer<TensorFile>
  let fileCount: Int
  /// [count], sorted by name.
  private var tensors: UnsafePointer<StoredTensor>
  public private(set) var count: Int
  /// As the files have them, where quantised weights stand in place of the tensors that hold them together.
  private let ownTensors: UnsafePointer<StoredTensor>
  private let ownCount: Int
  fileprivate var quantised: QuantisedTensors?

  fileprivate init(
    _ context: ContextPointer, files: UnsafeMutablePointer<TensorFile>, fileCount: Int,
    tensors: UnsafePointer<StoredTensor>, count: Int
  ) {
    self.context = context
    self.files = files
    self.fileCount = fileCount
    self.tensors = tensors
    self.count = count
    (ownTensors, ownCount) = (tensors, count)
  }

  public subscript(index: Int) -> StoredTensor { tensors[index] }

  public func find(_ name: UnsafePointer<CChar>) -> Int? { MoE.find(name, in: tensors, count: count) }

  /// Whether a file's tensor is one of the checkpoint's, by itself or with others.
  func lists(_ name: UnsafePointer<CChar>) -> Bool { MoE.find(name, in: ownTensors, count: ownCount) != nil }

  func tensor(_ name: UnsafePointer<CChar>) -> StoredTensor? { find(name).map { tensors[$0] } }

  func input(_ file: Int32) -> InputFile { files[Int(file)].input }

  /// Where a tensor's bytes are in memory, if its file is still what it was.
  public func data(_ tensor: StoredTensor) throws(Fault) -> UnsafeRawPointer {
    try files[Int(tensor.file)].data(tensor)
  }

  func requireUnchanged() throws(Fault) {
    for file in 0..<fileCount { try files[file].input.requireUnchanged() }
  }

  /// What a file holds, whether an index names it or not: sorted by name.
  func tensors(ofFile file: Int) -> UnsafeBufferPointer<StoredTensor> {
    UnsafeBufferPointer(start: files[file].tensors, count: files[file].count)
  }

  var all: UnsafeBufferPointer<StoredTensor> { UnsafeBufferPointer(start: tensors, count: count) }

  /// Whether it is a GGUF file, or several.
  var isGGUF: Bool { fileCount > 0 && files[0].isGGUF }

  /// From now on tensors that hold the weights of one linear map together are one.
  fileprivate mutating func joinQuantised(_ hints: QuantisationHints) throws(Fault) {
    guard let found = try QuantisedTensors(self, hints, context.pointee.allocator) else { return }
    (quantised, tensors, count) = (found, UnsafePointer(found.tensors), found.count)
  }
}

public typealias CheckpointPointer = UnsafeMutablePointer<Checkpoint>

extension UnsafeMutablePointer where Pointee == Checkpoint {
  /// `path`: an index file where it ends in ".json", a GGUF file, the first of several too, or a safetensors file. `isMapped`: whether tensors are wanted in memory.
  public static func open(
    _ path: UnsafePointer<CChar>, in context: ContextPointer, isMapped: Bool = true
  ) throws(Fault) -> CheckpointPointer {
    if let split = try GGUFSplit(path, context.pointee.allocator) {
      defer { split.free(context.pointee.allocator) }
      let checkpoint = try openSplit(split, in: context, isMapped: isMapped)
      context.retain()
      return checkpoint
    }
    let length = textLength(path)
    let isIndex = length >= 5 && compareText(path + length - 5, cText(".json")) == 0
    let checkpoint =
      isIndex
      ? try openIndex(try InputFile(path: path), path, in: context, isMapped: isMapped)
      : try openFile(path, in: context, isMapped: isMapped)
    context.retain()
    return checkpoint
  }

  /// Whether an index that is open for writing, and will be called `path`, and its files are whole.
  static func checkIndex(
    _ descriptor: Int32, _ path: UnsafePointer<CChar>, in context: ContextPointer
  ) throws(Fault) {
    let index = try InputFile(descriptor, path).duplicate()
    let checkpoint = try openIndex(index, path, in: context, isMapped: false)
    context.retain()
    checkpoint.free()
  }

  /// What `hints` belong to: weights that are quantised stand as one tensor from now on.
  func joinQuantised(_ hints: QuantisationHints) throws(Fault) { try pointee.joinQuantised(hints) }

  public func free() {
    let context = pointee.context
    if let quantised = pointee.quantised { context.pointee.allocator.deallocate(quantised.tensors) }
    for i in 0..<pointee.fileCount { pointee.files[i].close(allocator: context.pointee.allocator) }
    context.pointee.allocator.deallocate(self)
    context.release()
  }

  private static func openFile(
    _ path: UnsafePointer<CChar>, in context: ContextPointer, isMapped: Bool
  ) throws(Fault) -> CheckpointPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make {
      CheckpointParts(&$0, files: 1, tensors: 0, folder: 0, longestName: 0)
    }
    do throws(Fault) {
      parts.files.initialize(to: try TensorFile(path: path, allocator: allocator, isMapped: isMapped))
    } catch {
      allocator.deallocate(parts.checkpoint)
      throw error
    }
    let file = parts.files.pointee
    parts.checkpoint.initialize(
      to: Checkpoint(context, files: parts.files, fileCount: 1, tensors: file.tensors, count: file.count))
    return parts.checkpoint
  }

  /// Closes `input`.
  private static func openIndex(
    _ input: InputFile, _ path: UnsafePointer<CChar>, in context: ContextPointer, isMapped: Bool
  ) throws(Fault) -> CheckpointPointer {
    let allocator = context.pointee.allocator
    let index = try IndexFile(input, path, allocator)
    defer { index.free(allocator) }
    var (entries, longest) = (0, 0)
    try index.entries { (tensor, file) throws(Fault) in
      entries += 1
      longest = max(longest, tensor.count, file.count)
    }
    let parts = try allocator.make {
      CheckpointParts(&$0, files: entries, tensors: entries, folder: textLength(path), longestName: longest)
    }
    var shards = Shards(parts, path: path, allocator: allocator, isMapped: isMapped)
    do throws(Fault) {
      try index.entries { (tensor, file) throws(Fault) in try shards.add(tensor, in: file) }
      try shards.sort()
    } catch {
      shards.close()
      allocator.deallocate(parts.checkpoint)
      throw error
    }
    parts.checkpoint.initialize(
      to: Checkpoint(
        context, files: parts.files, fileCount: shards.fileCount, tensors: parts.tensors, count: shards.count))
    return parts.checkpoint
  }
}

extension UnsafeMutablePointer where Pointee == Checkpoint {
  /// Of files that are open, [count]; the caller closes them after an error. `path` is for messages.
  static func joined(
    _ files: UnsafeMutablePointer<TensorFile>, _ count: Int, _ tensors: Int, _ path: UnsafePointer<CChar>,
    in context: ContextPointer
  ) throws(Fault) -> CheckpointPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make {
      CheckpointParts(&$0, files: count, tensors: tensors, folder: 0, longestName: 0)
    }
    var next = parts.tensors
    for file in 0..<count {
      (parts.files + file).initialize(to: files[file])
      for index in 0..<files[file].count {
        next.initialize(to: files[file].tensors[index])
        next.pointee.file = Int32(truncatingIfNeeded: file)
        next += 1
      }
    }
    do throws(Fault) {
      if tensors == 0 { throw .invalid("GGUF files without tensors: \(path)") }
      try TensorTable(parts.tensors, tensors).sortByName(path)
    } catch {
      allocator.deallocate(parts.checkpoint)
      throw error
    }
    parts.checkpoint.initialize(
      to: Checkpoint(context, files: parts.files, fileCount: count, tensors: parts.tensors, count: tensors))
    return parts.checkpoint
  }
}

/// {"metadata": {...}, "weight_map": {"name of a tensor": "name of its file", ...}}, as transformers writes it.
struct IndexFile {
  private let text: UnsafeMutablePointer<UInt8>
  private let count: Int
  private let path: UnsafePointer<CChar>

  /// Reads it into memory, and closes `input`.
  init(_ input: InputFile, _ path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    defer { input.close() }
    self.path = path
    count = input.count
    if let fault = FileKind.fault(input, path, wantsIndex: true) { throw fault }
    if count > Safetensors.largestHeader {
      throw .invalid("index of \(count) bytes, more than \(Safetensors.largestHeader): \(path)")
    }
    text = try input.text(0, count, allocator)
  }

  func free(_ allocator: Allocator) { allocator.deallocate(text) }

  /// The index that is in a place; nil where there is none, or something that is not one.
  static func ofSet(_ path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) -> IndexFile? {
    guard let input = try InputFile.ifThere(path) else { return nil }
    do throws(Fault) {
      return try IndexFile(input, path, allocator)
    } catch {
      if error.kind == .invalidArgument { return nil }
      throw error
    }
  }

  func entries(_ body: (JSONText, JSONText) throws(Fault) -> Void) throws(Fault) {
    var json = JSONReader(UnsafePointer(text), count: count, path: path)
    var maps = 0
    try json.members { (json, key) throws(Fault) in
      guard key == "weight_map" else { return try json.skip() }
      maps += 1
      try json.members { (json, tensor) throws(Fault) in
        let file = try json.text()
        try body(tensor, file)
      }
    }
    try json.end()
    if maps != 1 { throw json.fault("one weight_map is expected, as model.safetensors.index.json has it") }
  }
}

/// The files of an index, opened as its entries name them.
private struct Shards {
  private let parts: CheckpointParts
  private let path: UnsafePointer<CChar>
  private let folder: Int  // how much of the path is its folder, with the slash
  private let allocator: Allocator
  private let isMapped: Bool
  private(set) var fileCount = 0
  private(set) var count = 0
  private var latest = 0

  init(_ parts: CheckpointParts, path: UnsafePointer<CChar>, allocator: Allocator, isMapped: Bool) {
    self.isMapped = isMapped
    self.parts = parts
    self.path = path
    self.allocator = allocator
    var folder = 0
    for i in 0..<textLength(path) where path[i] == CChar(UInt8(ascii: "/")) { folder = i + 1 }
    self.folder = folder
  }

  mutating func add(_ name: JSONText, in file: JSONText) throws(Fault) {
    let number = try number(of: file)
    _ = name.decode(to: parts.text)
    let shard = parts.files[number]
    guard let place = find(parts.text, in: shard.tensors, count: shard.count) else {
      throw .invalid("\(parts.text): the index names it, but its file does not have it: \(path)")
    }
    (parts.tensors + count).initialize(to: shard.tensors[place])
    parts.tensors[count].file = Int32(truncatingIfNeeded: number)
    count += 1
  }

  private mutating func number(of file: JSONText) throws(Fault) -> Int {
    // Tensors of one file mostly stand together.
    if latest < fileCount && parts.fileNames[latest] == file { return latest }
    for i in 0..<fileCount where parts.fileNames[i] == file {
      latest = i
      return i
    }
    parts.path.update(from: path, count: folder)
    let name = parts.path + folder
    _ = file.decode(to: name)
    // A name of the same folder: an index from elsewhere must not reach other places.
    var isName = name[0] != 0 && compareText(name, cText(".")) != 0 && compareText(name, cText("..")) != 0
    for i in 0..<textLength(name) where name[i] == CChar(UInt8(ascii: "/")) { isName = false }
    if !isName { throw .invalid("weight_map: \(name) is not a file of the index's folder: \(path)") }
    (parts.files + fileCount).initialize(
      to: try TensorFile(
        path: parts.path, action: "opening a file that the index names", allocator: allocator, isMapped: isMapped))
    (parts.fileNames + fileCount).initialize(to: file)
    latest = fileCount
    fileCount += 1
    return latest
  }

  func sort() throws(Fault) {
    let tensors = parts.tensors
    heapSort(
      count, isLess: { compareText(tensors[$0].name, tensors[$1].name) < 0 },
      exchange: { swapAt(tensors, $0, $1) })
    for i in 1..<max(count, 1) where compareText(tensors[i - 1].name, tensors[i].name) == 0 {
      throw .invalid("\(tensors[i].name): weight_map names it twice: \(path)")
    }
  }

  func close() {
    for i in 0..<fileCount { parts.files[i].close(allocator: allocator) }
  }
}

/// One block of memory: the checkpoint, then what it points at.
private struct CheckpointParts {
  let checkpoint: CheckpointPointer
  let files: UnsafeMutablePointer<TensorFile>
  let fileNames: UnsafeMutablePointer<JSONText>  // while an index is read
  let tensors: UnsafeMutablePointer<StoredTensor>
  let text: UnsafeMutablePointer<CChar>  // a tensor's name, while an index is read
  let path: UnsafeMutablePointer<CChar>  // a file's path, while an index is read

  init(_ arena: inout Arena, files: Int, tensors: Int, folder: Int, longestName: Int) {
    checkpoint = arena.take(Checkpoint.self, 1)
    self.files = arena.take(TensorFile.self, files)
    fileNames = arena.take(JSONText.self, files)
    self.tensors = arena.take(StoredTensor.self, tensors)
    text = arena.take(CChar.self, longestName + 1)
    path = arena.take(CChar.self, folder + longestName + 1)
  }
}
