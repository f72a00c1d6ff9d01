/// How matrices are kept whose names a pattern has.
public struct PreparedPart {
  /// '*' stands for any characters, or none.
  public let pattern: UnsafePointer<CChar>
  public let preparation: Layer.Preparation

  public init(pattern: UnsafePointer<CChar>, preparation: Layer.Preparation) {
    (self.pattern, self.preparation) = (pattern, preparation)
  }
}

/// How the matrices of a model are kept: by the first pattern that has their name, or as all others are.
public struct PartForms {
  private let parts: UnsafePointer<PreparedPart>?
  public let count: Int
  public let others: Layer.Preparation

  public init(_ others: Layer.Preparation, parts: UnsafePointer<PreparedPart>?, count: Int) {
    (self.others, self.parts, self.count) = (others, parts, count)
  }

  /// Tells them from others.
  public func add(to hash: inout Hash) {
    func add(_ preparation: Layer.Preparation) { hash.add(UInt64(UInt32(bitPattern: preparation.rawValue))) }
    add(others)
    for part in UnsafeBufferPointer(start: parts, count: count) {
      add(part.preparation)
      hash.add(UnsafeRawBufferPointer(start: part.pattern, count: textLength(part.pattern)))
    }
  }

  func preparation(of name: UnsafePointer<CChar>) -> Layer.Preparation {
    for index in 0..<count where matches(name, parts![index].pattern) { return parts![index].preparation }
    return others
  }

  /// Hands over what any matrix may be kept as.
  private func contains(_ isOne: (Layer.Preparation) -> Bool) -> Bool {
    for index in 0..<count where isOne(parts![index].preparation) { return true }
    return isOne(others)
  }

  /// Whether some would be packed by products of that context.
  public func packs(in context: ContextPointer) -> Bool {
    contains { $0.isStored || $0.form?.isRead(in: context) ?? false }
  }
  public var keepsStored: Bool { contains { $0.isStored } }
}

extension Model {
  /// Refuses patterns that no matrix's name has.
  public func require(_ parts: UnsafePointer<PreparedPart>, count: Int) throws(Fault) {
    for number in 0..<count {
      var (isFound, example) = (false, UnsafePointer<CChar>?.none)
      for index in 0..<parameterCount where isPackable(list[index], parts[number].preparation) {
        let name = parameter(index).name
        if example == nil { example = name }
        if matches(name, parts[number].pattern) { isFound = true }
      }
      if isFound { continue }
      throw .invalid(
        "options.prepared_parts[\(number)].pattern = \(parts[number].pattern): no matrix that may be kept so has such a name, as \(example ?? cText("layers.0.attention.qkv.weight")) has: moe_model_parameter lists all of them"
      )
    }
  }

  /// Whether a parameter can be kept so: a matrix that tokens are multiplied by, and in few bits an embedding.
  func isPackable(_ place: ParameterList.Place, _ preparation: Layer.Preparation) -> Bool {
    switch place {
    case .own(let own):
      parameters.multiplies(own, configuration)
        || preparation.isFrozen && parameters.isEmbedding(own)
    case .feedForward(let n, let own): feedForwards[n]!.pointee.multiplies(own)
    }
  }
}

/// Whether a text is what a pattern says.
private func matches(_ text: UnsafePointer<CChar>, _ pattern: UnsafePointer<CChar>) -> Bool {
  var (t, p) = (0, 0)
  // Behind the last '*', and how much of the text it stands for.
  var star: (pattern: Int, text: Int)?
  while text[t] != 0 {
    if pattern[p] == CChar(UInt8(ascii: "*")) {
      p += 1
      star = (p, t)
    } else if pattern[p] == text[t] {
      (t, p) = (t + 1, p + 1)
    } else if let last = star {
      star = (last.pattern, last.text + 1)
      (t, p) = (last.text + 1, last.pattern)
    } else {
      return false
    }
  }
  while pattern[p] == CChar(UInt8(ascii: "*")) { p += 1 }
  return pattern[p] == 0
}
