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
  }

  private(set) var start: UInt = 0
  private(set) var bytes: UInt = 0
  private(set) var writes = false
  private var part = Part.array
  private var index: Int32 = 0
  private var name: UnsafePointer<CChar>?
  /// Rows of `width` bytes that are `stride` bytes apart; 0: without gaps.
  private var width: UInt = 0
  private var stride: UInt = 0

  init() {}

  /// NULL has no memory.
  init(
    _ memory: UnsafeRawPointer?, bytes: UInt, _ name: UnsafePointer<CChar>?, writes: Bool, part: Part = .array,
    index: Int = 0
  ) {
    start = UInt(bitPattern: memory)
    self.bytes = memory == nil ? 0 : bytes
    self.name = name
    self.writes = writes
    self.part = part
    self.index = Int32(truncatingIfNeeded: index)
  }

  init(data parameter: Parameter, writes: Bool) {
    self.init(parameter.data, bytes: UInt(parameter.bytes), parameter.name, writes: writes)
  }

  init(gradientOf parameter: Parameter, writes: Bool) {
    self.init(
      parameter.grad, bytes: byteCount(parameter.count, of: .f32), parameter.name, writes: writes,
      part: .gradient)
  }

  /// Behind its last byte, or the end of the address space.
  var end: UInt {
    let (end, overflow) = start.addingReportingOverflow(bytes)
    return overflow ? .max : end
  }

  /// The same memory with gaps: rows of some bytes, which begin `stride` bytes apart.
  func inRows(of width: UInt, stride: UInt) -> Operand {
    var rows = self
    (rows.width, rows.stride) = (width, stride)
    return rows
  }

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

/// What one call reads and writes beside lists.
struct Operands {
  private static var most: Int { 32 }
  private var operands = InlineArray<32, Operand>(repeating: Operand())
  private(set) var count = 0

  subscript(place: Int) -> Operand { operands[place] }

  /// Refuses it where it shares memory with another one and either is written. Returns its place, for `writes`.
  @discardableResult
  mutating func add(_ operand: Operand, inPlaceOf place: Int? = nil) throws(Fault) -> Int {
    for i in 0..<count where operand.collides(with: operands[i]) {
      if i == place && operand.isSameMemory(as: operands[i]) { continue }
      throw .collision(operand, operands[i])
    }
    if count == Self.most { throw .invalid("a call has no more than \(Self.most) arrays") }
    operands[count] = operand
    count += 1
    return count - 1
  }

  @discardableResult
  mutating func reads<T>(_ array: UnsafePointer<T>?, _ count: Int, _ name: StaticString) throws(Fault) -> Int {
    try reads(UnsafeRawPointer(array), bytes: byteCount(count, MemoryLayout<T>.stride), name)
  }

  @discardableResult
  mutating func reads(_ memory: UnsafeRawPointer?, bytes: UInt, _ name: StaticString) throws(Fault) -> Int {
    try add(Operand(memory, bytes: bytes, cText(name), writes: false))
  }

  /// `place`: that of an array which may be the very same memory, and no other that overlaps it.
  mutating func writes<T>(
    _ array: UnsafeMutablePointer<T>?, _ count: Int, _ name: StaticString, inPlaceOf place: Int? = nil
  ) throws(Fault) {
    let operand = Operand(array, bytes: byteCount(count, MemoryLayout<T>.stride), cText(name), writes: true)
    try add(operand, inPlaceOf: place)
  }

  mutating func writes(_ memory: UnsafeMutableRawPointer?, bytes: UInt, _ name: StaticString) throws(Fault) {
    try add(Operand(memory, bytes: bytes, cText(name), writes: true))
  }

  mutating func reads(_ lent: CallerMemory?, _ name: StaticString) throws(Fault) {
    guard let lent else { return }
    try reads(UnsafeRawPointer(lent.memory), bytes: UInt(lent.bytes), name)
  }

  mutating func writes(_ lent: CallerMemory?, _ name: StaticString) throws(Fault) {
    guard let lent else { return }
    try writes(lent.memory, bytes: UInt(lent.bytes), name)
  }

  func requireApart(from operand: Operand) throws(Fault) {
    for i in 0..<count where operand.collides(with: operands[i]) { throw .collision(operand, operands[i]) }
  }

  /// `steps`: the call changes its values; `gradients`: it adds to its gradient.
  func requireApart(from parameter: Parameter, steps: Bool = false, gradients: Bool = false) throws(Fault) {
    try requireApart(from: Operand(data: parameter, writes: steps))
    try requireApart(from: Operand(gradientOf: parameter, writes: gradients))
  }
}

func byteCount(_ count: Int, of type: ElementType) -> UInt { byteCount(count / type.block, type.unit) }

/// Of `count` elements; what no address space holds is as good as all of it.
func byteCount(_ count: Int, _ size: Int) -> UInt {
  if count <= 0 { return 0 }
  let (bytes, overflow) = UInt(count).multipliedReportingOverflow(by: UInt(size))
  return overflow ? .max : bytes
}
