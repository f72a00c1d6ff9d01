import CShims

/// A model's own parameters; those of the ffn's belong to their layers.
struct ModelParameters {
  /// Once in a model.
  enum Role: Int {
    case embedding  // [V,H]
    case positions  // [P,H]
    case normWeight  // [H]
    case normBias  // [H]
    case output  // [V,H]
    case logitBias  // [V]

    static var count: Int { 6 }
  }

  /// Once in each layer.
  enum LayerRole: Int {
    case norm1Weight  // [H]
    case norm1Bias  // [H]
    case qkvWeight  // [queries + keys + values + gates, H]
    case qkvBias  // [queries + keys + values + gates]
    case queryNorm  // [D], or [heads D]
    case keyNorm  // [D], or [kv_heads D]
    case sinks  // [heads]
    // With latent attention, in place of those of qkv.
    case queryDownWeight  // [Q,H]
    case queryDownBias  // [Q]
    case queryDownNorm  // [Q]
    case queryUpWeight  // [heads D, Q or H]
    case latentDownWeight  // [L + R, H]
    case latentDownBias  // [L + R]
    case latentNorm  // [L]
    case latentUpWeight  // [heads (D - R + Dv), L]
    case outputWeight  // [H, heads Dv]
    case outputBias  // [H]
    case norm2Weight  // [H]
    case norm2Bias  // [H]

    static var count: Int { 19 }

    /// Of random numbers; those that a model has had for longer keep theirs, so that it begins as it did.
    var stream: UInt8 {
      switch self {
      case .norm1Weight, .norm1Bias, .qkvWeight, .qkvBias, .queryNorm, .keyNorm: UInt8(rawValue)
      case .outputWeight: 6
      case .outputBias: 7
      case .norm2Weight: 8
      case .norm2Bias: 9
      case .sinks: 10
      case .queryDownWeight: 11
      case .queryUpWeight: 12
      case .latentDownWeight: 13
      case .latentUpWeight: 14
      case .queryDownBias, .queryDownNorm, .latentDownBias, .latentNorm: 15  // nothing is drawn
      }
    }
  }

  private let slots: ParameterSlots
  private let layers: Int

  static var nameSize: Int { 64 }

  init(_ arena: inout Arena, _ c: ModelConfiguration) {
    layers = c.layers
    slots = ParameterSlots(&arena, count: Role.count + c.layers * LayerRole.count, nameSize: Self.nameSize)
  }

  /// Once, before anything else.
  func clear() { slots.clear() }

  // MARK: places

  private enum Place {
    case own(Role)
    case ofLayer(Int, LayerRole)

    func spec(_ c: ModelConfiguration) -> ParameterSpec? {
      switch self {
      case .own(let role): role.spec(c)
      case .ofLayer(_, let role): role.spec(c)
      }
    }

    /// Whether it is the matrix of one product of tokens. That from latents to heads is many small ones.
    func multipliesTokens(_ c: ModelConfiguration) -> Bool {
      switch self {
      case .own(let role): role == (c.tiedOutput ? .embedding : .output)
      case .ofLayer(_, let role):
        switch role {
        case .qkvWeight, .queryDownWeight, .queryUpWeight, .latentDownWeight, .outputWeight: true
        default: false
        }
      }
    }
  }

  /// In the order of the list in moe_model.h: what comes in, the layers, what goes out.
  func slot(_ role: Role) -> Int {
    role.rawValue < Role.normWeight.rawValue ? role.rawValue : role.rawValue + layers * LayerRole.count
  }
  func slot(_ n: Int, _ role: LayerRole) -> Int {
    Role.normWeight.rawValue + n * LayerRole.count + role.rawValue
  }

  private func place(_ slot: Int) -> Place {
    let behind = slot - Role.normWeight.rawValue
    if behind < 0 { return .own(Role(rawValue: slot)!) }
    let (n, role) = behind.quotientAndRemainder(dividingBy: LayerRole.count)
    if n < layers { return .ofLayer(n, LayerRole(rawValue: role)!) }
    return .own(Role(rawValue: slot - layers * LayerRole.count)!)
  }

