/// How one of a model's own matrices is packed, by the tensors that it is made of.
struct OwnPacking {
  /// Rows of the parameter that a tensor holds, up to where the next ones begin.
  private struct Stretch {
    var first = 0
    var code: PanelCode?
  }

  var wanted = Layer.Preparation.none
  private var stretches = InlineArray<5, Stretch>(repeating: Stretch())
  private var count = 0
  /// Whether each begins with a panel, and there are no more of them than we can note.
  private var isWhole = true
  /// nil where it is not packed.
  private(set) var forms: RowForms?

  init() {}

  /// Whether its panels are made one by one of a tensor's rows. Otherwise all of it is there before.
  var isByPanels: Bool { forms != nil && isWhole }

  mutating func add(_ entry: FamilyEntry, _ place: StoredPlace) {
    let code = wanted.isStored ? entry.code(place) : nil
    let (one, other) = entry.places.stretches
    add(Stretch(first: one.lowerBound, code: code))
    if let other { add(Stretch(first: other.lowerBound, code: code)) }
  }

  private mutating func add(_ stretch: Stretch) {
    isWhole = isWhole && stretch.first % chunkWidth == 0 && count < stretches.count
    if !isWhole { return }
    var place = count
    while place > 0 && stretches[place - 1].first > stretch.first {
      stretches[place] = stretches[place - 1]
      place -= 1
    }
    stretches[place] = stretch
    count += 1
  }

  /// Once all tensors are known.
  mutating func resolve(_ parameter: Parameter, _ c: ModelConfiguration, _ context: ContextPointer) throws(Fault) {
    if wanted.isStored {
      forms = isWhole ? storedForms() : nil
    } else if let form = MatrixChoice(wanted: wanted).form(in: context) {
      forms = RowForms(form.keeping(parameter.type, amongWeightsOf: c.weights))
    }
    try forms?.require(parameter.shape.1, inputsOfNamed: parameter.name)
  }

  private func storedForms() -> RowForms? {
    var (hasCode, agree) = (false, true)
    for i in 0..<count {
      if stretches[i].code != nil { hasCode = true }
      if form(i, times: wanted.storedTokens).tokens != form(0, times: wanted.storedTokens).tokens { agree = false }
    }
    if !hasCode { return nil }
    let tokens = agree ? wanted.storedTokens : .floats
    var forms = RowForms(form(0, times: tokens))
    for i in 1..<max(count, 1) where form(i, times: tokens) != form(i - 1, times: tokens) {
      if !forms.hasRoom { return nil }
      forms.append(form(i, times: tokens), from: stretches[i].first / chunkWidth)
    }
    return forms
  }

  /// Beside blocks others are floats.
  private func form(_ stretch: Int, times tokens: PanelForm.BlockTokens) -> PanelForm {
    stretches[stretch].code.map { .keeping($0, times: tokens) } ?? .f32
  }

  /// Of a panel; `type`: of the parameter.
  func source(_ panel: Int, _ type: ElementType) -> PanelSource {
    let form = forms?[panel] ?? .f32
    return wanted.isStored
      ? PanelSource(form: form, isStored: form.isFrozen) : PanelSource(form: form, type: type)
  }
}

extension FamilyEntry {
  /// The code that has exactly a tensor's numbers; nil where none has, or panels would need several scales where there is one.
  func code(_ place: StoredPlace) -> PanelCode? {
    guard !isTransposed, let code = place.code(columns: columns) else { return nil }
    let (one, other) = places.stretches
    return sharesScales(place, one) && other.map({ sharesScales(place, $0) }) ?? true ? code : nil
  }

  private func sharesScales(_ place: StoredPlace, _ stretch: Range<Int>) -> Bool {
    for p in stretch {
      let first = p - (p - stretch.lowerBound) % chunkWidth
      if !place.shareScales(places.row(at: first), places.row(at: p)) { return false }
    }
    return true
  }
}
