/// The forms in which a group's matrices are packed: each has its own, but tokens become the same for all of them, since
/// activations pass from one to the next. Where there is no gate, or no up, its form is that of another.
struct MatrixForms: Equatable {
  private let numbers: (gate: FormNumber, up: FormNumber, down: FormNumber)

  var gate: PanelForm { numbers.gate.form }
  var up: PanelForm { numbers.up.form }
  var down: PanelForm { numbers.down.form }

  init(_ form: PanelForm) { self.init(gate: form, up: form, down: form) }

  init(gate: PanelForm, up: PanelForm, down: PanelForm) {
    numbers = (FormNumber(gate), FormNumber(up), FormNumber(down))
  }

  static func == (a: MatrixForms, b: MatrixForms) -> Bool { a.numbers == b.numbers }

  subscript(matrix: PreparedWeights.Matrix) -> PanelForm {
    switch matrix {
    case .gate: gate
    case .up: up
    case .down: down
    }
  }

  var tokens: PanelForm.Tokens { down.tokens }
  /// What becomes of tokens that are multiplied as floats.
  var precision: PrecisionKind { down.precision }

  /// Whether any is of few bits: then nothing trains the group's matrices.
  var isFrozen: Bool { gate.isFrozen || up.isFrozen || down.isFrozen }

  /// One by which forward computes something else than backward would, with weights of that type.
  func changing(_ weights: ElementType) -> PanelForm? {
    if gate.changesValues(of: weights) { return gate }
    if up.changesValues(of: weights) { return up }
    return down.changesValues(of: weights) ? down : nil
  }

  /// Refuses sizes that a form cannot hold, and forms that do not go together.
  func require(_ group: ExpertGroup) throws(Fault) {
    if group.linear { return try down.require(group.hidden, inputsOf: "an expert's matrix by hidden_size") }
    try gate.require(group.hidden, inputsOf: "an expert's matrix by hidden_size")
    try up.require(group.hidden, inputsOf: "an expert's matrix by hidden_size")
    try down.require(group.intermediate, inputsOf: "an expert's matrix by intermediate_size")
    if gate.tokens != down.tokens { throw misfit(gate) }
    if up.tokens != down.tokens { throw misfit(up) }
  }

  private func misfit(_ form: PanelForm) -> Fault {
    .invalid(
      "one expert's matrices cannot be \(form.constant) and \(down.constant): tokens that go through both become \(form.tokens.text) for the one and \(down.tokens.text) for the other; take two weight-only forms, or two of the same kind of MOE_PREPARED_..._A8 or _A16"
    )
  }
}

extension PanelForm.Tokens {
  fileprivate var text: StaticString {
    switch self {
    case .floats: "float32"
    case .halves: "bfloat16"
    case .blockHalves: "bfloat16 beside blocks"
    case .integers: "integers with a scale for 32 features"
    case .rowIntegers: "integers with a scale for a row"
    }
  }
}

/// Those of a layer's groups; nil where the weights are read as they are.
struct LayerForms: Equatable {
  var routed: MatrixForms?
  var shared: MatrixForms?

  init() {}

  init(_ form: PanelForm) {
    routed = MatrixForms(form)
    shared = routed
  }

  subscript(group: ExpertGroup) -> MatrixForms? {
    get { group.isShared ? shared : routed }
    set { if group.isShared { shared = newValue } else { routed = newValue } }
  }

  var isEmpty: Bool { routed == nil && shared == nil }

  /// Those of groups that nothing trains.
  var frozen: LayerForms {
    var own = LayerForms()
    if routed?.isFrozen ?? false { own.routed = routed }
    if shared?.isFrozen ?? false { own.shared = shared }
    return own
  }
}

extension Configuration {
  /// Refuses forms that cannot hold the experts' matrices.
  func require(_ forms: LayerForms) throws(Fault) {
    for index in 0..<groupCount where groups[index].multiplies { try forms[groups[index]]?.require(groups[index]) }
  }
}
