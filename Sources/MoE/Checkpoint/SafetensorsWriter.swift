/// A tensor on its way into a file.
public struct OutgoingTensor {
  enum Contents {
    case memory(UnsafeRawPointer)
    case matrices(OutgoingMatrices)
    case sequences(SequenceRows)
    case rows(OutgoingRows)
    /// Of several ranks; rank 0 writes it.
    case spread(SpreadTensor)
    case owned(OwnedMatrices)
    /// So many bytes, and 0 up to the tensor's own.
    case panels(UnsafeRawPointer, Int)
  }

  let name: UnsafePointer<CChar>
  let type: StoredType
  /// As the file will have it.
  let typeName: UnsafePointer<CChar>
  let shape: StoredShape
  let bytes: Int
  let contents: Contents

  /// The size of what is in memory has seen to it that its bytes fit.
  init(name: UnsafePointer<CChar>, type: StoredType, shape: StoredShape, contents: Contents) {
    (self.name, self.type, self.shape, self.contents) = (name, type, shape, contents)
    typeName = cText(type.name)
    bytes = shape.bytes(type)!
  }

  /// Packed weights, filled up to whole cache lines: what comes behind them is aligned as they are.
  init(name: UnsafePointer<CChar>, panels: UnsafeRawPointer, bytes count: Int) {
    self.init(
      name: name, type: .u8, shape: StoredShape(Self.filledUp(count)), contents: .panels(panels, count))
  }

  static func filledUp(_ bytes: Int) -> Int { (bytes + line - 1) / line * line }

  fileprivate static var line: Int { 64 }

  /// In the file.
  fileprivate var alignment: Int {
    if case .panels = contents { return Self.line }
    return type.alignment
  }

  /// A caller's, which the boundary has checked.
  public init(
    name: UnsafePointer<CChar>, type: StoredType, typeName: UnsafePointer<CChar>?, shape: StoredShape, bytes: Int,
    data: UnsafeRawPointer
  ) {
    (self.name, self.type, self.shape, self.bytes) = (name, type, shape, bytes)
    self.typeName = typeName ?? cText(type.name)
    contents = .memory(data)
  }
}

/// What is written: hands over every tensor, the same ones in the same order each time.
protocol OutgoingTensors {
  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault)
}

/// Writes a safetensors file, whole or not at all. Larger elements come first, so that all are aligned. `like`: a file whose
/// mode and owner a new one gets.
func writeSafetensors<T: OutgoingTensors>(
  _ tensors: T, to path: UnsafePointer<CChar>, like: UnsafePointer<CChar>? = nil, in context: ContextPointer
) throws(Fault) {
  var progress = Progress(nil, nil)
  try writeSafetensors(tensors, to: path, like: like, in: context, progress: &progress)
}

func writeSafetensors<T: OutgoingTensors>(
  _ tensors: T, to path: UnsafePointer<CChar>, like: UnsafePointer<CChar>? = nil, in context: ContextPointer,
  progress: inout Progress
) throws(Fault) {
  let allocator = context.pointee.allocator
  var measure = FileOutput(counting: allocator)
  let dataBytes = try writeHeader(tensors, to: &measure)
  if measure.count > Safetensors.largestHeader - OutgoingTensor.line {
    throw .invalid("the header would have more than \(Safetensors.largestHeader) bytes: \(path)")
  }
  // Tensors begin at a cache line: packed weights are mapped, and read as fast as those in memory.
  let padding = -(measure.count + 8) & (OutgoingTensor.line - 1)
  if dataBytes > Int.max - 8 - measure.count - padding {
    throw .invalid("the file would have more than 2^63 bytes: \(path)")
  }
  var output = try FileOutput(path, like: like, allocator: allocator)
  defer { output.close() }
  var length = UInt64(measure.count + padding).littleEndian
  try output.write(&length, count: 8)
  _ = try writeHeader(tensors, to: &output)
  for _ in 0..<padding { try output.write(UInt8(ascii: " ")) }
  try visitLargestFirst(tensors) { (tensor) throws(Fault) in
    switch tensor.contents {
    case .memory(let memory): try output.write(memory, count: tensor.bytes)
    case .matrices(let matrices): try matrices.write(tensor.type, to: &output)
    case .sequences(let rows):
      try rows.forEach { (start, bytes) throws(Fault) in try output.write(start, count: bytes) }
    case .rows(let rows): try rows.write(tensor.type, to: &output)
    case .spread(let parts): try parts.write(to: &output)
    case .owned(let matrices): try matrices.write(tensor.type, to: &output)
    case .panels(let panels, let count):
      try output.write(panels, count: count)
      for _ in count..<tensor.bytes { try output.write(0 as UInt8) }
    }
    try progress.add(tensor.bytes, in: context)
  }
  // Reading the header finds names that are there twice, or are no text.
  try output.commit { (file) throws(Fault) in
    try Safetensors.check(file, path: path, allocator: allocator)
  }
}

func visitLargestFirst<T: OutgoingTensors>(
  _ tensors: T, _ body: (OutgoingTensor) throws(Fault) -> Void
) throws(Fault) {
  var size = OutgoingTensor.line
  while size > 0 {
    try tensors.visit { (tensor) throws(Fault) in
      if tensor.alignment == size { try body(tensor) }
    }
    size /= 2
  }
}

/// Returns the bytes of all tensors.
private func writeHeader<T: OutgoingTensors>(_ tensors: T, to output: inout FileOutput) throws(Fault) -> Int {
  // transformers refuses files that do not say which framework they are for; this is its usual one.
  try output.write("{\"__metadata__\":{\"format\":\"pt\"}")
  var begin = 0
  try visitLargestFirst(tensors) { (tensor) throws(Fault) in
    try output.write(",")
    try writeText(tensor.name, to: &output)
    try output.write(":{\"dtype\":")
    try writeText(tensor.typeName, to: &output)
    try output.write(",\"shape\":[")
    for dimension in 0..<tensor.shape.rank {
      if dimension > 0 { try output.write(",") }
      try output.write(tensor.shape[dimension])
    }
    let (end, overflow) = begin.addingReportingOverflow(tensor.bytes)
    if overflow { throw .invalid("\(tensor.name): the file would have more than 2^63 bytes") }
    try output.write("],\"data_offsets\":[")
    try output.write(begin)
    try output.write(",")
    try output.write(end)
    try output.write("]}")
    begin = end
  }
  try output.write("}")
  return begin
}

func writeText(_ text: UnsafePointer<CChar>, to output: inout FileOutput) throws(Fault) {
  try output.write("\"")
  for i in 0..<textLength(text) {
    let byte = UInt8(bitPattern: text[i])
    if byte < 0x20 {
      try output.write(byte < 0x10 ? "\\u000" : "\\u001")
      let digit = byte & 15
      try output.write(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
    } else {
      if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") { try output.write("\\") }
      try output.write(byte)
    }
  }
  try output.write("\"")
}