  subscript(role: Role) -> Parameter? { slots[slot(role)] }
  subscript(n: Int, role: LayerRole) -> Parameter? { slots[slot(n, role)] }

  // MARK: lists

  var count: Int { slots.listedCount }
  func parameter(_ index: Int) -> Parameter { slots.parameter(index) }
  func slot(listed index: Int) -> Int { slots.slot(listed: index) }
  /// Of layer N, what follows all layers.
  func comes(_ index: Int, beforeLayer n: Int) -> Bool { slots.slot(listed: index) < slot(n, .norm1Weight) }

  func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator) {
    slots.bind(slots.slot(listed: index), data: data, grad: grad, allocator: allocator)
  }

  func freeze(_ index: Int, allocator: Allocator) { slots.freeze(slots.slot(listed: index), allocator) }

  /// Whether anything of layer n is trained, its ffn aside.
  func trains(_ n: Int) -> Bool {
    for raw in 0..<LayerRole.count where self[n, LayerRole(rawValue: raw)!]?.isTrained ?? false { return true }
    return false
  }

  func zeroGrad(in context: ContextPointer) { slots.zeroGrad(in: context) }

  // MARK: packed copies

  var slotCount: Int { slots.count }
  /// Inputs of the matrix in a slot, if tokens are multiplied by it.
  func packedInputs(_ slot: Int, _ c: ModelConfiguration) -> Int? {
    place(slot).multipliesTokens(c) ? slots[slot]?.shape.1 : nil
  }

  /// Packs each matrix that tokens are multiplied by, and in few bits the embedding, or lets go of the copies. On an error some are packed.
  func prepare(
    _ form: PanelForm?, _ calibration: CalibrationPointer?, _ c: ModelConfiguration, in context: ContextPointer
  ) throws(Fault) {
    let allocator = context.pointee.allocator
    for slot in 0..<slots.count {
      let multiplies = place(slot).multipliesTokens(c)
      guard let parameter = slots[slot], multiplies || slot == self.slot(.embedding) else { continue }
      var packed: PanelMatrixPointer?
      if let form, multiplies || form.isFrozen {
        packed = try .create(
          parameter, form.keeping(parameter.type, amongWeightsOf: c.weights), calibration?.pointee.own(slot),
          in: context)
      }
      slots.replacePanels(slot, packed, allocator: allocator)
    }
  }

  /// Of a parameter that is about to be read: memory for panels in these forms, which are nobody's copy; or, nil, for its values.
  /// Tokens are looked up in few bits, and not in panels of elements.
  func makeRoom(_ index: Int, _ forms: RowForms?, in context: ContextPointer) throws(Fault) {
    let (slot, allocator) = (slots.slot(listed: index), context.pointee.allocator)
    let keeps = forms.map { !$0.isFrozen && isEmbedding(index) } ?? true
    if keeps { try slots.allocate(slot, allocator) }
    var packed: PanelMatrixPointer?
    if let forms { packed = try .room(slots[slot]!, forms, in: context) }
    slots.replacePanels(slot, packed, allocator: allocator)
    if !keeps { slots.release(slot, allocator) }
  }

  /// Once it is read: `form` is that of one whose values had to be there first.
  func finish(
    _ index: Int, _ form: PanelForm?, _ calibration: CalibrationPointer?, in context: ContextPointer
  ) throws(Fault) {
    let (slot, allocator) = (slots.slot(listed: index), context.pointee.allocator)
    if let form {
      let packed = try PanelMatrixPointer.create(slots[slot]!, form, calibration?.pointee.own(slot), in: context)
      slots.replacePanels(slot, packed, allocator: allocator)
      if form.isFrozen || !isEmbedding(index) { slots.release(slot, allocator) }
    } else if let own = slots[slot], !own.isReleased {
      own.panels?.takeSample(of: own, context.kernels)
    }
  }

  func isEmbedding(_ index: Int) -> Bool { slots.slot(listed: index) == slot(.embedding) }

  /// The form of a copy whose values differ from the parameters', but those in few bits.
  var changedValues: PanelForm? {
    for index in 0..<count {
      let own = parameter(index)
      guard let forms = own.panels?.pointee.forms, !forms.isFrozen else { continue }
      if let form = forms.changing(own.type) { return form }
    }
    return nil
  }

  /// Refuses packed copies of other values.
  func requirePackedValues(_ kernels: UnsafePointer<moei_kernels>) throws(Fault) {
    for index in 0..<count { try parameter(index).requirePackedValues(kernels) }
  }

  var packings: Int { slots.packings }
  func allocateGradients(in context: ContextPointer) throws(Fault) { try slots.allocateGradients(in: context) }

  /// Whether products with the matrices of both layers take the same memory.
  func takeAlike(_ n: Int, _ other: Int) -> Bool {
    for raw in 0..<LayerRole.count {
      let role = LayerRole(rawValue: raw)!
      if self[n, role]?.panels?.pointee.forms.tokens != self[other, role]?.panels?.pointee.forms.tokens { return false }
    }
    return true
  }

  /// Whether number `index` of the list is the matrix of a product of tokens.
  func multiplies(_ index: Int, _ c: ModelConfiguration) -> Bool {
    place(slots.slot(listed: index)).multipliesTokens(c)
  }

  /// Panels that lie somewhere, for number `index` of the list; where there are no values beside them nothing else is kept of it.
  func takePanels(_ index: Int, _ panels: PackedMatrices, releases: Bool, _ allocator: Allocator) throws(Fault) {
    let slot = slots.slot(listed: index)
    slots.replacePanels(slot, try .place(slots[slot]!, panels, allocator), allocator: allocator)
    if releases { slots.release(slot, allocator) }
  }

  // MARK: life

  func allocate(_ c: ModelConfiguration, allocator: Allocator) throws(Fault) {
    for slot in 0..<slots.count {
      let place = place(slot)
      guard let spec = place.spec(c) else { continue }
      let use = ParameterSlots.Use(isTrained: c.trainable, isUnallocated: !c.allocates)
      try slots.add(slot, spec, use, allocator) { text in
        if case .ofLayer(let n, _) = place { Self.append(n, to: &text) }
      }
    }
  }

  static func append(_ layer: Int, to text: inout TextBuffer) {
    text.append("layers.")
    text.append(layer)
    text.append(".")
  }

  /// Memory for the values of number `index` of the list, where there is none.
  func allocate(_ index: Int, _ allocator: Allocator) throws(Fault) {
    try slots.allocate(slots.slot(listed: index), allocator)
  }

  func free(allocator: Allocator) { slots.free(allocator) }

  /// Gradients are 0.
  func initialise(_ c: ModelConfiguration, in context: ContextPointer) {
    zeroGrad(in: context)
    for index in 0..<count {
      let place = place(slots.slot(listed: index))
      guard let spec = place.spec(c) else { continue }
      let (seed, stream) =
        switch place {
        case .own(let role): (c.seed, UInt8(role.rawValue))
        case .ofLayer(let n, let role): (c.seed(ofLayer: n), role.stream)
        }
      let random = Random(kernels: context.kernels, seed: seed, stream: stream, step: 0)
      parameter(index).fill(spec.initial, random, from: 0)
    }
  }
}

