/// Reads the JSON [RFC 8259] of a safetensors header, an index file or a config.json where it lies, without building anything. Strict: no
/// comments, no trailing commas, valid UTF-8; bounded in depth. An error names the byte.
struct JSONReader {
  private let start: UnsafePointer<UInt8>
  private let count: Int
  private let path: UnsafePointer<CChar>  // for messages
  private(set) var at = 0

  private static var deepest: Int { 16 }

  init(_ start: UnsafePointer<UInt8>, count: Int, path: UnsafePointer<CChar>) {
    self.start = start
    self.count = count
    self.path = path
  }

  func fault(_ what: StaticString) -> Fault { .invalid("JSON at byte \(at): \(what): \(path)") }

  // MARK: structure

  mutating func skipSpace() {
    while at < count, start[at] == 0x20 || start[at] == 0x0A || start[at] == 0x0D || start[at] == 0x09 { at += 1 }
  }

  /// Takes the byte if it comes next.
  mutating func take(_ byte: UInt8) -> Bool {
    skipSpace()
    guard at < count && start[at] == byte else { return false }
    at += 1
    return true
  }

  /// What kind of value comes next.
  var isObject: Bool { next == UInt8(ascii: "{") }
  var isText: Bool { next == UInt8(ascii: "\"") }

  /// The byte that the next value begins with; 0 where there is none.
  var next: UInt8 {
    var copy = self
    copy.skipSpace()
    return copy.at < count ? start[copy.at] : 0
  }

  /// Takes `null` if it comes next.
  mutating func takeNull() throws(Fault) -> Bool {
    skipSpace()
    guard isNext(UInt8(ascii: "n")) else { return false }
    try word("null")
    return true
  }

  mutating func expect(_ byte: UInt8, _ what: StaticString) throws(Fault) {
    if !take(byte) { throw fault(what) }
  }

  /// Hands over each member's key; `body` reads the value.
  mutating func members(_ body: (inout JSONReader, JSONText) throws(Fault) -> Void) throws(Fault) {
    try objectMembers { (json, key, _) throws(Fault) in try body(&json, key) }
  }

  /// The same, with the place of the key's quote.
  mutating func objectMembers(_ body: (inout JSONReader, JSONText, Int) throws(Fault) -> Void) throws(Fault) {
    try expect(UInt8(ascii: "{"), "an object is expected")
    if take(UInt8(ascii: "}")) { return }
    repeat {
      skipSpace()
      let place = at
      let key = try text()
      try expect(UInt8(ascii: ":"), "a colon is expected")
      try body(&self, key, place)
    } while take(UInt8(ascii: ","))
    try expect(UInt8(ascii: "}"), "a comma or the object's end is expected")
  }

  /// `body` reads each element.
  mutating func elements(_ body: (inout JSONReader) throws(Fault) -> Void) throws(Fault) {
    try expect(UInt8(ascii: "["), "an array is expected")
    if take(UInt8(ascii: "]")) { return }
    repeat { try body(&self) } while take(UInt8(ascii: ","))
    try expect(UInt8(ascii: "]"), "a comma or the array's end is expected")
  }

  /// Nothing but space is left.
  mutating func end() throws(Fault) {
    skipSpace()
    if at < count { throw fault("the text goes on after its end") }
  }

  /// Any value, which nobody wants.
  mutating func skip(depth: Int = 0) throws(Fault) {
    if depth == Self.deepest { throw fault("objects and arrays are nested too deeply") }
    skipSpace()
    switch at < count ? start[at] : 0 {
    case UInt8(ascii: "{"):
      try members { (json, _) throws(Fault) in try json.skip(depth: depth + 1) }
    case UInt8(ascii: "["):
      try elements { (json) throws(Fault) in try json.skip(depth: depth + 1) }
    case UInt8(ascii: "\""): _ = try text()
    case UInt8(ascii: "t"): try word("true")
    case UInt8(ascii: "f"): try word("false")
    case UInt8(ascii: "n"): try word("null")
    default: try skipNumber()
    }
  }

