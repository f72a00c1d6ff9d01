import CLayouts

/// How one tensor of a checkpoint, or one for each expert, holds one or two parameters of a layer. For each expert there is
/// a matrix [rows, columns] of the parameter, a bias having one column.
struct TensorRule {
  /// How the experts' matrices make up tensors. Numbers and meaning as in layouts.h.
  enum Listing: Int32 {
    case plain = 0
    case row
    case numbered
    case single
    case stacked
    case flattened
    case mxfp4
    case table
    case refused
  }

  let name: UnsafePointer<CChar>
  /// Behind the expert's number; of one that has none, behind the name.
  let end: UnsafePointer<CChar>?
  let listing: Listing
  let first: UnsafePointer<CChar>
  /// Of the same shape as the first.
  let second: UnsafePointer<CChar>?
  /// The rows of both in turn, in place of all of the first, then all of the second.
  let interleaved: Bool
  /// [columns, rows] in place of [rows, columns].
  let transposed: Bool
  /// Whether layers of this layout may do without.
  let isOptional: Bool

  init(_ rule: moei_rule) {
    name = rule.name
    end = rule.end
    listing = Listing(rawValue: rule.listing)!
    first = rule.first
    second = rule.second
    interleaved = rule.flags & Int32(MOEI_INTERLEAVED) != 0
    transposed = rule.flags & Int32(MOEI_TRANSPOSED) != 0
    isOptional = rule.flags & Int32(MOEI_OPTIONAL) != 0
  }

  /// A parameter as it is, under its own name.
  init(of parameter: Parameter) {
    name = parameter.name
    end = nil
    listing = .plain
    first = parameter.name
    second = nil
    interleaved = false
    transposed = false
    isOptional = false
  }

  /// Whether it is about a parameter, not about a tensor that is compared or refused.
  var holdsParameters: Bool { listing != .table && listing != .refused }

  func holds(_ parameter: UnsafePointer<CChar>) -> Bool {
    holdsParameters && (compareText(first, parameter) == 0 || second.map { compareText($0, parameter) == 0 } ?? false)
  }

  /// Of which expert a tensor is that is called so, behind what the names begin with; 0 where experts have none of their own,
  /// nil where it is not one of this rule's.
  func expert(of own: UnsafePointer<CChar>) -> Int? {
    guard let rest = text(own, after: name) else { return nil }
    switch listing {
    case .numbered:
      guard let (number, behind) = leadingNumber(rest) else { return nil }
      return compareText(behind, end!) == 0 ? number : nil
    case .single: return compareText(rest, end!) == 0 ? 0 : nil
    case .mxfp4: return compareText(rest, cText("_blocks")) == 0 || compareText(rest, cText("_scales")) == 0 ? 0 : nil
    case .plain, .row, .stacked, .flattened, .table, .refused: return rest[0] == 0 ? 0 : nil
    }
  }

  /// The name of the rule's tensor; `part` is one of MXFP4's two.
  func append(to text: inout TextBuffer, expert: Int, part: StaticString) {
    text.append(name)
    if listing == .numbered { text.append(expert) }
    if let end { text.append(end) }
    if listing == .mxfp4 { text.append(part) }
  }
}

/// A number as names have it, of at most nine digits, without zeros before it; and what follows.
func leadingNumber(_ text: UnsafePointer<CChar>) -> (number: Int, behind: UnsafePointer<CChar>)? {
  var (number, i) = (0, 0)
  while text[i] >= CChar(UInt8(ascii: "0")), text[i] <= CChar(UInt8(ascii: "9")) {
    if i == 9 || (i == 1 && number == 0) { return nil }
    number = 10 * number + Int(text[i]) - Int(UInt8(ascii: "0"))
    i += 1
  }
  return i == 0 ? nil : (number, text + i)
}

/// The matrices of a rule, one for each expert, as its tensors hold them.
struct FusedMatrices {
  let first: Parameter
  let second: Parameter?
  let interleaved: Bool
  let transposed: Bool
  /// Experts that are here, and rows and columns of one parameter's matrix.
  let experts: Int
  let rows: Int
  let columns: Int
  /// How many experts the tensors have, and which of them is the first that is here: over ranks there are others.
  let stored: (experts: Int, first: Int)

  /// `byExpert`: a parameter as it is, too, is seen as its experts' matrices. `spread`: of experts of which other ranks have some, how
  /// many all have, and the first that is here.
  init(
    _ rule: TensorRule, _ first: Parameter, _ second: Parameter?, byExpert: Bool = false,
    spread: (all: Int, first: Int)? = nil
  ) {
    self.first = first
    self.second = second
    interleaved = rule.interleaved
    transposed = rule.transposed
    if rule.listing == .row || (rule.listing == .plain && !byExpert) {
      (experts, rows, columns) = (1, first.count, 1)
    } else {
      (experts, rows, columns) = first.shape
    }
    stored = spread.map { ($0.all, $0.first) } ?? (experts, 0)
  }

  var parts: Int { second == nil ? 1 : 2 }
  /// Rows of both parameters.
  var fusedRows: Int { parts * rows }
  /// Elements of one expert's matrix.
  var elements: Int { fusedRows * columns }
  func part(_ index: Int) -> Parameter { index == 0 ? first : second! }

  /// Where row r of a part is among the rows of both.
  func fusedRow(_ part: Int, _ r: Int) -> Int { interleaved ? parts * r + part : part * rows + r }

  /// Dimensions of the rule's tensor; of one of them, where experts have their own.
  func shape(_ listing: TensorRule.Listing) -> StoredShape {
    let isBias = first.rank == 2
    let (a, b) = transposed ? (columns, fusedRows) : (fusedRows, columns)
    switch listing {
    case .plain, .table, .refused: return first.storedShape
    case .row: return StoredShape(1, first.count)
    case .numbered, .single: return isBias ? StoredShape(fusedRows) : StoredShape(a, b)
    case .stacked, .mxfp4:
      return isBias ? StoredShape(stored.experts, fusedRows) : StoredShape(stored.experts, a, b)
    case .flattened: return StoredShape(stored.experts * a, b)
    }
  }
}
