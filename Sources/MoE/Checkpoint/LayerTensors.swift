import CShims

/// A layer in a layout: which tensors hold its parameters.
struct LayerTensors {
  let layer: Layer
  let layout: Layout
  let place: LayerPlace
  /// Which of the layout's beginnings the names have, and which of its forms the tensors.
  private var start = 0
  private var form = 0

  /// As they are written: the first beginning, and the first form that the layer fits.
  init(_ layer: Layer, _ layout: Layout, _ place: LayerPlace) {
    self.layer = layer
    self.layout = layout
    self.place = place
    if misfit(form: 0) != nil, layout.form(1) != nil, misfit(form: 1) == nil { form = 1 }
  }

  /// As a checkpoint has them, where it has some.
  init(_ layer: Layer, _ layout: Layout, _ place: LayerPlace, in checkpoint: Checkpoint) {
    self.init(layer, layout, place)
    if case .number = place {
      var index = 0
      while layout.start(index) != nil {
        start = index
        if isBeginning(in: checkpoint) { break }
        start = 0
        index += 1
      }
    }
    // Of two forms that the layer fits, that of which the checkpoint has more.
    if form == 0, layout.form(1) != nil, misfit(form: 1) == nil,
      count(form: 1, in: checkpoint) > count(form: 0, in: checkpoint)
    {
      form = 1
    }
  }

  /// A rule with the layer's parameters.
  struct Entry {
    let rule: TensorRule
    let matrices: FusedMatrices
    /// Tensors: one, or one for each expert.
    var count: Int { rule.listing == .numbered ? matrices.stored.experts : 1 }
    /// Whether each expert has a tensor of its own.
    var isNumbered: Bool { count > 1 || matrices.stored.experts == 1 }
  }

  // MARK: names

  /// What the names begin with.
  func begin(_ text: inout TextBuffer) {
    switch place {
    case .bare: break
    case .prefix(let prefix): text.append(prefix)
    case .number(let number):
      text.append(layout.start(start))
      text.append(number)
      text.append(layout.end)
    }
  }

  func withBeginning<R>(_ body: (UnsafePointer<CChar>) throws(Fault) -> R) throws(Fault) -> R {
    try withText { (text: inout TextBuffer) in
      begin(&text)
    } body: { (beginning) throws(Fault) in
      try body(beginning)
    }
  }

