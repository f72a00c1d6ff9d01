import CLayouts

/// Names and forms of a layer's tensors in the checkpoints of known models: a row of CLayouts/layouts.c. Never guessed: the same
/// shapes may mean different things.
public struct Layout: Equatable {
  let number: Int32
  private let table: UnsafePointer<moei_layout>

  /// Number as in moe_layout.
  public init?(rawValue: Int32) {
    guard let table = moei_layout_at(rawValue) else { return nil }
    number = rawValue
    self.table = table
  }

  public static func == (a: Layout, b: Layout) -> Bool { a.number == b.number }

  /// Every parameter by its own name.
  public var isLibmoe: Bool { number == 0 }
  /// As the header calls it.
  public var name: UnsafePointer<CChar> { table.pointee.name }
  var isForLoadingOnly: Bool { table.pointee.flags & Int32(MOEI_LOADING_ONLY) != 0 }
  /// Whether experts without parameters may follow those of the names.
  var holdsIdentities: Bool { table.pointee.flags & Int32(MOEI_IDENTITIES) != 0 }

  /// What may stand before the layer's number; the first is what is written.
  func start(_ index: Int) -> UnsafePointer<CChar>? {
    let all = table.pointee.starts
    switch index {
    case 0: return all.0
    case 1: return all.1
    case 2: return all.2
    default: return nil
    }
  }
  /// What stands behind it.
  var end: UnsafePointer<CChar> { table.pointee.end }

  /// Whether a name without its beginning is one of the layer's.
  func isOwn(_ name: UnsafePointer<CChar>) -> Bool {
    let all = table.pointee.parts
    guard let first = all.0 else { return true }
    return begins(name, with: first) || begins(name, with: all.1) || begins(name, with: all.2)
      || begins(name, with: all.3)
  }

  private func begins(_ name: UnsafePointer<CChar>, with part: UnsafePointer<CChar>?) -> Bool {
    part.map { text(name, after: $0) != nil } ?? false
  }

  /// The forms that a file may have; the first that fits the layer is what is written. libmoe's own is in no table.
  func form(_ index: Int) -> LayoutForm? {
    let all = table.pointee.forms
    let form = index == 0 ? all.0 : all.1
    if index > 1 || form.rules == nil { return nil }
    return LayoutForm(rules: form.rules, count: Int(form.count))
  }
}

/// The rules of a layout, or of one of two.
struct LayoutForm {
  private let rules: UnsafePointer<moei_rule>
  let count: Int

  init(rules: UnsafePointer<moei_rule>, count: Int) {
    self.rules = rules
    self.count = count
  }

  subscript(index: Int) -> TensorRule { TensorRule(rules[index]) }
}

/// What stands before a layer's own names.
public enum LayerPlace {
  /// Nothing.
  case bare
  /// What the layout says, with the layer's number.
  case number(Int)
  /// Text of the caller's.
  case prefix(UnsafePointer<CChar>)
}
