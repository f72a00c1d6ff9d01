import CMoE
import MoE

// Every array of a call is handed over here with its name: what a call writes shares no memory with anything else that it
// reads or writes. Indices and sizes are checked before they are used; a result that fell on them while the call runs would
// make those checks worthless. Arrays without a list are compared with each other, some 30 at most; lists are sorted
// (OperandLists.swift).

/// A stretch of memory that a call reads or writes.
struct Operand {
  /// What a name says beside its text. With a raw type, since that of others would bring a hash with a seed from the system.
  enum Part: UInt8 {
    case array
    case gradient  // of the parameter of that name
    case tensorData  // of the caller's tensor number `index`
    case tensorGrad
    case ofReport
    case ofLayerReport  // number `index`
    case ofTraining  // handle number `index`
    case ofExpert  // number `index` of a list of experts
  }

  private(set) var start: UInt = 0
  private(set) var bytes: UInt = 0
  private(set) var writes = false
  private var part = Part.array
  private var index: Int32 = 0
  private var alignment: UInt32 = 1
  private var name: UnsafePointer<CChar>?
  /// Rows of `width` bytes that are `stride` bytes apart; 0: without gaps.
  private var width: UInt = 0
  private var stride: UInt = 0

  init() {}

  /// NULL has no memory. Where elements have an alignment, that is checked as well.
  init(
    _ memory: UnsafeRawPointer?, bytes: UInt, _ name: UnsafePointer<CChar>?, writes: Bool, part: Part = .array,
    index: Int = 0, alignment: Int = 1
  ) {
    start = UInt(bitPattern: memory)
    self.bytes = memory == nil ? 0 : bytes
    self.name = name
    self.writes = writes
    self.part = part
    self.index = Int32(truncatingIfNeeded: index)
    self.alignment = UInt32(alignment)
  }

  init(data parameter: Parameter, writes: Bool) {
    self.init(parameter.data, bytes: UInt(parameter.bytes), parameter.name, writes: writes)
  }

  init(gradientOf parameter: Parameter, writes: Bool) {
    self.init(
      parameter.gradMemory, bytes: byteCount(parameter.count, of: .f32), parameter.name, writes: writes,
      part: .gradient)
  }

  /// Behind its last byte, or the end of the address space.
  var end: UInt {
    let (end, overflow) = start.addingReportingOverflow(bytes)
    return overflow ? .max : end
  }

  /// This memory with gaps: rows of some bytes, which begin `stride` bytes apart.
  func inRows(of width: UInt, stride: UInt) -> Operand {
    var rows = self
    (rows.width, rows.stride) = (width, stride)
    return rows
  }

  var hasGaps: Bool { stride > 0 }

  func isCalled(_ name: StaticString) -> Bool { self.name.map { compareText($0, cText(name)) == 0 } ?? false }
  func isSameMemory(as other: Operand) -> Bool { start == other.start && bytes == other.bytes }

  /// Whether a call with both is refused.
  func collides(with other: Operand) -> Bool {
    if bytes == 0 || other.bytes == 0 || !(writes || other.writes) { return false }
    // Distances rather than ends: an end could lie beyond the address space.
    if start < other.start ? other.start - start >= bytes : start - other.start >= other.bytes { return false }
    return !takesTurns(with: other)
  }

  /// Rows of two arrays may take turns, as queries, keys and values do that one product has made.
  private func takesTurns(with other: Operand) -> Bool {
    if stride == 0 || stride != other.stride { return false }
    let distance = start < other.start ? (other.start - start) % stride : (start - other.start) % stride
    // Where the other's rows begin within a row of this one's stride.
    let offset = start < other.start || distance == 0 ? distance : stride - distance
    return offset >= width && offset + other.width <= stride
  }

  func requireAligned() throws(Fault) {
    if start % UInt(alignment) == 0 { return }
    let fault: Fault = withUnsafeTemporaryAllocation(of: CChar.self, capacity: 200) { memory in
      var text = TextBuffer(memory.baseAddress!, capacity: memory.count)
      append(to: &text)
      return .invalid("\(UnsafePointer(memory.baseAddress)) is not aligned to \(Int(alignment)) bytes")
    }
    throw fault
  }

