import CMoE
import Testing

/// The call came to `status`, and its message has the word `argument`.
func refused(
  _ argument: String, _ actual: moe_status, _ expected: moe_status = MOE_ERROR_INVALID_ARGUMENT,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let words = lastError().split { !($0.isLetter || $0.isNumber || $0 == "_") }
  #expect(actual == expected, "\(argument): \(lastError())", sourceLocation: sourceLocation)
  #expect(words.contains { $0 == argument }, "'\(argument)' in: \(lastError())", sourceLocation: sourceLocation)
  // Leave another message behind, so that the next check cannot be satisfied by this one.
  _ = moe_optimizer_set_learning_rate(nil, 1)
}

/// What an out handle holds before a call that must not touch it.
var untouched: OpaquePointer? { OpaquePointer(bitPattern: 0x5E47) }

/// `pointer`, one byte off.
func misaligned<Element>(_ pointer: UnsafeMutablePointer<Element>) -> UnsafeMutablePointer<Element> {
  (UnsafeMutableRawPointer(pointer) + 1).assumingMemoryBound(to: Element.self)
}

/// Sizes that no struct of this library ever had.
let wrongStructSizes = [0, 1, MemoryLayout<Int>.size, .max, -1]  // -1 is SIZE_MAX

/// `value` as a host with a later header has it: 16 bytes more, each of them `tail`.
func withGrown<Value, Result>(
  _ value: Value, tail: UInt8, _ body: (UnsafeMutablePointer<Value>) throws -> Result
) rethrows -> Result {
  let known = MemoryLayout<Value>.size
  let memory = UnsafeMutableRawPointer.allocate(byteCount: known + 16, alignment: 16)
  defer { memory.deallocate() }
  memory.initializeMemory(as: UInt8.self, repeating: tail, count: known + 16)
  let typed = memory.initializeMemory(as: Value.self, to: value)
  memory.storeBytes(of: known + 16, as: Int.self)  // struct_size is the first field
  return try body(typed)
}
