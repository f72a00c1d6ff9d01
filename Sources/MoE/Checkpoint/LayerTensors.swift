import CShims

/// A layer in a layout: which tensors hold its parameters.
struct LayerTensors {
  let layer: Layer
  let layout: Layout
  /// nil: names without a prefix.
  let number: Int?

  /// A rule with the layer's parameters.
  struct Entry {
    let rule: TensorRule
    let matrices: FusedMatrices
    /// Tensors: one, or one for each expert.
    var count: Int {
      if case .numbered = rule.listing { return matrices.experts }
      return 1
    }
    /// Whether each expert has a tensor of its own.
    var isNumbered: Bool { count > 1 || matrices.experts == 1 }
  }

  /// The name of a rule's tensor; `part` is one of MXFP4's two.
  func withName<R>(
    _ rule: TensorRule, expert: Int, part: StaticString = "", _ body: (UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    try withText { (text: inout TextBuffer) in
      layout.begin(&text, layer: number)
      text.append(rule.name)
      switch rule.listing {
      case .numbered(let end):
        text.append(expert)
        text.append(end)
      case .single(let end): text.append(end)
      case .mxfp4: text.append(part)
      case .plain, .stacked, .flattened: break
      }
    } body: { (name) throws(Fault) in
      try body(name)
    }
  }

  /// Hands over the rules that apply, after checking that layer and layout go together; `absent` gets the rules of
  /// parameters that the layer does not have.
  func entries(
    _ body: (Entry) throws(Fault) -> Void, absent: (TensorRule) throws(Fault) -> Void = { _ in }
  ) throws(Fault) {
    if layout != .libmoe && layer.configuration.groupsAreListed {
      throw .invalid("layout: the layer has expert_groups, which only MOE_LAYOUT_LIBMOE can hold")
    }
    var covered = 0
    try layout.rules(layer) { (rule) throws(Fault) in
      let first = layer.parameter(named: rule.first)
      let second = rule.second.flatMap { layer.parameter(named: $0) }
      guard let first else {
        if rule.isOptional { return try absent(rule) }
        throw .invalid("layout: it has \(rule.first), the layer does not")
      }
      if let name = rule.second, second == nil {
        throw .invalid("layout: it has \(name) beside \(rule.first), the layer does not")
      }
      let matrices = FusedMatrices(rule, first, second)
      if case .single = rule.listing, matrices.experts != 1 {
        throw .invalid(
          "layout: it has one shared expert, the layer \(matrices.experts); one as wide as all computes the same")
      }
      covered += matrices.parts
      try body(Entry(rule: rule, matrices: matrices))
    }
    if covered == layer.parameterCount { return }
    for index in 0..<layer.parameterCount {
      let parameter = layer.parameter(index)
      var isThere = false
      try layout.rules(layer) { (rule) throws(Fault) in
        if rule.names(parameter) { isThere = true }
      }
      if !isThere { throw .invalid("layout: it has no tensor for the layer's \(parameter.name)") }
    }
  }
}

extension TensorRule {
  fileprivate func names(_ parameter: Parameter) -> Bool {
    compareText(first, parameter.name) == 0 || second.map { compareText($0, parameter.name) == 0 } ?? false
  }
}

extension Layer {
  func parameter(named name: UnsafePointer<CChar>) -> Parameter? {
    for index in 0..<parameterCount where compareText(parameter(index).name, name) == 0 { return parameter(index) }
    return nil
  }
}
