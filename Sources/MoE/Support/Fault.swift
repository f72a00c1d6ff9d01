import CShims

/// What went wrong. The engine throws it; the boundary turns it into a status. Its text is already in place then:
/// `ErrorText` writes straight into the calling thread's fixed buffer, so that reporting needs no memory.
public struct Fault: Error {
  public enum Kind: Int32, Sendable {
    // Numbers as in moe_status.
    case invalidArgument = 1
    case outOfMemory = 2
    case badState = 3
    case notFinite = 4
    case cancelled = 5
    case io = 6
    case communication = 7
  }

  public let kind: Kind

  public init(_ kind: Kind, _ text: ErrorText) {
    self.kind = kind
  }
}

extension Fault {
  public static func invalid(_ text: ErrorText) -> Fault { Fault(.invalidArgument, text) }
  public static func badState(_ text: ErrorText) -> Fault { Fault(.badState, text) }
  static var cancelled: Fault { Fault(.cancelled, "cancelled by the context's cancel callback") }
  /// Of a tape.
  static var packedSince: Fault {
    .badState("tape: weights have been prepared in few bits since forward, or no longer are: call forward again")
  }
  /// In a child of a process that was forked by a callback of the call.
  static var forkedWithin: Fault {
    Fault(
      .badState,
      "the process was forked within this call, whose other threads are not in the child: make a new context there, or fork while no call runs"
    )
  }
  public static func outOfMemory(bytes: Int) -> Fault {
    Fault(.outOfMemory, "out of memory: \(bytes) bytes were refused")
  }

  /// The fault as a model reports it: its text begins with the number of the layer where it speaks of one layer's numbers, and
  /// not of a parameter by its whole name.
  func inLayer(_ n: Int) -> Fault {
    let isOfLayer = (kind == .notFinite || kind == .badState) && !text(moei_error_text(), begins: "layers.")
    return isOfLayer ? behind("layers.", n) : self
  }

  /// The fault as generation reports it, where it speaks of one sequence's numbers.
  func inSequence(_ b: Int) -> Fault { kind == .notFinite ? behind("sequence ", b) : self }

  private func behind(_ word: StaticString, _ number: Int) -> Fault { reworded { "\(word)\(number): \($0)" } }

  /// The fault with a text made from its own.
  func reworded(_ text: (UnsafePointer<CChar>) -> ErrorText) -> Fault {
    let size = Int(MOEI_TEXT_SIZE)
    return withUnsafeTemporaryAllocation(of: CChar.self, capacity: size) { own in
      own.baseAddress!.update(from: moei_error_text(), count: size)
      return Fault(kind, text(UnsafePointer(own.baseAddress!)))
    }
  }

  /// The fault of a configuration that came from a file, whose name its text begins with.
  public func inConfig() -> Fault { kind == .invalidArgument ? reworded { "config.json: \($0)" } : self }

  /// The fault of files that are not what a config.json says: its text ends with their folder.
  func inFolder(_ path: UnsafePointer<CChar>) -> Fault {
    kind == .invalidArgument ? reworded { "\($0): \(path)" } : self
  }

  /// The fault of a GGUF file, which has no config.json that its text could speak of.
  public func inGGUF() -> Fault {
    if kind != .invalidArgument || !hasPart(moei_error_text(), cText("config.json")) { return self }
    return reworded { "\($0) (config.json: what the keys of this GGUF file come to, under the names of transformers)" }
  }

  /// The fault as one of a list's elements: its text begins with the list's name and the element's number.
  public func inElement(_ n: Int, of list: StaticString) -> Fault { reworded { "\(list)[\(n)]: \($0)" } }

  /// What the system said about a file.
  static func io(_ action: StaticString, _ path: UnsafePointer<CChar>, _ error: Int32) -> Fault {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 128) { text in
      Fault(.io, "\(action): \(moei_error_name(error, text.baseAddress!, 128)): \(path)")
    }
  }
}

/// "top_k = \(k) exceeds n_experts = \(e)" without a String: no allocation, no Unicode tables.
public struct ErrorText: ExpressibleByStringInterpolation {
  public typealias StringLiteralType = StaticString

  public init(stringLiteral text: StaticString) {
    var writer = StringInterpolation(literalCapacity: 0, interpolationCount: 0)
    writer.appendLiteral(text)
  }