// Normal embeddings, Xavier's uniform or normal projections, norms 1, biases 0 (include/moe_model.h).

extension ModelParameters.Role {
  /// nil where the configuration asks for none.
  fileprivate func spec(_ c: ModelConfiguration) -> ParameterSpec? {
    let (v, h) = (c.vocabulary, c.hidden)
    let embeddings = ParameterSpec.Initial.normal(c.initDeviation ?? 0.02)
    switch self {
    case .embedding: return v > 0 ? .matrix("embed.weight", v, h, embeddings).stored(as: c.embeddings) : nil
    case .positions: return c.positions > 0 ? .matrix("positions.weight", c.positions, h, embeddings) : nil
    case .normWeight: return c.finalNorm ? .vector("norm.weight", h, .value(1)) : nil
    case .normBias: return c.finalNorm && c.normBias ? .vector("norm.bias", h, .value(0)) : nil
    case .output: return v > 0 && !c.tiedOutput ? c.projection("output.weight", v, h) : nil
    case .logitBias: return c.logitBias ? .vector("output.bias", v, .value(0)) : nil
    }
  }
}

extension ModelParameters.LayerRole {
  fileprivate func spec(_ c: ModelConfiguration) -> ParameterSpec? {
    let (h, hasNorms) = (c.hidden, c.normPlace != .none)
    switch self {
    case .norm1Weight: return hasNorms ? .vector("norm1.weight", h, .value(1)) : nil
    case .norm1Bias: return hasNorms && c.normBias ? .vector("norm1.bias", h, .value(0)) : nil
    case .qkvWeight: return c.latent == nil ? c.projection("attention.qkv.weight", c.projected, h) : nil
    case .qkvBias:
      return c.latent == nil && c.qkvBias ? .vector("attention.qkv.bias", c.projected, .value(0)) : nil
    case .queryNorm: return c.norm("attention.q_norm.weight", c.queries)
    case .keyNorm: return c.norm("attention.k_norm.weight", c.keys)
    case .sinks: return c.sinks ? .vector("attention.sinks", c.heads, .value(0)) : nil
    case .queryDownWeight, .queryDownBias, .queryDownNorm, .queryUpWeight, .latentDownWeight, .latentDownBias,
      .latentNorm, .latentUpWeight:
      return c.latent == nil ? nil : latentSpec(c, LatentSizes(c))
    case .outputWeight: return c.projection("attention.output.weight", h, c.outputs)
    case .outputBias: return c.outputBias ? .vector("attention.output.bias", h, .value(0)) : nil
    case .norm2Weight: return hasNorms ? .vector("norm2.weight", h, .value(1)) : nil
    case .norm2Bias: return hasNorms && c.normBias ? .vector("norm2.bias", h, .value(0)) : nil
    }
  }
}

