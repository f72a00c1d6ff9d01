/// How one matrix of a model is to be kept, by what its owner asks for and what the file has.
struct MatrixChoice {
  var wanted = Layer.Preparation.none
  /// With exactly the file's numbers.
  var code: PanelCode?

  /// nil where it stays as it is.
  func form(in context: ContextPointer) -> PanelForm? {
    if wanted.isStored { return code.map { .keeping($0, times: wanted.storedTokens) } }
    return wanted.form.flatMap { $0.isRead(in: context) ? $0 : nil }
  }

  /// Where tokens cannot become the same for all.
  var weightOnly: PanelForm? { wanted.isStored ? code.map { .keeping($0, times: .floats) } : nil }

  /// Packed in a form. `type`: what its values are; those that stand in a file beside blocks are rounded to none.
  func source(_ form: PanelForm, _ type: ElementType) -> PanelSource {
    wanted.isStored ? PanelSource(form: form, isStored: code != nil) : PanelSource(form: form, type: type)
  }
}

extension PanelForm {
  /// Of a code, times such tokens where it has that.
  static func keeping(_ code: PanelCode, times tokens: BlockTokens) -> PanelForm {
    var found = PanelForm.f32
    var number: Int32 = 1
    while let preparation = Layer.Preparation(rawValue: number) {
      number += 1
      guard let form = preparation.form, case .blocks(code, times: let own) = form.contents else { continue }
      if own == tokens { return form }
      if own == .floats { found = form }
    }
    return found
  }
}

/// The choices of a group's matrices.
struct GroupChoices {
  var gate = MatrixChoice()
  var up = MatrixChoice()
  var down = MatrixChoice()

  subscript(matrix: PreparedWeights.Matrix) -> MatrixChoice {
    get {
      switch matrix {
      case .gate: gate
      case .up: up
      case .down: down
      }
    }
    set {
      switch matrix {
      case .gate: gate = newValue
      case .up: up = newValue
      case .down: down = newValue
      }
    }
  }

  /// What its matrices become; nil where all stay as they are. One that would stay goes with the others as elements.
  func sources(_ group: ExpertGroup, in context: ContextPointer) -> GroupSources? {
    let up = group.linear ? down : up
    let gate = group.gated ? gate : up
    let forms = (gate.form(in: context), up.form(in: context), down.form(in: context))
    guard let first = forms.0 ?? forms.1 ?? forms.2 else { return nil }
    let hasBlocks = (forms.0?.isFrozen ?? false) || (forms.1?.isFrozen ?? false) || (forms.2?.isFrozen ?? false)
    let rest: PanelForm = hasBlocks ? .f32 : .keeping(group.weights)
    let tokens = first.tokens
    let agree =
      tokens == (forms.0 ?? rest).tokens && tokens == (forms.1 ?? rest).tokens
      && tokens == (forms.2 ?? rest).tokens
    /// Where not all can be multiplied by the same tokens, those that a file has are for floats.
    func source(_ choice: MatrixChoice, _ form: PanelForm?) -> PanelSource {
      choice.source((agree ? nil : choice.weightOnly) ?? form ?? rest, group.weights)
    }
    return GroupSources(gate: source(gate, forms.0), up: source(up, forms.1), down: source(down, forms.2))
  }
}

/// How a group's matrices are packed while they are read.
struct GroupSources {
  let gate: PanelSource
  let up: PanelSource
  let down: PanelSource

  var forms: MatrixForms { MatrixForms(gate: gate.form, up: up.form, down: down.form) }

  subscript(matrix: PreparedWeights.Matrix) -> PanelSource {
    switch matrix {
    case .gate: gate
    case .up: up
    case .down: down
    }
  }
}

/// Those of a layer's groups; nil of such as are not packed.
struct LayerSources {
  var routed: GroupSources?
  var shared: GroupSources?

  subscript(group: ExpertGroup) -> GroupSources? { group.isShared ? shared : routed }

  var forms: LayerForms {
    var forms = LayerForms()
    (forms.routed, forms.shared) = (routed?.forms, shared?.forms)
    return forms
  }
}