  public init(stringInterpolation: StringInterpolation) {}

  public struct StringInterpolation: StringInterpolationProtocol {
    public typealias StringLiteralType = StaticString
    private var text = TextBuffer(moei_error_text(), capacity: Int(MOEI_TEXT_SIZE))

    public init(literalCapacity: Int, interpolationCount: Int) {}

    public mutating func appendLiteral(_ literal: StaticString) { text.append(literal) }
    public mutating func appendInterpolation(_ name: StaticString) { text.append(name) }
    public mutating func appendInterpolation(_ number: Int) { text.append(number) }
    public mutating func appendInterpolation(_ number: UInt64) { text.append(number) }
    public mutating func appendInterpolation(_ number: Double) { text.append(number) }
    /// Text of the caller's, cut off at the end of the buffer.
    public mutating func appendInterpolation(_ name: UnsafePointer<CChar>?) { text.append(name) }
    /// As it is in a file.
    public mutating func appendInterpolation(_ words: JSONText) { text.append(words) }
  }
}

/// Appends to a fixed C string, always terminated, cut off where it is full.
public struct TextBuffer {
  private let start: UnsafeMutablePointer<CChar>
  private let capacity: Int
  /// Bytes that are there, the end not among them.
  private(set) var length = 0

  public init(_ start: UnsafeMutablePointer<CChar>, capacity: Int) {
    self.start = start
    self.capacity = capacity
    start[0] = 0
  }

  mutating func append(_ byte: UInt8) {
    guard length < capacity - 1 else { return }
    start[length] = CChar(bitPattern: byte)
    length += 1
    start[length] = 0
  }

  public mutating func append(_ text: StaticString) {
    for i in 0..<text.utf8CodeUnitCount { append(text.utf8Start[i]) }
  }

  public mutating func append(_ text: UnsafePointer<CChar>?) {
    guard var p = text else { return append("NULL") }
    while p.pointee != 0 {
      append(UInt8(bitPattern: p.pointee))
      p += 1
    }
  }

  public var isEmpty: Bool { length == 0 }

  public mutating func append(_ text: JSONText) {
    for i in 0..<text.count { append(text.start[i]) }
  }

  /// Its first `count` bytes.
  mutating func append(_ text: UnsafePointer<CChar>, count: Int) {
    for i in 0..<count { append(UInt8(bitPattern: text[i])) }
  }

  public mutating func append(_ number: Int) {
    if number < 0 { append(UInt8(ascii: "-")) }
    append(UInt64(number.magnitude))
  }

  public mutating func append(_ magnitude: UInt64) {
    var divisor: UInt64 = 1
    while magnitude / divisor >= 10 { divisor *= 10 }
    while divisor > 0 {
      append(UInt8(ascii: "0") + UInt8(magnitude / divisor % 10))
      divisor /= 10
    }
  }

  /// Six significant digits, as %g: enough for a message.
  public mutating func append(_ number: Double) {
    if number.isNaN { return append("nan") }
    if number.sign == .minus { append(UInt8(ascii: "-")) }
    if number.isInfinite { return append("inf") }
    var value = number.magnitude
    var exponent = 0
    if value > 0 {
      while value >= 10 {
        value /= 10
        exponent += 1
      }
      while value < 1 {
        value *= 10
        exponent -= 1
      }
    }
    var digits = Int((value * 1e5).rounded())
    if digits >= 1_000_000 {
      digits /= 10
      exponent += 1
    }
    // Plain notation from 1e-5 to 1e6, otherwise d.ddddde+xx.
    let scientific = exponent < -5 || exponent > 5
    var point = scientific ? 0 : exponent  // the digit after which the point stands
    if point < 0 {
      append("0.")
      for _ in 0..<(-point - 1) { append(UInt8(ascii: "0")) }
      point = 6
    }
    var place = 100_000
    var position = 0
    while place > 0 && (digits > 0 || position <= point && point < 6) {
      append(UInt8(ascii: "0") + UInt8(digits / place))
      digits %= place
      if position == point && digits > 0 { append(UInt8(ascii: ".")) }
      place /= 10
      position += 1
    }
    if scientific {
      append("e")
      append(exponent)
    }
  }
}
