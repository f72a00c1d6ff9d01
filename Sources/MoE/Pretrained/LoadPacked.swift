import CShims

// A folder that PackedOutgoing wrote: panels are mapped and multiplied where they are, everything else is copied.

extension UnsafeMutablePointer where Pointee == Model {
  /// Gives a model the folder's weights; of routed experts so much is in memory as the limit says, nil: all are mapped. After an error
  /// the model's weights are partly the folder's.
  public func loadPacked(
    _ source: PretrainedSource, _ shapes: TensorRows.Shapes, type: ElementType, residentLimit: ResidentLimit?,
    _ progress: Progress
  ) throws(Fault) {
    if pointee.origin?.panels != nil {
      throw .badState("the model's weights are mapped from a folder already; read this one into a new model")
    }
    let allocator = pointee.context.pointee.allocator
    // Of the model's own: it stays mapped for as long as the model is there.
    let checkpoint = try source.openMapped()
    let loading = PackedLoading(pointee, checkpoint.pointee)
    var origin: ModelOrigin
    do throws(Fault) {
      do throws(Fault) { try loading.check() } catch { throw error.inFolder(source.path) }
      origin = try ModelOrigin(source, shapes, type, norms: 0)
    } catch {
      checkpoint.free()
      throw error
    }
    // From now on panels may be in use, even after an error.
    origin.panels = checkpoint
    pointee.origin?.free(allocator)
    pointee.origin = origin
    try pointee.takePanels(loading, residentLimit)
    try loading.copy(progress)
    if pointee.isTrainable { try pointee.allocateGradients() }
  }
}

extension Model {
  /// Refuses a folder whose files are not this model's, as far as their headers tell. The model needs no memory for that.
  public func requireFit(packed source: PretrainedSource) throws(Fault) {
    do throws(Fault) {
      try PackedLoading(self, source.checkpoint.pointee).check()
    } catch {
      throw error.inFolder(source.path)
    }
  }
}

/// A folder's tensors on their way into a model.
struct PackedLoading {
  private let model: Model
  private let checkpoint: Checkpoint

  init(_ model: Model, _ checkpoint: Checkpoint) { (self.model, self.checkpoint) = (model, checkpoint) }

  // MARK: tensors

  /// NAME.packed.FORM, and the form's word.
  private func packed(_ parameter: Parameter) -> (index: Int, word: UnsafePointer<CChar>)? {
    withText {
      $0.append(parameter.name)
      $0.append(PanelForm.mark)
    } body: { start in
      let index = checkpoint.all.firstIndex(notBefore: start)
      guard index < checkpoint.count, let word = text(checkpoint[index].name, after: start) else { return nil }
      return (index, word)
    }
  }

  /// Of `check`ed files.
  func panels(_ index: Int) -> PackedMatrices? {
    let parameter = model.parameter(index)
    guard let (tensor, word) = packed(parameter), let forms = RowForms(word: word, of: parameter),
      let bytes = forms.bytes(of: parameter), let start = try? checkpoint.data(checkpoint[tensor])
    else { return nil }
    return PackedMatrices(forms: forms, panels: start + first(index, bytes), bytes: bytes)
  }

  /// Where what is here of a parameter begins in its tensor, of which other ranks may have experts before: one has so many bytes.
  private func first(_ index: Int, _ bytes: Int) -> Int {
    model.spreadExperts(index).map { bytes / model.parameter(index).shape.0 * $0.first } ?? 0
  }

  /// Where they are in the files.
  func place(_ index: Int) -> FilePlace? {
    guard let panels = panels(index), let (tensor, _) = packed(model.parameter(index)) else { return nil }
    let stored = checkpoint[tensor]
    return FilePlace(input: checkpoint.input(stored.file), offset: stored.offset, bytes: panels.bytes)
  }

  /// Whether the files have a parameter as it is, too.
  func hasValues(_ index: Int) -> Bool { checkpoint.find(model.parameter(index).name) != nil }

  // MARK: checks

  /// Whether the files have what the model has, and nothing else.
  func check() throws(Fault) {
    try checkpoint.requireUnchanged()
    try checkpoint.requireAllNamed()
    let allocator = model.context.pointee.allocator
    let used = try UsedTensors(checkpoint, allocator)
    defer { used.free(allocator) }
    for index in 0..<model.parameterCount {
      let parameter = model.parameter(index)
      let (plain, packed) = (checkpoint.find(parameter.name), packed(parameter))
      if plain == nil && packed == nil { throw checkpoint.missingOfConfig(parameter.name) }
      if let plain {
        try check(checkpoint[plain], parameter, index)
        used.note(plain)
      }
      if let packed {
        try check(checkpoint[packed.index], packed.word, parameter, index, isAlone: plain == nil)
        used.note(packed.index)
      }
    }
    if let left = used.firstUnused {
      throw .invalid("\(left.name): a model with this config.json has no such parameter")
    }
  }