  private mutating func word(_ word: StaticString) throws(Fault) {
    for i in 0..<word.utf8CodeUnitCount {
      guard at < count && start[at] == word.utf8Start[i] else { throw fault("a value is expected") }
      at += 1
    }
  }

  // MARK: numbers

  private mutating func digits() throws(Fault) {
    let first = at
    while at < count, start[at] >= UInt8(ascii: "0"), start[at] <= UInt8(ascii: "9") { at += 1 }
    if at == first { throw fault("a value is expected") }
  }

  private func isNext(_ byte: UInt8) -> Bool { at < count && start[at] == byte }

  private mutating func skipNumber() throws(Fault) {
    if isNext(UInt8(ascii: "-")) { at += 1 }
    if isNext(UInt8(ascii: "0")) { at += 1 } else { try digits() }
    if isNext(UInt8(ascii: ".")) {
      at += 1
      try digits()
    }
    if isNext(UInt8(ascii: "e")) || isNext(UInt8(ascii: "E")) {
      at += 1
      if isNext(UInt8(ascii: "+")) || isNext(UInt8(ascii: "-")) { at += 1 }
      try digits()
    }
  }

  /// A whole number from 0 to 2^63 - 1, without a sign, a point, an exponent or a 0 before it.
  mutating func wholeNumber() throws(Fault) -> Int {
    skipSpace()
    let first = at
    var value = 0
    while at < count, start[at] >= UInt8(ascii: "0"), start[at] <= UInt8(ascii: "9") {
      let (ten, tooLarge) = value.multipliedReportingOverflow(by: 10)
      let (sum, overflow) = ten.addingReportingOverflow(Int(start[at] - UInt8(ascii: "0")))
      if tooLarge || overflow { throw fault("a number does not fit in 63 bits") }
      value = sum
      at += 1
    }
    let goesOn = isNext(UInt8(ascii: ".")) || isNext(UInt8(ascii: "e")) || isNext(UInt8(ascii: "E"))
    let zeroFirst = at > first + 1 && start[first] == UInt8(ascii: "0")
    if at == first || goesOn || zeroFirst { throw fault("a whole number of at least 0 is expected") }
    return value
  }

  // MARK: text

  /// A string, checked; it stays as it is in the file.
  mutating func text() throws(Fault) -> JSONText {
    try expect(UInt8(ascii: "\""), "a string is expected")
    let first = at
    while true {
      guard at < count else { throw fault("a string has no end") }
      switch start[at] {
      case UInt8(ascii: "\""):
        at += 1
        return JSONText(start: start + first, count: at - 1 - first)
      case UInt8(ascii: "\\"): try escape()
      case 0..<0x20: throw fault("a control character stands in a string")
      case 0..<0x80: at += 1
      default:
        guard let length = utf8Length(start + at, atMost: count - at) else { throw fault("a string is not UTF-8") }
        at += length
      }
    }
  }

  private mutating func escape() throws(Fault) {
    at += 1
    guard at < count else { throw fault("a string has no end") }
    switch start[at] {
    case UInt8(ascii: "u"):
      at += 1
      let unit = try hexadecimal()
      if unit == 0 { throw fault("a string contains the character 0") }
      if unit & 0xFC00 == 0xDC00 { throw fault("half a surrogate pair stands in a string") }
      guard unit & 0xFC00 == 0xD800 else { return }
      guard isNext(UInt8(ascii: "\\")) else { throw fault("half a surrogate pair stands in a string") }
      at += 1
      guard isNext(UInt8(ascii: "u")) else { throw fault("half a surrogate pair stands in a string") }
      at += 1
      if try hexadecimal() & 0xFC00 != 0xDC00 { throw fault("half a surrogate pair stands in a string") }
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"), UInt8(ascii: "b"), UInt8(ascii: "f"),
      UInt8(ascii: "n"), UInt8(ascii: "r"), UInt8(ascii: "t"):
      at += 1
    default: throw fault("a string has an unknown escape")
    }
  }

