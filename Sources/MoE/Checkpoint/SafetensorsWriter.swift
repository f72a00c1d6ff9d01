/// A tensor on its way into a file.
struct OutgoingTensor {
  enum Contents {
    case memory(UnsafeRawPointer)
    case matrices(OutgoingMatrices)
  }

  let name: UnsafePointer<CChar>
  let type: StoredType
  let shape: StoredShape
  let contents: Contents

  /// The boundary, or the size of what is in memory, has seen to it that this fits.
  var bytes: Int { shape.bytes(type.size)! }
}

/// What is written: hands over every tensor, the same ones in the same order each time.
protocol OutgoingTensors {
  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault)
}

/// Writes a safetensors file, whole or not at all. Larger elements come first, so that all are aligned.
func writeSafetensors<T: OutgoingTensors>(
  _ tensors: T, to path: UnsafePointer<CChar>, in context: ContextPointer
) throws(Fault) {
  let allocator = context.pointee.allocator
  var measure = FileOutput(counting: allocator)
  let contents = try writeHeader(tensors, to: &measure)
  let padding = -measure.count & 7
  if measure.count + padding > SafetensorsFile.largestHeader {
    throw .invalid("the header would have more than \(SafetensorsFile.largestHeader) bytes: \(path)")
  }
  if contents > Int.max - measure.count - padding - 8 {
    throw .invalid("header and tensors together would have more than 2^63 bytes: \(path)")
  }
  var output = try FileOutput(path, allocator: allocator)
  do throws(Fault) {
    var length = UInt64(measure.count + padding).littleEndian
    try output.write(&length, count: 8)
    _ = try writeHeader(tensors, to: &output)
    for _ in 0..<padding { try output.write(UInt8(ascii: " ")) }
    try visitLargestFirst(tensors) { (tensor) throws(Fault) in
      switch tensor.contents {
      case .memory(let memory): try output.write(memory, count: tensor.bytes)
      case .matrices(let matrices): try matrices.write(tensor.type, to: &output)
      }
    }
    // Reading the header finds names that are there twice, or are no text.
    try output.commit { (temporary) throws(Fault) in
      try SafetensorsFile(path: temporary, allocator: allocator).close(allocator: allocator)
    }
  } catch {
    output.abandon()
    throw error
  }
}

private func visitLargestFirst<T: OutgoingTensors>(
  _ tensors: T, _ body: (OutgoingTensor) throws(Fault) -> Void
) throws(Fault) {
  var size = 8
  while size > 0 {
    try tensors.visit { (tensor) throws(Fault) in
      if tensor.type.size == size { try body(tensor) }
    }
    size /= 2
  }
}

/// Returns how many bytes the tensors have behind it.
private func writeHeader<T: OutgoingTensors>(_ tensors: T, to output: inout FileOutput) throws(Fault) -> Int {
  // transformers refuses files that do not say which framework they are for; this is its usual one.
  try output.write("{\"__metadata__\":{\"format\":\"pt\"}")
  var begin = 0
  try visitLargestFirst(tensors) { (tensor) throws(Fault) in
    try output.write(",")
    try writeText(tensor.name, to: &output)
    try output.write(":{\"dtype\":\"")
    try output.write(tensor.type.name)
    try output.write("\",\"shape\":[")
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
