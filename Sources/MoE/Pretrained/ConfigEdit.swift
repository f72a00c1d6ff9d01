/// A config.json as it was, but for the type of the weights, and for how they are quantised.
struct ConfigEdit {
  private let config: JSONTree
  private let type: ElementType
  private let isPacked: Bool

  /// `isPacked`: whether weights are in panels, see PackedOutgoing.
  init(_ config: JSONTree, type: ElementType, isPacked: Bool) {
    (self.config, self.type, self.isPacked) = (config, type, isPacked)
  }

  private struct Edit {
    var from: Int
    var to: Int
    var isType: Bool
  }

  /// As PretrainedSource reads it.
  private func writePacking(to output: inout FileOutput) throws(Fault) {
    try output.write("\n  \"quantization_config\": {\"quant_method\": \"libmoe\", \"format\": \"panels\", \"dtype\": ")
    try output.write(name)
    try output.write("},")
  }

  private var name: StaticString {
    switch type {
    case .f32: "\"float32\""
    case .bf16: "\"bfloat16\""
    case .f16: "\"float16\""
    }
  }

  func write(to path: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    var output = try FileOutput(path, like: nil, allocator: allocator)
    defer { output.close() }
    var at = 0
    if isPacked {
      at = config.root.bytes.lowerBound + 1
      try output.write(config.text, count: at)
      try writePacking(to: &output)
    }
    try forEachEdit(config.root) { (edit) throws(Fault) in
      if edit.from < at { return }
      try output.write(config.text + at, count: edit.from - at)
      if edit.isType { try output.write(name) }
      at = edit.to
    }
    try output.write(config.text + at, count: config.count - at)
    try output.commit { (_) throws(Fault) in }
  }

  /// In the order of the text.
  private func forEachEdit(_ object: JSONValue, _ body: (Edit) throws(Fault) -> Void) throws(Fault) {
    var index = 0
    try object.forEach { (value) throws(Fault) in
      index += 1
      guard let key = value.key else { return }
      if key.isAmong(cText("dtype|torch_dtype")) && value.kind == .text {
        try body(Edit(from: value.bytes.lowerBound, to: value.bytes.upperBound, isType: true))
      } else if key.isAmong(cText("quantization_config")) {
        try body(removal(of: value, in: object))
      } else if key.isAmong(cText("text_config")) && value.kind == .object {
        try forEachEdit(value, body)
      }
    }
  }

  /// Of a member with the comma that belongs to it.
  private func removal(of member: JSONValue, in object: JSONValue) -> Edit {
    var (before, next) = (Int?.none, Int?.none)
    object.forEach { value in
      if value.bytes.upperBound < member.memberBegin { before = value.bytes.upperBound }
      if next == nil && value.memberBegin > member.memberBegin { next = value.memberBegin }
    }
    if let next { return Edit(from: member.memberBegin, to: next, isType: false) }
    return Edit(from: before ?? member.memberBegin, to: member.bytes.upperBound, isType: false)
  }
}