  private func check(_ tensor: StoredTensor, _ parameter: Parameter, _ index: Int) throws(Fault) {
    if tensor.type != StoredType(parameter.type) {
      throw .invalid(
        "\(tensor.name): \(tensor.typeName) in the file, but the model's are \(StoredType(parameter.type).name)")
    }
    var shape = parameter.storedShape
    if let spread = model.spreadExperts(index) { shape = shape.with(extent: spread.all, in: 0) }
    if tensor.shape != shape { throw .invalid("\(tensor.name): \(tensor.shape) in the file, \(shape) by config.json") }
  }

  private func check(
    _ tensor: StoredTensor, _ word: UnsafePointer<CChar>, _ parameter: Parameter, _ index: Int, isAlone: Bool
  ) throws(Fault) {
    if !model.isPackable(model.list[index], .stored) {
      throw .invalid("\(tensor.name): no matrix that tokens are multiplied by")
    }
    guard let forms = RowForms(word: word, of: parameter) else {
      throw .invalid("\(tensor.name): this version of libmoe knows no form \(word); take a newer one, or convert again")
    }
    // Tokens are looked up in panels of few bits alone.
    if isAlone && !forms.isFrozen && model.isEmbedding(index) { throw checkpoint.missingOfConfig(parameter.name) }
    if !forms.areRead(in: model.context) {
      throw .badState(
        "\(tensor.name): the products of this context are not libmoe's own (MOE_MATMUL_NATIVE) and read no packed weights"
      )
    }
    try forms.require(parameter.inputs, inputsOfNamed: parameter.name)
    var bytes = forms.bytes(of: parameter) ?? 0
    if let spread = model.spreadExperts(index) { bytes = bytes / parameter.shape.0 &* spread.all }
    if tensor.type != .u8 || tensor.shape.rank != 1 || tensor.bytes != OutgoingTensor.filledUp(bytes) {
      throw .invalid("\(tensor.name): \(tensor.typeName) of \(tensor.shape) is not \(bytes) bytes of panels, filled up")
    }
  }

  // MARK: copies

  func copy(_ progress: Progress) throws(Fault) {
    let context = model.context
    var progress = progress
    progress.total = 0
    for index in 0..<model.parameterCount {
      progress.total += checkpoint.tensor(model.parameter(index).name)?.bytes ?? 0
    }
    try progress.add(0, in: context)
    for index in 0..<model.parameterCount {
      let parameter = model.parameter(index)
      guard let tensor = checkpoint.tensor(parameter.name) else { continue }
      guard let data = parameter.data else { throw .badState("\(parameter.name) has no memory") }
      try checkpoint.read(tensor, from: first(index, parameter.bytes), count: parameter.bytes, to: data)
      try progress.add(tensor.bytes, in: context)
    }
  }
}

extension Model {
  fileprivate func isEmbedding(_ index: Int) -> Bool {
    guard case .own(let own) = list[index] else { return false }
    return parameters.isEmbedding(own)
  }
}

extension Parameter {
  /// Of the matrices that it is.
  fileprivate var inputs: Int { rank == 3 ? shape.2 : shape.1 }
}

extension RowForms {
  /// Of matrices of experts all rows have one form.
  fileprivate init?(word: UnsafePointer<CChar>, of parameter: Parameter) {
    self.init(word: word, panels: parameter.rank == 3 ? 0 : chunks(of: parameter.shape.0))
  }

  /// Of all of a parameter's matrices; nil where that does not fit in 63 bits.
  fileprivate func bytes(of parameter: Parameter) -> Int? {
    let (a, b, c) = parameter.shape
    return parameter.rank == 3 ? self[0].bytes(a, rows: b, depth: c) : bytes(before: chunks(of: a), b)
  }
}

extension Model {
  /// Multiplies by these panels from now on, which stay where they are for as long as the model is there.
  fileprivate func takePanels(_ loading: PackedLoading, _ residentLimit: ResidentLimit?) throws(Fault) {
    let allocator = context.pointee.allocator
    for index in 0..<parameterCount {
      guard case .own(let own) = list[index] else { continue }
      if loading.hasValues(index) { try parameters.allocate(own, allocator) }
      guard let panels = loading.panels(index) else { continue }
      try parameters.takePanels(own, panels, releases: !loading.hasValues(index), allocator)
    }
    for n in 0..<configuration.layers {
      do throws(Fault) {
        try feedForwards[n]?.pointee.takePanels(
          { own in list.index(ofLayer: n, own).flatMap { loading.panels($0) } },
          residentLimit: configuration.isMoE(n) ? residentLimit : nil,
          place: { own in list.index(ofLayer: n, own).flatMap { loading.place($0) } })
      } catch {
        throw error.inLayer(n)
      }
    }
  }
}
