import CLayouts

/// What a folder's tensors come to, by their names alone.
public struct Survey {
  /// Numbers in the tensors that a model reads: by what they are to it.
  public private(set) var embeddings = 0
  public private(set) var matrices = 0
  public private(set) var experts = 0  // of the matrices, those of routed experts
  public private(set) var others = 0
  public private(set) var bytes = 0
  public private(set) var left = 0
  /// Bytes of routed experts' panels, in a folder that has them.
  public private(set) var packedExperts = 0
  /// Of the weights by type.
  private var (f32, bf16, f16) = (0, 0, 0)

  /// So that no product of what follows overflows.
  private static var most: Int { 1 << 58 }

  public var all: Int { embeddings + matrices + others }

  /// Of which the files have most.
  public var type: ElementType { f32 > bf16 && f32 >= f16 ? .f32 : f16 > bf16 ? .f16 : .bf16 }

  /// `layers`: of the model by config.json. `names` gets those of the first tensors that it does not read.
  public init(
    _ source: PretrainedSource, layers: Int, names: inout TextBuffer
  ) throws(Fault) {
    let checkpoint = source.checkpoint.pointee
    try checkpoint.requireAllNamed()
    var found = LayerCount()
    var unknown: UnsafePointer<CChar>?
    for index in 0..<checkpoint.count {
      let tensor = checkpoint[index]
      let (use, n) = (source.names.use(of: tensor.name), source.names.layer(of: tensor.name))
      let isLeft = use == nil && source.names.leaves(tensor.name)
      let isFurther = source.names.isFurtherLayer(tensor.name, layers: layers)
      if let n { found.note(n, isOrdinary: use != nil || isLeft || !isFurther) }
      if let use, n ?? 0 < layers {
        try add(tensor, use)
        continue
      }
      if use == nil && !isLeft && !isFurther { unknown = unknown ?? tensor.name }
      if left < 8 {
        if left > 0 { names.append(", ") }
        names.append(tensor.name)
      } else if left == 8 {
        names.append(", ...")
      }
      left += 1
    }
    if found.count != layers {
      throw Fault.invalid(
        "config.json: num_hidden_layers = \(layers), but the files have \(found.count) layers: set it to that, or download the folder again"
      ).inFolder(source.path)
    }
    if let unknown {
      throw .invalid(
        """
        \(unknown): a model of model_type \(source.family.name) has no such tensor, and would compute without it; where that is \
        meant, take it out of the files
        """)
    }
  }

  /// Of a folder whose weights are in panels, and whose model has just been found to fit: the numbers are those of the model.
  public init(packed source: PretrainedSource, _ model: Model) {
    for index in 0..<model.parameterCount {
      let parameter = model.parameter(index)
      let isExpert = parameter.isOfMatrices && parameter.rank == 3 && hasPart(parameter.name, cText(".experts."))
      if compareText(parameter.name, cText("embed.weight")) == 0 {
        embeddings += parameter.count
      } else if parameter.rank > 1 && hasEnd(parameter.name, cText(".weight")) {
        matrices += parameter.count
        if isExpert { experts += parameter.count }
      } else {
        others += parameter.count
      }
    }
    for tensor in source.checkpoint.pointee.all {
      bytes += tensor.bytes
      if hasPart(tensor.name, cText(".experts.")) && hasPart(tensor.name, cText(PanelForm.mark)) {
        packedExperts += tensor.bytes
      }
    }
  }

  private mutating func add(_ tensor: StoredTensor, _ use: Family.Use) throws(Fault) {
    // Two numbers of MXFP4 are in a byte; scales are no numbers of the model.
    let isPacked = tensor.type == .u8 && tensor.quantised == nil
    let isQuantised = tensor.quantised != nil || tensor.type.block != nil
    if tensor.bytes > Self.most - bytes {
      throw .invalid("\(tensor.name): the files have more than \(Self.most) bytes: no model is that large")
    }
    let elements =
      isPacked
      ? 2 * tensor.bytes
      : isQuantised ? tensor.shape.elements ?? 0 : tensor.bytes / tensor.type.alignment
    if elements > Self.most - all {
      throw .invalid("\(tensor.name): the files have more than \(Self.most) weights: no model is that large")
    }
    bytes += tensor.bytes
    switch use {
    case .scales: return
    case .embedding: embeddings += elements
    case .expert:
      matrices += elements
      experts += elements
    case .matrix where tensor.shape.rank > 1: matrices += elements
    case .matrix, .other: others += elements
    }
    switch tensor.type {
    case _ where isQuantised: bf16 += 2 * elements
    case .f32: f32 += tensor.bytes
    case .f16: f16 += tensor.bytes
    case .bf16, .u8: bf16 += tensor.bytes
    default: break
    }
  }
}

/// How many layers the files have. Those that predict further tokens have tensors that no other layer has, and do not count. Names
/// come in their order, so that a layer's are side by side.
private struct LayerCount {
  private var before = 0
  private var last: (layer: Int, isOrdinary: Bool)?

  var count: Int { max(before, last.map { $0.isOrdinary ? $0.layer + 1 : 0 } ?? 0) }

  mutating func note(_ n: Int, isOrdinary: Bool) {
    if let last, last.layer == n {
      self.last = (n, last.isOrdinary && isOrdinary)
    } else {
      before = count
      last = (n, isOrdinary)
    }
  }
}

extension Family {
  /// What a tensor is to a model.
  enum Use: UInt8 {
    case embedding, matrix, expert, other, scales
  }

  /// Of a tensor of any layer; nil where no rule takes it.
  func use(of name: UnsafePointer<CChar>) -> Use? {
    for index in 0..<ruleCount {
      let rule = rule(index)
      guard let own = text(name, after: rule.isOutside ? outside : prefix), rule.layer(of: own) != nil else {
        continue
      }
      if compareText(rule.parameter, cText("embed.weight")) == 0 { return .embedding }
      return hasEnd(rule.parameter, cText(".weight")) ? .matrix : .other
    }
    guard let (_, behind) = numbered(name) else { return nil }
    for number in 0..<Int(MOEI_MOST_LAYOUTS) {
      if let layout = layout(number), let use = use(in: layout, behind) { return use }
    }
    return nil
  }

  /// The layer that a tensor is of; nil where its name has none.
  func layer(of name: UnsafePointer<CChar>) -> Int? { numbered(name)?.layer }

  private func numbered(_ name: UnsafePointer<CChar>) -> (layer: Int, behind: UnsafePointer<CChar>)? {
    guard let own = text(name, after: prefix), let rest = text(own, after: layer) else { return nil }
    return leadingNumber(rest).map { (layer: $0.0, behind: $0.1) }
  }

  /// `behind`: what follows the layer's number.
  private func use(in layout: Layout, _ behind: UnsafePointer<CChar>) -> Use? {
    guard let own = text(behind, after: layout.end) else { return nil }
    for index in 0..<2 {
      guard let form = layout.form(index) else { continue }
      for rule in 0..<form.count where form[rule].holdsParameters && form[rule].expert(of: own) != nil {
        return use(form[rule], own)
      }
    }
    return nil
  }

  private func use(_ rule: TensorRule, _ own: UnsafePointer<CChar>) -> Use {
    if rule.listing == .mxfp4 && hasEnd(own, cText("_scales")) { return .scales }
    if !hasEnd(rule.first, cText(".weight")) || hasPart(rule.first, cText("router.")) { return .other }
    return text(rule.first, after: cText("experts.")) != nil ? .expert : .matrix
  }
}