  fileprivate func append(to text: inout TextBuffer) {
    switch part {
    case .array: text.append(name)
    case .gradient:
      text.append("the gradient of ")
      text.append(name)
    case .tensorData, .tensorGrad:
      let field: StaticString = part == .tensorData ? "data of tensors[" : "grad of tensors["
      text.append(field)
      text.append(Int(index))
      text.append("]")
      guard let name else { return }
      text.append(" (")
      text.append(name)
      text.append(")")
    case .ofReport:
      text.append("report.")
      text.append(name)
    case .ofLayerReport:
      text.append("report.layers[")
      text.append(Int(index))
      text.append("].")
      text.append(name)
    case .ofExpert:
      text.append("experts[")
      text.append(Int(index))
      text.append("] of ")
      text.append(name)
    case .ofTraining:
      text.append("training.")
      text.append(name)
      text.append("[")
      text.append(Int(index))
      text.append("]")
    }
  }
}

extension Fault {
  /// The output first.
  static func collision(_ a: Operand, _ b: Operand) -> Fault {
    let room = 200  // of each name, so that the cure has its place behind them
    return withUnsafeTemporaryAllocation(of: CChar.self, capacity: 2 * room) { memory in
      var output = TextBuffer(memory.baseAddress!, capacity: room)
      var other = TextBuffer(memory.baseAddress! + room, capacity: room)
      (a.writes ? a : b).append(to: &output)
      (a.writes ? b : a).append(to: &other)
      return .invalid(
        "\(UnsafePointer(memory.baseAddress)) overlaps \(UnsafePointer(memory.baseAddress! + room)): give each memory of its own"
      )
    }
  }
}

/// What one call reads and writes beside lists. Each array is handed over once, with its name: it comes back checked, as
/// what the engine may use.
struct Operands {
  private static var most: Int { 32 }
  private var operands = InlineArray<32, Operand>(repeating: Operand())
  private(set) var count = 0

  subscript(place: Int) -> Operand { operands[place] }

  /// Refuses it where it shares memory with another one and either is written.
  mutating func add(_ operand: Operand, inPlaceOf input: StaticString? = nil) throws(Fault) {
    try operand.requireAligned()
    for i in 0..<count where operand.collides(with: operands[i]) {
      if let input, operands[i].isCalled(input), operand.isSameMemory(as: operands[i]) { continue }
      throw .collision(operand, operands[i])
    }
    if count == Self.most { throw .invalid("a call has no more than \(Self.most) arrays") }
    operands[count] = operand
    count += 1
  }

  // MARK: arrays that may be NULL when they have no elements

  @discardableResult
  mutating func reads<T>(
    _ array: UnsafePointer<T>?, _ count: Int, _ name: StaticString
  ) throws(Fault) -> UnsafePointer<T> {
    let found = try MoEABI.array(array, count: count, name)
    try add(Operand(array, bytes: byteCount(count, MemoryLayout<T>.stride), cText(name), writes: false))
    return found
  }

  /// `input`: the name of an array that may be the very same memory, and no other that overlaps it.
  @discardableResult
  mutating func writes<T>(
    _ array: UnsafeMutablePointer<T>?, _ count: Int, _ name: StaticString, inPlaceOf input: StaticString? = nil
  ) throws(Fault) -> UnsafeMutablePointer<T> {
    let found = try MoEABI.array(array, count: count, name)
    let operand = Operand(array, bytes: byteCount(count, MemoryLayout<T>.stride), cText(name), writes: true)
    try add(operand, inPlaceOf: input)
    return found
  }

  /// Of any type that parameters have.
  @discardableResult
  mutating func reads(
    _ array: UnsafeRawPointer?, _ count: Int, of type: ElementType, _ name: StaticString
  ) throws(Fault) -> UnsafeRawPointer {
    let found = try MoEABI.array(array, count: count, of: type, name)
    try add(Operand(array, bytes: byteCount(count, of: type), cText(name), writes: false))
    return found
  }

  @discardableResult
  mutating func writes(
    _ array: UnsafeMutableRawPointer?, _ count: Int, of type: ElementType, _ name: StaticString
  ) throws(Fault) -> UnsafeMutableRawPointer {
    let found = try MoEABI.array(array, count: count, of: type, name)
    try add(Operand(array, bytes: byteCount(count, of: type), cText(name), writes: true))
    return found
  }

