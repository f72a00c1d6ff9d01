import CLayouts

/// A family of models: a row of CLayouts/families.
public struct Family {
  public let table: UnsafePointer<moei_family>

  init(table: UnsafePointer<moei_family>) { self.table = table }

  public init?(rawValue: Int32) {
    guard let table = moei_family_at(rawValue) else { return nil }
    self.table = table
  }

  /// By model_type.
  public init?(named name: JSONText) {
    var number: Int32 = 0
    while let family = Family(rawValue: number) {
      if name == JSONText(family.name) {
        self = family
        return
      }
      number += 1
    }
    return nil
  }

  public var name: UnsafePointer<CChar> { table.pointee.model_type }
  /// Of its tensors' names, of those outside too.
  var prefix: UnsafePointer<CChar> { table.pointee.prefix }
  var outside: UnsafePointer<CChar> { table.pointee.outside }
  /// What stands before the layer's number.
  var layer: UnsafePointer<CChar> { table.pointee.layer ?? cText("layers.") }
  var ruleCount: Int { Int(table.pointee.tensor_count) }
  func rule(_ index: Int) -> FamilyRule { FamilyRule(table.pointee.tensors[index]) }

  /// The layouts that MoE blocks may have, the first of which is written.
  func layout(_ index: Int) -> Layout? {
    let all = table.pointee.layouts
    let number = index == 0 ? all.0 : index == 1 ? all.1 : 0
    return number == 0 ? nil : Layout(rawValue: number)
  }

  /// Whether a tensor of this name may be left.
  func leaves(_ name: UnsafePointer<CChar>) -> Bool {
    Self.matches(name, table.pointee.left) || Self.matches(name, moei_common_left())
  }

  private static func matches(
    _ name: UnsafePointer<CChar>, _ patterns: UnsafePointer<UnsafePointer<CChar>?>?
  ) -> Bool {
    guard var pattern = patterns else { return false }
    while let text = pattern.pointee {
      if matches(name, text) { return true }
      pattern += 1
    }
    return false
  }

  /// '*' stands at the beginning or at the end.
  private static func matches(_ name: UnsafePointer<CChar>, _ pattern: UnsafePointer<CChar>) -> Bool {
    let star = CChar(UInt8(ascii: "*"))
    if pattern[0] == star { return hasEnd(name, pattern + 1) }
    let length = textLength(pattern)
    for i in 0..<length {
      if pattern[i] == star { return true }
      if name[i] != pattern[i] { return false }
    }
    return name[length] == 0
  }
}

/// How a tensor beside the MoE blocks holds a parameter, or rows of one. Names with a '*' in them are those of every layer.
struct FamilyRule {
  /// Numbers as in families.h.
  enum Rows: Int32 {
    case all = 0
    case query, key, value, queryAndGate, heads, latent, latentKeys, latentValues
  }

  let name: UnsafePointer<CChar>
  let parameter: UnsafePointer<CChar>
  let rows: Rows
  private let flags: Int32

  init(_ row: moei_tensor) {
    (name, parameter, flags) = (row.name, row.parameter, row.flags)
    rows = Rows(rawValue: row.rows) ?? .all
  }

  /// A pattern of names alone.
  init(name: UnsafePointer<CChar>, parameter: UnsafePointer<CChar>) {
    (self.name, self.parameter, rows, flags) = (name, parameter, .all, 0)
  }

  var isTurned: Bool { flags & Int32(MOEI_TURNED) != 0 }
  var isFromZero: Bool { flags & Int32(MOEI_FROM_ZERO) != 0 }
  var isRanked: Bool { flags & Int32(MOEI_RANKED) != 0 }
  var isUnranked: Bool { flags & Int32(MOEI_UNRANKED) != 0 }
  var isOutside: Bool { flags & Int32(MOEI_OUTSIDE) != 0 }
  var mayBeTied: Bool { flags & Int32(MOEI_TIED) != 0 }

  /// Whether every layer has one.
  var isOfLayers: Bool {
    for i in 0..<textLength(name) where name[i] == Self.star { return true }
    return false
  }

  private static var star: CChar { CChar(UInt8(ascii: "*")) }

  /// Of the tensor, in layer `n`.
  func appendName(_ family: Family, layer n: Int, to text: inout TextBuffer) {
    text.append(isOutside ? family.outside : family.prefix)
    Self.append(name, n, to: &text)
  }

  func appendParameter(layer n: Int, to text: inout TextBuffer) { Self.append(parameter, n, to: &text) }

  private static func append(_ pattern: UnsafePointer<CChar>, _ n: Int, to text: inout TextBuffer) {
    for i in 0..<textLength(pattern) {
      if pattern[i] == star { text.append(n) } else { text.append(pattern + i, count: 1) }
    }
  }

  /// Of which layer a tensor is that is called so, behind the family's prefix; nil where it is not one of this rule's. 0 where layers
  /// have none of their own.
  func layer(of own: UnsafePointer<CChar>) -> Int? {
    let (star, length) = (Self.star, textLength(name))
    var (at, layer) = (own, 0)
    for i in 0..<length {
      if name[i] == star {
        guard let (number, behind) = leadingNumber(at) else { return nil }
        (layer, at) = (number, behind)
      } else {
        if at[0] != name[i] { return nil }
        at += 1
      }
    }
    return at[0] == 0 ? layer : nil
  }
}
