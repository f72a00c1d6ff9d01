// A name that a checkpoint does not have is answered with what it has.

extension Checkpoint {
  public func missing(_ name: UnsafePointer<CChar>) -> Fault {
    if let tensor = underOtherPrefix(name) {
      return .invalid(
        "\(name): the checkpoint has no such tensor, but under another prefix it has \(tensor.name)")
    }
    if let tensor = nearest(name) {
      return .invalid("\(name): the checkpoint has no such tensor; the nearest name there is \(tensor.name)")
    }
    return .invalid("\(name): the checkpoint has no such tensor, nor one of a similar name, among its \(count)")
  }

  /// Of a tensor that a model needs as config.json describes it.
  func missingOfConfig(_ name: UnsafePointer<CChar>) -> Fault {
    missing(name).reworded {
      "\($0); the model that config.json describes has it: correct that, or download the folder again"
    }
  }

  /// One whose name is the same from the layer's number on, or in its last two parts where there is no number.
  private func underOtherPrefix(_ name: UnsafePointer<CChar>) -> StoredTensor? {
    let length = textLength(name)
    let tail = length - significantTail(name, length)
    if tail == 0 { return nil }
    for index in 0..<count {
      let other = self[index].name
      let otherLength = textLength(other)
      if otherLength < tail { continue }
      let begin = otherLength - tail
      if begin > 0 && other[begin - 1] != CChar(UInt8(ascii: ".")) { continue }
      if compareText(other + begin, name + (length - tail)) == 0 { return self[index] }
    }
    return nil
  }

  /// Where the parts begin that say which tensor it is, whatever stands before: "layers.3.mlp.gate.weight".
  private func significantTail(_ name: UnsafePointer<CChar>, _ length: Int) -> Int {
    var (before, part, number, lastButOne) = (0, 0, -1, 0)
    for i in 0...length where i == length || name[i] == CChar(UInt8(ascii: ".")) {
      if number < 0 && isNumber(name + part, i - part) { number = before }
      if i == length { lastButOne = before }
      (before, part) = (part, i + 1)
    }
    return number >= 0 ? number : lastButOne
  }

  private func isNumber(_ text: UnsafePointer<CChar>, _ length: Int) -> Bool {
    for i in 0..<length where text[i] < CChar(UInt8(ascii: "0")) || text[i] > CChar(UInt8(ascii: "9")) { return false }
    return length > 0
  }

  /// The one that differs in the shortest stretch, where that is less than half of it.
  private func nearest(_ name: UnsafePointer<CChar>) -> StoredTensor? {
    let length = textLength(name)
    var best: (index: Int, distance: Int)?
    for index in 0..<count {
      let other = self[index].name
      let otherLength = textLength(other)
      let most = min(length, otherLength)
      var first = 0
      while first < most && name[first] == other[first] { first += 1 }
      var last = 0
      while last < most - first && name[length - 1 - last] == other[otherLength - 1 - last] { last += 1 }
      let distance = max(length, otherLength) - first - last
      if 2 * distance < max(length, otherLength) && distance < best?.distance ?? .max { best = (index, distance) }
    }
    return best.map { self[$0.index] }
  }
}
