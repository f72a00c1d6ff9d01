import CLayouts

/// An architecture of GGUF files: a row of CLayouts/gguf.
struct Architecture {
  private let table: UnsafePointer<moei_architecture>

  /// By general.architecture.
  init?(named name: JSONText) {
    var number: Int32 = 0
    while let table = moei_architecture_at(number) {
      if JSONText(table.pointee.name) == name {
        self.table = table
        return
      }
      number += 1
    }
    return nil
  }

  var name: UnsafePointer<CChar> { table.pointee.name }
  var headsRule: Int { Int(table.pointee.heads_rule) }
  var turnRule: Int { Int(table.pointee.turn_rule) }

  var keyCount: Int { Int(table.pointee.key_count) }
  func key(_ index: Int) -> moei_metadata { table.pointee.keys[index] }

  /// Whether its files may have a key, behind the architecture's name.
  func knows(_ own: UnsafePointer<CChar>) -> Bool {
    for index in 0..<keyCount {
      let key = key(index)
      let isOfFile = Int(key.kind) != MOEI_META_ALWAYS && Int(key.kind) != MOEI_META_HAS
      if isOfFile, let name = key.name, compareText(name, own) == 0 { return true }
    }
    return false
  }

  /// How a file's tensors are called.
  func names(in checkpoint: Checkpoint) -> Family {
    if let older = table.pointee.older, checkpoint.find(table.pointee.older_has) != nil { return Family(table: older) }
    return Family(table: table.pointee.names)
  }

  func forEachVariant(_ body: (moei_variant) -> Bool) {
    let all = table.pointee.variants
    if body(all.0) { return }
    if body(all.1) { return }
    _ = body(all.2)
  }
}

extension JSONText {
  /// Of a GGUF file's key, as a C string of at most 255 bytes.
  func withText<R>(_ body: (UnsafePointer<CChar>) throws(Fault) -> R) throws(Fault) -> R {
    try MoE.withText { (text: inout TextBuffer) in
      text.append(self)
    } body: { (name) throws(Fault) in
      try body(name)
    }
  }
}
