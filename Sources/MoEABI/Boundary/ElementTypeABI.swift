import MoE

/// The type of an argument: any that weights may have, or of those that arrays of tokens and moments have.
func elementType(_ value: Int32, _ name: StaticString, forTokens: Bool = false) throws(Fault) -> ElementType {
  guard let type = ElementType(rawValue: value) else {
    throw withTypes(forTokens: forTokens) { .invalid("\(name) = \(Int(value)) is none of \($0)") }
  }
  if forTokens && !type.format.isForTokens {
    throw withTypes(forTokens: true) {
      .invalid("\(name) = \(type.format.constant), which is for weights alone; take one of \($0)")
    }
  }
  return type
}

/// Hands over their names, one after another.
func withTypes(forTokens: Bool, _ fault: (UnsafePointer<CChar>) -> Fault) -> Fault {
  let room = 256
  return withUnsafeTemporaryAllocation(of: CChar.self, capacity: room) { memory in
    var text = TextBuffer(memory.baseAddress!, capacity: room)
    var number: Int32 = 0
    while let type = ElementType(rawValue: number) {
      number += 1
      if forTokens && !type.format.isForTokens { continue }
      if number > 1 { text.append(", ") }
      text.append(type.format.constant)
    }
    return fault(UnsafePointer(memory.baseAddress!))
  }
}
