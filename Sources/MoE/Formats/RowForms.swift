/// The forms of a matrix's rows: one for all, or one for each of the parts that it is made of, which are whole panels. Tokens become
/// the same for all of them.
struct RowForms {
  private var numbers: InlineArray<4, FormNumber>  // mostParts
  private var ends = InlineArray<4, Int>(repeating: .max)  // panels up to there; those of the last have no end
  private var count = 1

  static var mostParts: Int { 4 }
  /// For another part.
  var hasRoom: Bool { count < Self.mostParts }

  init(_ form: PanelForm) { numbers = InlineArray(repeating: FormNumber(form)) }

  /// The same with another form from panel number `first` on, which is behind the parts that there are; there is room.
  mutating func append(_ form: PanelForm, from first: Int) {
    ends[count - 1] = first
    numbers[count] = FormNumber(form)
    count += 1
  }

  private func form(_ part: Int) -> PanelForm { numbers[part].form }

  private func part(of panel: Int) -> Int {
    var part = 0
    while panel >= ends[part] { part += 1 }
    return part
  }

  /// That of a panel.
  subscript(panel: Int) -> PanelForm { form(count == 1 ? 0 : part(of: panel)) }

  /// What lies before a panel, in bytes.
  func bytes(before panel: Int, _ depth: Int) -> Int {
    var (sum, first) = (0, 0)
    for part in 0..<count {
      let end = min(ends[part], panel)
      if end > first { sum += (end - first) * form(part).panelBytes(depth) }
      first = max(first, end)
    }
    return sum
  }

  /// Each part's form, and where it ends; nil of the last.
  func forEachPart(_ body: (PanelForm, Int?) -> Void) {
    for part in 0..<count { body(form(part), part + 1 < count ? ends[part] : nil) }
  }

  /// Whether products of such a context read all of them.
  func areRead(in context: ContextPointer) -> Bool {
    for part in 0..<count where !form(part).isRead(in: context) { return false }
    return true
  }

  /// Whether any are of few bits: then nothing trains the matrix.
  var isFrozen: Bool {
    for part in 0..<count where form(part).isFrozen { return true }
    return false
  }

  var tokens: PanelForm.Tokens { form(0).tokens }
  /// What becomes of tokens that are multiplied as floats.
  var precision: PrecisionKind { form(0).precision }

  /// One by which forward computes something else than backward would, with weights of that type.
  func changing(_ weights: ElementType) -> PanelForm? {
    for part in 0..<count where form(part).changesValues(of: weights) { return form(part) }
    return nil
  }

  func require(_ depth: Int, inputsOfNamed matrix: UnsafePointer<CChar>) throws(Fault) {
    for part in 0..<count {
      try form(part).require(depth, inputsOfNamed: matrix)
      if form(part).tokens == tokens { continue }
      throw .invalid(
        "\(matrix): rows in \(form(0).constant) and in \(form(part).constant) are not multiplied by the same tokens")
    }
  }
}