  // MARK: arrays that may be NULL

  @discardableResult
  mutating func reads<T>(
    optional array: UnsafePointer<T>?, _ count: Int, _ name: StaticString
  ) throws(Fault) -> UnsafePointer<T>? {
    array == nil ? nil : try reads(array, count, name)
  }

  @discardableResult
  mutating func writes<T>(
    optional array: UnsafeMutablePointer<T>?, _ count: Int, _ name: StaticString,
    inPlaceOf input: StaticString? = nil
  ) throws(Fault) -> UnsafeMutablePointer<T>? {
    array == nil ? nil : try writes(array, count, name, inPlaceOf: input)
  }

  // MARK: rows with gaps

  /// One row for each token, of `width` floats, `stride` floats apart.
  struct Rows {
    let count: Int
    let width: Int
    let stride: Int
  }

  @discardableResult
  mutating func reads(
    _ array: UnsafePointer<Float>?, _ rows: Rows, _ name: StaticString
  ) throws(Fault) -> UnsafePointer<Float> {
    UnsafePointer(try add(UnsafeMutablePointer(mutating: array), rows, name, writes: false))
  }

  @discardableResult
  mutating func writes(
    _ array: UnsafeMutablePointer<Float>?, _ rows: Rows, _ name: StaticString
  ) throws(Fault) -> UnsafeMutablePointer<Float> {
    try add(array, rows, name, writes: true)
  }

  private mutating func add(
    _ array: UnsafeMutablePointer<Float>?, _ rows: Rows, _ name: StaticString, writes: Bool
  ) throws(Fault) -> UnsafeMutablePointer<Float> {
    let found = try MoEABI.array(array, count: rows.count, name)
    let floats = try product(rows.stride, rows.count, name)
    // From the first row's begin to the last row's end.
    let bytes = rows.count == 0 ? 0 : try product(4, floats, name) - 4 * (rows.stride - rows.width)
    try add(
      Operand(array, bytes: UInt(bytes), cText(name), writes: writes).inRows(
        of: byteCount(rows.width, 4), stride: byteCount(rows.stride, 4)))
    return found
  }

  // MARK: structs

  /// A copy of the caller's struct, which says how large it is.
  mutating func copies<T: Bounded>(_ pointer: UnsafePointer<T>?, _ name: StaticString) throws(Fault) -> T {
    let copy = try read(pointer, name)
    try reads(pointer, 1, name)
    return copy
  }

  /// A struct that is read and written.
  mutating func updates<T: Bounded>(
    _ pointer: UnsafeMutablePointer<T>?, _ name: StaticString
  ) throws(Fault) -> (UnsafeMutablePointer<T>, T) {
    let copy = try read(UnsafePointer(pointer), name)
    return (try writes(pointer, 1, name), copy)
  }

  // MARK: memory that is lent

  mutating func reads(_ lent: CallerMemory?, _ name: StaticString) throws(Fault) {
    guard let lent else { return }
    try add(Operand(lent.memory, bytes: UInt(lent.bytes), cText(name), writes: false))
  }

  mutating func writes(_ lent: CallerMemory?, _ name: StaticString) throws(Fault) {
    guard let lent else { return }
    try add(Operand(lent.memory, bytes: UInt(lent.bytes), cText(name), writes: true))
  }

  // MARK: what belongs to handles

  func requireApart(from operand: Operand) throws(Fault) {
    for i in 0..<count where operand.collides(with: operands[i]) { throw .collision(operand, operands[i]) }
  }

  /// `steps`: the call changes its values; `gradients`: it adds to its gradient.
  func requireApart(from parameter: Parameter, steps: Bool = false, gradients: Bool = false) throws(Fault) {
    try requireApart(from: Operand(data: parameter, writes: steps))
    try requireApart(from: Operand(gradientOf: parameter, writes: gradients))
  }
}

func byteCount(_ count: Int, of type: ElementType) -> UInt { byteCount(count, type.unit) }

/// Of `count` elements; what no address space holds is as good as all of it.
func byteCount(_ count: Int, _ size: Int) -> UInt {
  if count <= 0 { return 0 }
  let (bytes, overflow) = UInt(count).multipliedReportingOverflow(by: UInt(size))
  return overflow ? .max : bytes
}
