// C strings, as names of tensors and files come.

/// Negative, 0 or positive: the order of their bytes.
public func compareText(_ a: UnsafePointer<CChar>, _ b: UnsafePointer<CChar>) -> Int {
  var i = 0
  while a[i] != 0 && a[i] == b[i] { i += 1 }
  return Int(UInt8(bitPattern: a[i])) - Int(UInt8(bitPattern: b[i]))
}

public func textLength(_ text: UnsafePointer<CChar>) -> Int {
  var length = 0
  while text[length] != 0 { length += 1 }
  return length
}

/// What follows `prefix`, or nil where `text` does not begin with it.
func text(_ text: UnsafePointer<CChar>, after prefix: UnsafePointer<CChar>) -> UnsafePointer<CChar>? {
  var i = 0
  while prefix[i] != 0 {
    if text[i] != prefix[i] { return nil }
    i += 1
  }
  return text + i
}

/// Whether `text` ends so.
func hasEnd(_ text: UnsafePointer<CChar>, _ end: UnsafePointer<CChar>) -> Bool {
  let (length, endLength) = (textLength(text), textLength(end))
  return length >= endLength && compareText(text + length - endLength, end) == 0
}

/// Whether `part` is anywhere in `text`.
func hasPart(_ whole: UnsafePointer<CChar>, _ part: UnsafePointer<CChar>) -> Bool {
  var i = 0
  while whole[i] != 0 {
    if text(whole + i, after: part) != nil { return true }
    i += 1
  }
  return false
}

/// A literal as a C string: static memory.
public func cText(_ text: StaticString) -> UnsafePointer<CChar> {
  UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
}

/// Puts a text together on the stack, cut off at 255 bytes, and hands it over.
func withText<R, E: Error>(
  _ write: (inout TextBuffer) -> Void, body: (UnsafePointer<CChar>) throws(E) -> R
) throws(E) -> R {
  // Typed errors do not pass through withUnsafeTemporaryAllocation.
  var result: Result<R, E>?
  withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { memory in
    var text = TextBuffer(memory.baseAddress!, capacity: memory.count)
    write(&text)
    do throws(E) {
      result = .success(try body(memory.baseAddress!))
    } catch {
      result = .failure(error)
    }
  }
  return try result!.get()
}

func text(_ text: UnsafePointer<CChar>, begins start: StaticString) -> Bool {
  for i in 0..<start.utf8CodeUnitCount where UInt8(bitPattern: text[i]) != start.utf8Start[i] { return false }
  return true
}
