import CShims

// A checkpoint in several files, as transformers has it: NAME-00001-of-00003.safetensors and so on, and an index
// NAME.safetensors.index.json that says which tensor is where. Shards get names that no file has, each is written whole,
// and the index comes last: until its rename the set that was there is whole, from then on the new one is. Only then go
// the shards that the old index named.

/// Writes `path`, the index, and its shards. No shard has more than `mostBytes` bytes of tensors, unless it is of one.
func writeShards<T: OutgoingTensors>(
  _ tensors: T, to path: UnsafePointer<CChar>, mostBytes: Int, in context: ContextPointer
) throws(Fault) {
  var progress = Progress(nil, nil)
  try writeShards(tensors, to: path, mostBytes: mostBytes, in: context, progress: &progress)
}

func writeShards<T: OutgoingTensors>(
  _ tensors: T, to path: UnsafePointer<CChar>, mostBytes: Int, in context: ContextPointer, progress: inout Progress
) throws(Fault) {
  var split = ShardSplit(mostBytes: mostBytes)
  var (count, total) = (0, 0)
  try tensors.visit { (tensor) throws(Fault) in
    count = split.place(tensor.bytes) + 1
    let (sum, overflow) = total.addingReportingOverflow(tensor.bytes)
    if overflow { throw .invalid("\(tensor.name): the files would have more than 2^63 bytes") }
    total = sum
  }
  let allocator = context.pointee.allocator
  let names = try ShardNames(index: path, count: count, mostBytes: mostBytes, allocator)
  defer { names.free() }
  let before = try IndexFile.ofSet(path, allocator)
  defer { before?.free(allocator) }
  var (written, isInPlace) = (0, false)
  do throws(Fault) {
    for shard in 0..<count {
      written += 1
      try writeSafetensors(
        OneShard(tensors: tensors, mostBytes: mostBytes, shard: shard), to: names.path(of: shard), like: path,
        in: context, progress: &progress)
    }
    try writeIndex(
      tensors, ShardSplit(mostBytes: mostBytes), total: total, names, to: path, in: context, isInPlace: &isInPlace)
  } catch {
    if !isInPlace { for shard in 0..<written { moei_file_remove(names.path(of: shard)) } }
    throw error
  }
  if let before { names.removeShards(of: before) }
}

/// On the ranks that do not write: as `writeShards` on rank 0.
func sendShards<T: OutgoingTensors>(_ tensors: T, mostBytes: Int, in context: ContextPointer) throws(Fault) {
  var split = ShardSplit(mostBytes: mostBytes)
  var count = 0
  try tensors.visit { (tensor) throws(Fault) in count = split.place(tensor.bytes) + 1 }
  for shard in 0..<count {
    try sendTensors(OneShard(tensors: tensors, mostBytes: mostBytes, shard: shard), in: context)
  }
}

/// Removes an index and its shards, where there are some, since a file of all tensors has taken their place.
func removeShards(of path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
  guard let before = try IndexFile.ofSet(path, allocator) else { return }
  defer { before.free(allocator) }
  let names = try ShardNames(index: path, count: 1, mostBytes: 0, allocator)
  defer { names.free() }
  moei_file_remove(path)
  names.removeShards(of: before)
}

/// Which shard a tensor is in: they follow one another, and the next begins where one would be too large.
private struct ShardSplit {
  let mostBytes: Int
  private var shard = 0
  private var bytes = 0

  init(mostBytes: Int) { self.mostBytes = mostBytes }

  mutating func place(_ tensorBytes: Int) -> Int {
    if bytes > 0 && tensorBytes > mostBytes - bytes {
      shard += 1
      bytes = 0
    }
    // One that is too large by itself leaves no room for another.
    bytes = min(mostBytes, bytes + min(mostBytes, tensorBytes))
    return shard
  }
}

private struct OneShard<T: OutgoingTensors>: OutgoingTensors {
  let tensors: T
  let mostBytes: Int
  let shard: Int

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    var split = ShardSplit(mostBytes: mostBytes)
    try tensors.visit { (tensor) throws(Fault) in
      if split.place(tensor.bytes) == shard { try body(tensor) }
    }
  }
}

/// {"metadata": {"total_size": bytes of all tensors}, "weight_map": {tensor: file}}. `isInPlace`: though something failed.
private func writeIndex<T: OutgoingTensors>(
  _ tensors: T, _ split: ShardSplit, total: Int, _ names: ShardNames, to path: UnsafePointer<CChar>,
  in context: ContextPointer, isInPlace: inout Bool
) throws(Fault) {
  var output = try FileOutput(path, like: nil, allocator: context.pointee.allocator)
  defer {
    isInPlace = output.isInPlace
    output.close()
  }
  try output.write("{\"metadata\":{\"total_size\":")
  try output.write(total)
  try output.write("},\"weight_map\":{")
  var split = split
  var isFirst = true
  try tensors.visit { (tensor) throws(Fault) in
    try output.write(isFirst ? "\n" : ",\n")
    isFirst = false
    try writeText(tensor.name, to: &output)
    try output.write(":")
    try writeText(names.name(of: split.place(tensor.bytes)), to: &output)
  }
  try output.write("\n}}\n")
  // Opening the whole finds a name that is in two shards.
  try output.commit { (file) throws(Fault) in try CheckpointPointer.checkIndex(file, path, in: context) }
}

