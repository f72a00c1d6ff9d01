import CMoE
import MoE

// The boundary: everything a caller can get wrong is found here, once, and named. Behind it the engine trusts its
// arguments. A Swift trap would kill the host, so nothing unchecked is multiplied, indexed or converted.

/// Runs the body of an exported function and turns its fault into a status; the message is in place by then.
func attempt(_ body: () throws(Fault) -> Void) -> moe_status {
  do throws(Fault) {
    try body()
    return MOE_OK
  } catch {
    return moe_status(rawValue: UInt32(error.kind.rawValue))
  }
}

// MARK: pointers

func required<T>(_ pointer: UnsafeMutablePointer<T>?, _ name: StaticString) throws(Fault) -> UnsafeMutablePointer<T> {
  try required(UnsafeRawPointer(pointer), alignment: MemoryLayout<T>.alignment, name)
  return pointer!
}

private func required(_ pointer: UnsafeRawPointer?, alignment: Int, _ name: StaticString) throws(Fault) {
  guard let pointer else { throw .invalid("\(name) is NULL") }
  if Int(bitPattern: pointer) % alignment != 0 { throw .invalid("\(name) is not aligned to \(alignment) bytes") }
}

func required<T>(_ pointer: UnsafePointer<T>?, _ name: StaticString) throws(Fault) -> UnsafePointer<T> {
  let found: UnsafeMutablePointer<T> = try required(UnsafeMutablePointer(mutating: pointer), name)
  return UnsafePointer(found)
}

/// NULL, or aligned.
func optional<T>(_ pointer: UnsafeMutablePointer<T>?, _ name: StaticString) throws(Fault) -> UnsafeMutablePointer<T>? {
  pointer == nil ? nil : try required(pointer, name)
}

/// An array that may be NULL when it has no elements.
func array<T>(_ pointer: UnsafePointer<T>?, count: Int, _ name: StaticString) throws(Fault) -> UnsafePointer<T> {
  if count == 0 && pointer == nil { return UnsafePointer(bitPattern: MemoryLayout<T>.alignment)! }
  return try required(pointer, name)
}

func array<T>(
  _ pointer: UnsafeMutablePointer<T>?, count: Int, _ name: StaticString
) throws(Fault) -> UnsafeMutablePointer<T> {
  UnsafeMutablePointer(mutating: try array(UnsafePointer(pointer), count: count, name))
}

/// An array of any type.
func array(
  _ pointer: UnsafeRawPointer?, count: Int, of type: ElementType, _ name: StaticString
) throws(Fault) -> UnsafeRawPointer {
  if count == 0 && pointer == nil { return UnsafeRawPointer(bitPattern: type.alignment)! }
  try required(pointer, alignment: type.alignment, name)
  return pointer!
}

func array(
  _ pointer: UnsafeMutableRawPointer?, count: Int, of type: ElementType, _ name: StaticString
) throws(Fault) -> UnsafeMutableRawPointer {
  UnsafeMutableRawPointer(mutating: try array(UnsafeRawPointer(pointer), count: count, of: type, name))
}

// MARK: handles

func handle<T>(
  _ pointer: OpaquePointer?, _ name: StaticString, as type: T.Type
) throws(Fault) -> UnsafeMutablePointer<T> {
  try required(pointer.map { UnsafeMutablePointer<T>($0) }, name)
}

// MARK: structs that may grow

/// The struct's own size at offset 0, checked: at least what this library knows, and nothing but zeros beyond that.
func requireSize<T>(_ pointer: UnsafePointer<T>, _ name: StaticString) throws(Fault) -> Int {
  let known = MemoryLayout<T>.size
  let start = UnsafeRawPointer(pointer)
  let size = start.load(as: Int.self)
  // Beyond this it is no size but memory that was never initialised, and the tail must not be read.
  let plausible = 4096
  guard size >= known && size <= plausible && size % MemoryLayout<T>.alignment == 0 else {
    throw .invalid(
      "\(name): struct_size = \(UInt64(UInt(bitPattern: size))), but \(known) is expected; fill it with the macro or the init function"
    )
  }
  for offset in known..<size where start.load(fromByteOffset: offset, as: UInt8.self) != 0 {
    throw .invalid("\(name): struct_size = \(size), and what lies beyond the \(known) bytes known here is not 0")
  }
  return size
}

