/// A model as its family's files have it: which tensors hold which parameters.
struct FamilyTensors {
  let model: Model
  let family: Family
  let shapes: TensorRows.Shapes

  /// Of the files, one after the other.
  enum Part {
    case own(FamilyEntry)
    /// The MoE block of a layer.
    case block(Int, LayerPointer)
  }

  /// What comes in, the layers, what goes out.
  func parts(_ body: (Part) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<family.ruleCount where !family.rule(index).isOfLayers && !family.rule(index).isOutside {
      try own(family.rule(index), 0, body)
    }
    for n in 0..<model.configuration.layers {
      for index in 0..<family.ruleCount where family.rule(index).isOfLayers { try own(family.rule(index), n, body) }
      if isMoE(n), let layer = model.layer(n) { try body(.block(n, layer)) }
    }
    for index in 0..<family.ruleCount where !family.rule(index).isOfLayers && family.rule(index).isOutside {
      try own(family.rule(index), 0, body)
    }
  }

  /// Where the model has a parameter for it.
  private func own(_ rule: FamilyRule, _ n: Int, _ body: (Part) throws(Fault) -> Void) throws(Fault) {
    let found = withText {
      rule.appendParameter(layer: n, to: &$0)
    } body: {
      model.find($0)
    }
    guard let found else { return }
    if rule.isRanked && !hasRank(n) || rule.isUnranked && hasRank(n) { return }
    // A layer's MoE block has parameters of the same names as a dense ffn.
    if rule.isOfLayers && isMoE(n) && rule.isOfFeedForward { return }
    try body(.own(try FamilyEntry(rule, model.parameter(found), found, layer: n, shapes)))
  }

  /// Whether layer n's queries come from a latent.
  private func hasRank(_ n: Int) -> Bool {
    withText {
      ModelParameters.append(n, to: &$0)
      $0.append("attention.q_a.weight")
    } body: {
      model.find($0) != nil
    }
  }

  func isMoE(_ n: Int) -> Bool { model.layer(n) != nil && model.configuration.isMoE(n) }

  // MARK: names

  func withName<R>(
    _ entry: FamilyEntry, _ body: (UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    try withText { (text: inout TextBuffer) in
      entry.rule.appendName(family, layer: entry.layer, to: &text)
    } body: { (name) throws(Fault) in
      try body(name)
    }
  }

  /// What the names of layer n's MoE block begin with.
  func withBlock<R>(
    _ n: Int, _ layout: Layout, _ body: (UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    try withText { (text: inout TextBuffer) in
      family.appendBlock(n, layout, to: &text)
    } body: { (prefix) throws(Fault) in
      try body(prefix)
    }
  }

  /// Whether the family's files hold every parameter of the model.
  func requireComplete() throws(Fault) {
    for index in 0..<model.parameterCount {
      let name = model.parameter(index).name
      if let (n, own) = layer(of: name), isMoE(n), text(own, after: cText("ffn.")) != nil { continue }
      var isHeld = false
      for rule in 0..<family.ruleCount where family.rule(rule).holds(name) { isHeld = true }
      if !isHeld {
        throw .invalid(
          "\(name): files of model_type \(family.name) have no tensor for this parameter of the model: make the model with moe_pretrained_config's configuration"
        )
      }
    }
  }

  private func layer(of name: UnsafePointer<CChar>) -> (Int, UnsafePointer<CChar>)? {
    guard let rest = text(name, after: cText("layers.")), let (n, behind) = leadingNumber(rest),
      let own = text(behind, after: cText(".")), n < model.configuration.layers
    else { return nil }
    return (n, own)
  }
}

extension Family {
  func appendBlock(_ n: Int, _ layout: Layout, to text: inout TextBuffer) {
    text.append(prefix)
    text.append(layer)
    text.append(n)
    text.append(layout.end)
  }
}

extension FamilyRule {
  /// Whether no layer does without it.
  var isOfEveryLayer: Bool { compareText(parameter, cText("layers.*.norm1.weight")) == 0 }
  var isOfFeedForward: Bool { text(parameter, after: cText("layers.*.ffn.")) != nil }

  /// Whether the model's parameter of that name is its.
  func holds(_ name: UnsafePointer<CChar>) -> Bool {
    FamilyRule(name: parameter, parameter: parameter).layer(of: name) != nil
  }
}

/// A tensor of a model's file, and the parameter that it is, or is part of.
struct FamilyEntry {
  let rule: FamilyRule
  let parameter: Parameter
  /// In the model's list.
  let index: Int
  let layer: Int
  let places: TensorRows
  /// Of the parameter.
  let rows: Int
  let columns: Int
  private let isVector: Bool

  init(
    _ rule: FamilyRule, _ parameter: Parameter, _ index: Int, layer: Int, _ shapes: TensorRows.Shapes
  ) throws(Fault) {
    (self.rule, self.parameter, self.index, self.layer) = (rule, parameter, index, layer)
    // The only expert of a dense ffn is a matrix, or a vector of biases, by itself.
    let (a, b, c) = parameter.shape
    rows = rule.isOfFeedForward ? b : a
    columns = rule.isOfFeedForward ? c : b
    isVector = parameter.rank == (rule.isOfFeedForward ? 2 : 1)
    places = TensorRows(rule, shapes, rows: rows)
    if !TensorRows.fits(rule, shapes, rows: rows) {
      throw .invalid(
        "\(parameter.name): \(rows) rows, which are not those of the configuration's heads: make the model with moe_pretrained_config's configuration"
      )
    }
  }

  var shape: StoredShape {
    switch rule.rows {
    case .latentKeys: StoredShape(places.heads, columns, places.count / places.heads)
    case .latentValues: StoredShape(places.heads, places.count / places.heads, columns)
    default: isVector ? StoredShape(places.count) : StoredShape(places.count, columns)
    }
  }
  /// Whether its numbers are the parameter's in the same order.
  var isStraight: Bool { places.isStraight && !rule.isFromZero }
  /// Whether a head's rows are the columns of what is stored.
  var isTransposed: Bool { rule.rows == .latentKeys }
}