  private mutating func hexadecimal() throws(Fault) -> UInt32 {
    guard count - at >= 4, let unit = hexadecimalValue(start + at) else {
      throw fault("four hexadecimal digits are expected")
    }
    at += 4
    return unit
  }
}

/// A checked string of a JSON text, its quotes left out and its escapes as they are.
public struct JSONText {
  let start: UnsafePointer<UInt8>
  let count: Int

  static func == (a: JSONText, b: StaticString) -> Bool {
    a.equals(b.utf8Start, b.utf8CodeUnitCount)
  }
  static func == (a: JSONText, b: JSONText) -> Bool { a.equals(b.start, b.count) }

  private func equals(_ other: UnsafePointer<UInt8>, _ otherCount: Int) -> Bool {
    if count != otherCount { return false }
    for i in 0..<count where start[i] != other[i] { return false }
    return true
  }

  /// Writes it as a C string and returns its length with the NUL: at most `count` + 1.
  func decode(to out: UnsafeMutablePointer<CChar>) -> Int {
    var (from, to) = (0, 0)
    func put(_ byte: UInt32) {
      out[to] = CChar(truncatingIfNeeded: byte)
      to += 1
    }
    while from < count {
      if start[from] != UInt8(ascii: "\\") {
        put(UInt32(start[from]))
        from += 1
        continue
      }
      let kind = start[from + 1]
      from += 2
      switch kind {
      case UInt8(ascii: "u"):
        var code = hexadecimalValue(start + from)!
        from += 4
        if code & 0xFC00 == 0xD800 {
          code = 0x10000 + (code & 0x3FF) << 10 + hexadecimalValue(start + from + 2)! & 0x3FF
          from += 6
        }
        switch code {
        case 0..<0x80: put(code)
        case 0..<0x800:
          put(0xC0 | code >> 6)
          put(0x80 | code & 0x3F)
        case 0..<0x10000:
          put(0xE0 | code >> 12)
          put(0x80 | code >> 6 & 0x3F)
          put(0x80 | code & 0x3F)
        default:
          put(0xF0 | code >> 18)
          put(0x80 | code >> 12 & 0x3F)
          put(0x80 | code >> 6 & 0x3F)
          put(0x80 | code & 0x3F)
        }
      case UInt8(ascii: "b"): put(8)
      case UInt8(ascii: "f"): put(12)
      case UInt8(ascii: "n"): put(10)
      case UInt8(ascii: "r"): put(13)
      case UInt8(ascii: "t"): put(9)
      default: put(UInt32(kind))
      }
    }
    out[to] = 0
    return to + 1
  }
}

private func hexadecimalValue(_ digits: UnsafePointer<UInt8>) -> UInt32? {
  var value: UInt32 = 0
  for i in 0..<4 {
    let digit: UInt8
    switch digits[i] {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = digits[i] - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = digits[i] - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = digits[i] - UInt8(ascii: "A") + 10
    default: return nil
    }
    value = value << 4 | UInt32(digit)
  }
  return value
}

/// Bytes of the character of more than one byte that begins here, or nil where none does [RFC 3629].
private func utf8Length(_ p: UnsafePointer<UInt8>, atMost left: Int) -> Int? {
  let length: Int
  var second: ClosedRange<UInt8> = 0x80...0xBF
  switch p[0] {
  case 0xC2...0xDF: length = 2
  case 0xE0: (length, second) = (3, 0xA0...0xBF)
  case 0xED: (length, second) = (3, 0x80...0x9F)  // no surrogates
  case 0xE1...0xEF: length = 3
  case 0xF0: (length, second) = (4, 0x90...0xBF)
  case 0xF1...0xF3: length = 4
  case 0xF4: (length, second) = (4, 0x80...0x8F)
  default: return nil
  }
  guard left >= length && second.contains(p[1]) else { return nil }
  for i in 2..<max(length, 2) where p[i] & 0xC0 != 0x80 { return nil }
  return length
}
