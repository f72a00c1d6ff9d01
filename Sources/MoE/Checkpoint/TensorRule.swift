/// How one tensor of a checkpoint, or one for each expert, holds one or two parameters of a layer. For each expert there is
/// a matrix [rows, columns] of the parameter, a bias having one column.
struct TensorRule {
  /// How the experts' matrices make up tensors.
  enum Listing {
    /// The parameter as it is.
    case plain
    /// A tensor for each expert; this follows its number.
    case numbered(StaticString)
    /// A matrix, of the only expert; this follows the name.
    case single(StaticString)
    /// [E, rows, columns]
    case stacked
    /// [E * rows, columns]
    case flattened
    /// Two tensors of bytes, [E, rows, columns / 32, 16] and [E, rows, columns / 32]: name_blocks and name_scales
    case mxfp4
  }

  let name: UnsafePointer<CChar>
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

  init(
    _ name: StaticString, _ listing: Listing, _ first: StaticString, _ second: StaticString? = nil,
    interleaved: Bool = false, transposed: Bool = false, isOptional: Bool = false
  ) {
    self.name = cText(name)
    self.listing = listing
    self.first = cText(first)
    self.second = second.map { cText($0) }
    self.interleaved = interleaved
    self.transposed = transposed
    self.isOptional = isOptional
  }

  /// A parameter as it is, under its own name. Not an initialiser without a label: ordinary Swift would let literals become
  /// pointers that do not last.
  init(of parameter: Parameter) {
    name = parameter.name
    listing = .plain
    first = parameter.name
    second = nil
    interleaved = false
    transposed = false
    isOptional = false
  }
}

/// The matrices of a rule, one for each expert, as its tensors hold them.
struct FusedMatrices {
  let first: Parameter
  let second: Parameter?
  let interleaved: Bool
  let transposed: Bool
  /// Experts, and rows and columns of one parameter's matrix.
  let experts: Int
  let rows: Int
  let columns: Int

  /// `byExpert`: a parameter as it is, too, is seen as its experts' matrices.
  init(_ rule: TensorRule, _ first: Parameter, _ second: Parameter?, byExpert: Bool = false) {
    self.first = first
    self.second = second
    interleaved = rule.interleaved
    transposed = rule.transposed
    if case .plain = rule.listing, !byExpert {
      (experts, rows, columns) = (1, first.count, 1)
    } else {
      (experts, rows, columns) = first.shape
    }
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
    case .plain: return first.storedShape
    case .numbered, .single: return isBias ? StoredShape(fusedRows) : StoredShape(a, b)
    case .stacked, .mxfp4: return isBias ? StoredShape(experts, fusedRows) : StoredShape(experts, a, b)
    case .flattened: return StoredShape(experts * a, b)
    }
  }
}
