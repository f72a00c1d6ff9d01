import CMoE
import MoE

/// A struct of the caller's whose fields have bounds of their own; FieldBounds.swift has those of each.
protocol Bounded {
  func requireBounds(_ check: Bounds) throws(Fault)
}

extension Bounded {
  func requireBounds(_ check: Bounds) throws(Fault) {}
}

/// Checks of single fields, in the words of the headers.
struct Bounds {
  /// What fields are said to belong to. Those of a config go by their own names.
  private let owner: StaticString
  private let point: StaticString

  /// Of the argument of that name.
  init(_ name: StaticString) {
    let isConfig = compareText(cText(name), cText("config")) == 0
    owner = isConfig ? "" : name
    point = isConfig ? "" : "."
  }

  func integer<I: FixedWidthInteger>(_ value: I, _ name: StaticString, _ least: Int, _ most: Int) throws(Fault) {
    let value = Int(value)
    if value < least { throw .invalid("\(owner)\(point)\(name) = \(value) is below \(least)") }
    if value > most { throw .invalid("\(owner)\(point)\(name) = \(value) exceeds \(most)") }
  }

  func below(_ value: UInt64, _ name: StaticString, bits: Int) throws(Fault) {
    if value >> bits != 0 { throw .invalid("\(owner)\(point)\(name) = \(value) is not below 2^\(bits)") }
  }

  /// 0 or 1
  func flag(_ value: Int32, _ name: StaticString) throws(Fault) { try integer(value, name, 0, 1) }

  func zero(_ value: Int32, _ name: StaticString) throws(Fault) {
    if value != 0 { throw .invalid("\(owner)\(point)\(name) = \(Int(value)) is not 0") }
  }

  func word(_ value: Int32, _ name: StaticString, of type: StaticString, last: Int32) throws(Fault) {
    if value >= 0 && value <= last { return }
    throw .invalid("\(owner)\(point)\(name) = \(Int(value)) is not a \(type): 0 to \(Int(last))")
  }

  func sum(_ value: Int32, _ name: StaticString, of type: StaticString, _ all: Int32) throws(Fault) {
    if value & ~all != 0 { throw .invalid("\(owner)\(point)\(name) = \(Int(value)) is not a sum of \(type)") }
  }

  func number<F: BinaryFloatingPoint>(_ value: F, _ name: StaticString, atLeast least: Double) throws(Fault) {
    let value = Double(value)
    if value >= least && value.isFinite { return }
    throw .invalid("\(owner)\(point)\(name) = \(value) is not a number of at least \(least)")
  }

  func number(_ value: Double, _ name: StaticString, above least: Double) throws(Fault) {
    if value > least && value.isFinite { return }
    throw .invalid("\(owner)\(point)\(name) = \(value) is not a number above \(least)")
  }

  func finite(_ value: Double, _ name: StaticString) throws(Fault) {
    if !value.isFinite { throw .invalid("\(owner)\(point)\(name) = \(value) is not finite") }
  }

  /// [0, 1)
  func share<F: BinaryFloatingPoint>(_ value: F, _ name: StaticString) throws(Fault) {
    if value >= 0 && value < 1 { return }
    throw .invalid("\(owner)\(point)\(name) = \(Double(value)) is not in [0, 1)")
  }

  /// [0, 1]
  func fraction<F: BinaryFloatingPoint>(_ value: F, _ name: StaticString) throws(Fault) {
    if value >= 0 && value <= 1 { return }
    throw .invalid("\(owner)\(point)\(name) = \(Double(value)) is not in [0, 1]")
  }
}