/// FOLDER/NAME-00001-of-00003.safetensors and so on; NAME.1-00001-of- ..., NAME.2- ... where one of these is there already.
private struct ShardNames {
  private let index: UnsafePointer<CChar>
  private let folder: Int  // how much of the path is its folder, with the slash
  private let stem: Int  // and its name
  private let count: Int
  private var generation = 0
  private let text: UnsafeMutablePointer<CChar>  // [2,MOEI_PATH_SIZE] a path, and one of the index before
  private let allocator: Allocator

  private static var most: Int { 99_999 }
  private static var ending: StaticString { ".safetensors.index.json" }
  private static var room: Int { Int(MOEI_PATH_SIZE) }

  init(index: UnsafePointer<CChar>, count: Int, mostBytes: Int, _ allocator: Allocator) throws(Fault) {
    let length = textLength(index)
    var folder = 0
    for i in 0..<length where index[i] == CChar(UInt8(ascii: "/")) { folder = i + 1 }
    stem = length - Self.ending.utf8CodeUnitCount
    if stem <= folder || compareText(index + stem, cText(Self.ending)) != 0 {
      throw .invalid("path: the name of an index is NAME\(cText(Self.ending)): \(index)")
    }
    // What follows the name is shorter than the index's ending and this.
    if length > Self.room - 64 { throw .invalid("path: \(length) bytes, more than \(Self.room - 64)") }
    if count > Self.most {
      throw .invalid("max_shard_size = \(mostBytes) makes \(count) files, more than \(Self.most)")
    }
    (self.index, self.folder, self.count, self.allocator) = (index, folder, count, allocator)
    text = try allocator.allocate(CChar.self, count: 2 * Self.room)
    while isTaken() { generation += 1 }
  }

  func free() { allocator.deallocate(text) }

  private func isTaken() -> Bool {
    for shard in 0..<count where moei_file_exists(path(of: shard)) != 0 { return true }
    return false
  }

  /// Until the next one.
  func path(of shard: Int) -> UnsafePointer<CChar> {
    text.update(from: index, count: stem)
    var rest = TextBuffer(text + stem, capacity: Self.room - stem)
    if generation > 0 {
      rest.append(".")
      rest.append(generation)
    }
    rest.append("-")
    rest.appendFiveDigits(shard + 1)
    rest.append("-of-")
    rest.appendFiveDigits(count)
    rest.append(".safetensors")
    return UnsafePointer(text)
  }

  func name(of shard: Int) -> UnsafePointer<CChar> { path(of: shard) + folder }

  // MARK: the set before

  /// Removes the files that an index names, as far as they are shards of this name, and not of this set.
  func removeShards(of before: IndexFile) {
    let (own, other) = (path(of: 0), text + Self.room)
    other.update(from: index, count: folder)
    // What cannot be read is left where it is.
    try? before.entries { (_, file) throws(Fault) in
      if file.count >= Self.room - folder { return }
      _ = file.decode(to: other + folder)
      if isShard(other + folder) && !isOfOneSet(own, other) { moei_file_remove(other) }
    }
  }

  private func isShard(_ name: UnsafePointer<CChar>) -> Bool {
    var place = 0
    func digits() -> Int {
      let first = place
      while name[place] >= CChar(UInt8(ascii: "0")) && name[place] <= CChar(UInt8(ascii: "9")) { place += 1 }
      return place - first
    }
    func passes(_ wanted: StaticString) -> Bool {
      for i in 0..<wanted.utf8CodeUnitCount {
        if name[place] != CChar(bitPattern: wanted.utf8Start[i]) { return false }
        place += 1
      }
      return true
    }
    for i in folder..<stem {
      if name[place] != index[i] { return false }
      place += 1
    }
    if name[place] == CChar(UInt8(ascii: ".")) {
      place += 1
      if digits() == 0 { return false }
    }
    return passes("-") && digits() == 5 && passes("-of-") && digits() == 5 && passes(".safetensors") && name[place] == 0
  }

  /// Whether two paths of shards differ in the shard's number alone.
  private func isOfOneSet(_ a: UnsafePointer<CChar>, _ b: UnsafePointer<CChar>) -> Bool {
    let length = textLength(a)
    if textLength(b) != length { return false }
    let number = length - 26..<length - 21  // of 00001-of-00003.safetensors
    for i in 0..<length where a[i] != b[i] && !number.contains(i) { return false }
    return true
  }
}

extension TextBuffer {
  fileprivate mutating func appendFiveDigits(_ number: Int) {
    var least = 10_000
    while number < least && least > 1 {
      append("0")
      least /= 10
    }
    append(number)
  }
}