  /// The name of a rule's tensor; `part` is one of MXFP4's two.
  func withName<R>(
    _ rule: TensorRule, expert: Int, part: StaticString = "", _ body: (UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    try withText { (text: inout TextBuffer) in
      begin(&text)
      rule.append(to: &text, expert: expert, part: part)
    } body: { (name) throws(Fault) in
      try body(name)
    }
  }

  // MARK: rules

  var ruleCount: Int { layout.isLibmoe ? layer.parameterCount : layout.form(form)!.count }

  func rule(_ index: Int) -> TensorRule { rule(index, form: form) }

  private func rule(_ index: Int, form: Int) -> TensorRule {
    layout.isLibmoe ? TensorRule(of: layer.parameter(index)) : layout.form(form)![index]
  }

  /// Hands over the rules that hold the layer's parameters; it fits.
  func entries(_ body: (Entry) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<ruleCount {
      let rule = rule(index)
      if let entry = entry(rule) { try body(entry) }
    }
  }

  func entry(_ rule: TensorRule) -> Entry? {
    guard rule.holdsParameters, let first = parameter(rule.first) else { return nil }
    let second = rule.second.flatMap { parameter($0) }
    return Entry(rule: rule, matrices: FusedMatrices(rule, first, second, spread: layer.spreadExperts(of: first)))
  }

  /// The parameter of that name; of listed groups, of the first, for layouts where others have none.
  func parameter(_ name: UnsafePointer<CChar>) -> Parameter? {
    if let found = layer.parameter(named: name) { return found }
    guard layer.configuration.groupsAreListed, layout.holdsIdentities, let own = text(name, after: cText("experts."))
    else { return nil }
    for index in 0..<layer.parameterCount {
      let parameter = layer.parameter(index)
      if let rest = text(parameter.name, after: cText("experts.0.")), compareText(rest, own) == 0 { return parameter }
    }
    return nil
  }

  // MARK: whether layer and layout go together

  enum Misfit {
    case groups
    case lacks(UnsafePointer<CChar>)
    case sharedExperts(Int)
    case noTensor(UnsafePointer<CChar>)
  }

  private func misfit(form: Int) -> Misfit? {
    if layout.isLibmoe { return nil }
    if layer.configuration.groupsAreListed && !groupsFit { return .groups }
    let rules = layout.form(form)!
    for index in 0..<rules.count where rules[index].holdsParameters {
      let rule = rules[index]
      guard let first = parameter(rule.first) else {
        if rule.isOptional { continue }
        return .lacks(rule.first)
      }
      if let second = rule.second, parameter(second) == nil { return .lacks(second) }
      if rule.listing == .single && first.shape.0 != 1 { return .sharedExperts(first.shape.0) }
    }
    for index in 0..<layer.parameterCount {
      let name = layer.parameter(index).name
      var isThere = false
      for index in 0..<rules.count {
        let rule = rules[index]
        if rule.holds(name) || (layer.configuration.groupsAreListed && holdsOfGroup(rule, name)) { isThere = true }
      }
      if !isThere { return .noTensor(name) }
    }
    return nil
  }

  private func holdsOfGroup(_ rule: TensorRule, _ name: UnsafePointer<CChar>) -> Bool {
    rule.holdsParameters && parameter(rule.first).map { compareText($0.name, name) == 0 } ?? false
  }

  /// Experts with matrices, then identities.
  private var groupsFit: Bool {
    let c = layer.configuration
    if !layout.holdsIdentities { return false }
    for index in 1..<c.groupCount where !c.groups[index].isShared && c.groups[index].kind != .identity { return false }
    return c.groups[0].multiplies
  }

  func requireFit() throws(Fault) {
    switch misfit(form: form) {
    case nil: return
    case .groups where layout.holdsIdentities:
      throw .invalid("layout: \(layout.name) has expert_groups of experts with matrices, then identities alone")
    case .groups: throw .invalid("layout: the layer has expert_groups, which \(layout.name) cannot hold; LIBMOE can")
    case .lacks(let name):
      throw .invalid("layout: \(layout.name) has \(name), the layer does not: make the layer \(LayerOption.with(name))")
    case .sharedExperts(let count):
      throw .invalid(
        "layout: \(layout.name) has one shared expert, the layer \(count); one as wide as all computes the same")
    case .noTensor(let name):
      throw .invalid(
        """
        layout: \(layout.name) has no tensor for the layer's \(name): make the layer \(LayerOption.without(name)), or \
        take MOE_LAYOUT_LIBMOE, which holds every parameter
        """)
    }
  }

  // MARK: what a checkpoint has

  private func isBeginning(in checkpoint: Checkpoint) -> Bool {
    withText {
      begin(&$0)
    } body: {
      checkpoint.hasName(beginning: $0, of: layout)
    }
  }

  /// Rules whose first tensor is there with the layer's dimensions.
  private func count(form: Int, in checkpoint: Checkpoint) -> Int {
    var count = 0
    for index in 0..<layout.form(form)!.count {
      let rule = rule(index, form: form)
      guard !rule.isOptional, let entry = entry(rule) else { continue }
      let tensor = withText {
        begin(&$0)
        rule.append(to: &$0, expert: 0, part: "_blocks")
      } body: {
        checkpoint.tensor($0)
      }
      if let tensor, rule.listing == .mxfp4 || tensor.shape == entry.matrices.shape(rule.listing) { count += 1 }
    }
    return count
  }
}

extension Layer {
  func parameter(named name: UnsafePointer<CChar>) -> Parameter? {
    for index in 0..<parameterCount where compareText(parameter(index).name, name) == 0 { return parameter(index) }
    return nil
  }
}