extension ModelParameters.LayerRole {
  private func latentSpec(_ c: ModelConfiguration, _ sizes: LatentSizes) -> ParameterSpec? {
    let (h, rank) = (c.hidden, sizes.latent.queryRank)
    switch self {
    case .queryDownWeight: return rank.map { c.projection("attention.q_a.weight", $0, h) }
    case .queryDownBias: return c.qkvBias ? rank.map { .vector("attention.q_a.bias", $0, .value(0)) } : nil
    case .queryDownNorm: return rank.map { .vector("attention.q_a_norm.weight", $0, .value(1)) }
    case .queryUpWeight: return c.projection("attention.q_b.weight", sizes.queries, rank ?? h)
    case .latentDownWeight: return c.projection("attention.kv_a.weight", sizes.row, h)
    case .latentDownBias: return c.qkvBias ? .vector("attention.kv_a.bias", sizes.row, .value(0)) : nil
    case .latentNorm: return .vector("attention.kv_a_norm.weight", sizes.rank, .value(1))
    case .latentUpWeight: return c.projection("attention.kv_b.weight", sizes.expanded, sizes.rank)
    default: return nil
    }
  }
}

extension ModelConfiguration {
  /// Of queries or keys, which together are `width`.
  fileprivate func norm(_ name: StaticString, _ width: Int) -> ParameterSpec? {
    queryKeyNorm.hasWeights ? .vector(name, queryKeyNorm == .whole ? width : headSize, .value(1)) : nil
  }

  fileprivate func projection(_ name: StaticString, _ outputs: Int, _ inputs: Int) -> ParameterSpec {
    let xavier = (6 / Double(outputs + inputs)).squareRoot()
    let initial = initDeviation.map { ParameterSpec.Initial.normal($0) } ?? .uniform(xavier)
    return ParameterSpec.matrix(name, outputs, inputs, initial).stored(as: weights)
  }
}