/// A copy of the caller's struct, each field checked by itself.
func read<T: Bounded>(_ pointer: UnsafePointer<T>?, _ name: StaticString) throws(Fault) -> T {
  let copy = try readUnchecked(pointer, name)
  try copy.requireBounds(Bounds(name))
  return copy
}

func readUnchecked<T>(_ pointer: UnsafePointer<T>?, _ name: StaticString) throws(Fault) -> T {
  let pointer = try required(pointer, name)
  _ = try requireSize(pointer, name)
  return pointer.pointee
}

/// Writes `defaults` over as much of the caller's struct as there is: `size` bytes, the rest of which become 0.
/// The struct's own size comes first in it.
func initialise<T>(_ pointer: UnsafeMutablePointer<T>?, _ size: Int, _ defaults: T) {
  guard let pointer, size >= MemoryLayout<Int>.size else { return }
  let memory = UnsafeMutableRawPointer(pointer)
  memory.initializeMemory(as: UInt8.self, repeating: 0, count: size)
  withUnsafeBytes(of: defaults) {
    memory.copyMemory(from: $0.baseAddress!, byteCount: min(size, MemoryLayout<T>.size))
  }
  withUnsafeBytes(of: size) { memory.copyMemory(from: $0.baseAddress!, byteCount: MemoryLayout<Int>.size) }
}

// MARK: numbers

func require(_ value: Int, _ name: StaticString, from low: Int, to high: Int) throws(Fault) {
  if value < low { throw .invalid("\(name) = \(value) is below \(low)") }
  if value > high { throw .invalid("\(name) = \(value) exceeds \(high)") }
}

func require(_ value: Double, _ name: StaticString, atLeast low: Double) throws(Fault) {
  guard value >= low && value.isFinite else { throw .invalid("\(name) = \(value) is not a number of at least \(low)") }
}

/// What is computed with in float32.
func requireFloat(_ value: Double, _ name: StaticString) throws(Fault) {
  if !Float(value).isFinite { throw .invalid("\(name) = \(value) is not finite in float32") }
}

/// [0, 1)
func requireShare(_ value: Double, _ name: StaticString) throws(Fault) {
  guard value >= 0 && value < 1 else { throw .invalid("\(name) = \(value) is not in [0, 1)") }
}

func flag(_ value: Int32, _ name: StaticString) throws(Fault) -> Bool {
  try require(Int(value), name, from: 0, to: 1)
  return value == 1
}

/// The engine's constant with a number that has been checked.
func named<E: RawRepresentable>(_ value: Int32) throws(Fault) -> E where E.RawValue == Int32 {
  guard let found = E(rawValue: value) else { throw .invalid("\(Int(value)) is no such constant") }
  return found
}

/// Of bytes, from a size_t: none where it is 0, and any size beyond 63 bits is as good as the largest.
func limit(_ bytes: Int) -> Int? { bytes == 0 ? nil : Int(clamping: UInt(bitPattern: bytes)) }

func product(_ a: Int, _ b: Int, _ name: StaticString) throws(Fault) -> Int {
  let (product, overflow) = a.multipliedReportingOverflow(by: b)
  if overflow { throw .invalid("\(name) does not fit in 63 bits") }
  return product
}

func requireTokens(
  _ tokens: UnsafePointer<Int32>, _ count: Int, _ name: StaticString, vocabulary: Int
) throws(Fault) {
  for i in 0..<count where tokens[i] < 0 || tokens[i] >= vocabulary {
    throw .invalid("\(name)[\(i)] = \(Int(tokens[i])) is not one of vocabulary_size = \(vocabulary)")
  }
}
