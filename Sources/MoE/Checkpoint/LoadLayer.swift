import CShims

extension Layer {
  /// Overwrites the parameters with a checkpoint's; on an error none of them.
  public func load(_ checkpoint: Checkpoint, _ layout: Layout, number: Int?) throws(Fault) {
    let loading = Loading(self, checkpoint, layout, number: number)
    try loading.check()
    try loading.tensors.entries { (entry) throws(Fault) in try loading.copy(entry) }
  }
}

/// A checkpoint's tensors on their way into a layer.
struct Loading {
  let tensors: LayerTensors
  let checkpoint: Checkpoint
  let kernels: UnsafePointer<moei_kernels>

  init(_ layer: Layer, _ checkpoint: Checkpoint, _ layout: Layout, number: Int?) {
    tensors = LayerTensors(layer: layer, layout: layout, number: number)
    self.checkpoint = checkpoint
    kernels = layer.context.kernels
  }

  // MARK: checks

  /// Whether the checkpoint has what the layer has, and nothing else for it.
  func check() throws(Fault) {
    try tensors.entries(
      { (entry) throws(Fault) in try check(entry) }, absent: { (rule) throws(Fault) in try requireAbsent(rule) })
    if tensors.layout == .libmoe { try requireNothingElse() }
  }

  private func check(_ entry: LayerTensors.Entry) throws(Fault) {
    for expert in 0..<entry.count { _ = try values(entry, expert) }
    if case .numbered = entry.rule.listing {
      try tensors.withName(entry.rule, expert: entry.count) { (name) throws(Fault) in
        if checkpoint.find(name) != nil {
          throw .invalid("\(name): the checkpoint has more experts than the layer's \(entry.count)")
        }
      }
    }
  }

  /// What the checkpoint has and the layer has not would be lost without a word.
  func requireAbsent(_ rule: TensorRule) throws(Fault) {
    try tensors.withName(rule, expert: 0, part: "_blocks") { (name) throws(Fault) in
      if checkpoint.find(name) != nil {
        throw .invalid("\(name): the checkpoint has it, the layer has no \(rule.first)")
      }
    }
  }

  /// The same for libmoe's own layout, whose rules are the layer's parameters.
  func requireNothingElse() throws(Fault) {
    try withText { (text: inout TextBuffer) in
      tensors.layout.begin(&text, layer: tensors.number)
    } body: { (begin) throws(Fault) in
      for index in 0..<checkpoint.count {
        let name = checkpoint[index].name
        guard let own = text(name, after: begin) else { continue }
        let isParameter =
          text(own, after: cText("router.")) != nil || text(own, after: cText("experts.")) != nil
          || text(own, after: cText("shared.")) != nil || text(own, after: cText("output.")) != nil
        if isParameter && tensors.layer.parameter(named: own) == nil {
          throw .invalid("\(name): the checkpoint has it, the layer has no \(own)")
        }
      }
    }
  }

  func values(_ entry: LayerTensors.Entry, _ expert: Int) throws(Fault) -> StoredValues {
    let shape = entry.matrices.shape(entry.rule.listing)
    if case .mxfp4 = entry.rule.listing { return try packedValues(entry, shape) }
    return try tensors.withName(entry.rule, expert: expert) { (name) throws(Fault) in
      let tensor = try find(name, shape)
      switch tensor.type {
      case .f32: return StoredValues(form: .f32, data: tensor.data)
      case .bf16: return StoredValues(form: .bf16, data: tensor.data)
      case .f16: return StoredValues(form: .f16, data: tensor.data)
      default: throw .invalid("\(name): \(tensor.type.name) is none of F32, F16 and BF16")
      }
    }
  }

  private func packedValues(_ entry: LayerTensors.Entry, _ shape: StoredShape) throws(Fault) -> StoredValues {
    if shape[2] % MXFP4.block != 0 {
      throw .invalid("layout: MXFP4 has blocks of \(MXFP4.block) numbers, and \(shape[2]) is no multiple")
    }
    let scalesShape = StoredShape(shape[0], shape[1], shape[2] / MXFP4.block)
    var blocksShape = scalesShape
    blocksShape.append(MXFP4.block / 2)
    let blocks = try bytes(entry.rule, "_blocks", blocksShape)
    let scales = try bytes(entry.rule, "_scales", scalesShape)
    return StoredValues(form: .mxfp4(scales: scales.assumingMemoryBound(to: UInt8.self)), data: blocks)
  }

  private func bytes(
    _ rule: TensorRule, _ part: StaticString, _ shape: StoredShape
  ) throws(Fault) -> UnsafeRawPointer {
    try tensors.withName(rule, expert: 0, part: part) { (name) throws(Fault) in
      let tensor = try find(name, shape)
      if tensor.type != .u8 { throw .invalid("\(name): \(tensor.type.name) is not U8") }
      return tensor.data
    }
  }

  private func find(_ name: UnsafePointer<CChar>, _ shape: StoredShape) throws(Fault) -> StoredTensor {
    guard let tensor = checkpoint.tensor(name) else { throw .invalid("\(name): the checkpoint has no such tensor") }
    if tensor.shape.rank != shape.rank {
      throw .invalid("\(name): \(tensor.shape.rank) dimensions in the checkpoint, \(shape.rank) in the layer")
    }
    for dimension in 0..<shape.rank where tensor.shape[dimension] != shape[dimension] {
      throw .invalid(
        "\(name): dimension \(dimension) is \(tensor.shape[dimension]) in the checkpoint, \(shape[dimension]) in the layer"
      )
    }
    return tensor
  }

  // MARK: copies

  func copy(_ entry: LayerTensors.Entry) throws(Fault) {
    let matrices = entry.matrices
    for expert in 0..<matrices.experts {
      let stored = try values(entry, entry.isNumbered ? expert : 0)
      for part in 0..<matrices.parts {
        matrices.copy(
          part, from: stored, at: entry.isNumbered ? 0 : expert * matrices.elements,
          to: ParameterValues(matrices.part(part), kernels), at: expert * matrices.rows * matrices.columns)
      }
    }
  }
}

extension FusedMatrices {
  /// One expert's matrix of one parameter, which begins at element `start` of what is stored together with the other's, to
  /// element `own` of `target` and what follows.
  func copy(
    _ part: Int, from stored: StoredValues, at start: Int, to target: ParameterValues, at own: Int
  ) {
    if parts == 1 && !transposed { return target.write(own, rows * columns, from: stored, start, stride: 1) }
    if !transposed {
      for r in 0..<rows {
        target.write(own + r * columns, columns, from: stored, start + fusedRow(part, r) * columns, stride: 1)
      }
      return
    }
    // Some columns at a time, so that what is read stays in the cache until its neighbours are wanted.
    let width = 64
    for first in stride(from: 0, to: columns, by: width) {
      for r in 0..<rows {
        target.write(
          own + r * columns + first, min(width, columns - first), from: stored,
          start + first * fusedRows + fusedRow(part, r), stride: fusedRows)
      }
    }
  }
}

/// A parameter's memory, of either type.
struct ParameterValues {
  private let data: UnsafeMutableRawPointer
  private let type: ElementType
  private let kernels: UnsafePointer<moei_kernels>

  init(_ parameter: Parameter, _ kernels: UnsafePointer<moei_kernels>) {
    self.init(parameter.data!, parameter.type, kernels)
  }

  init(_ data: UnsafeMutableRawPointer, _ type: ElementType, _ kernels: UnsafePointer<moei_kernels>) {
    self.data = data
    self.type = type
    self.kernels = kernels
  }

  /// So that the memory is the stack's.
  private static var stretch: Int { 256 }

  /// Elements place ..< place + count become those of `stored`, rounded where they must be.
  func write(_ place: Int, _ count: Int, from stored: StoredValues, _ first: Int, stride: Int) {
    switch (type, stored.form) {
    case (.f32, _):
      stored.read(first, stride: stride, count: count, to: data.assumingMemoryBound(to: Float.self) + place)
    case (.bf16, .bf16):
      let to = data.assumingMemoryBound(to: UInt16.self) + place
      let from = stored.data.assumingMemoryBound(to: UInt16.self) + first
      if stride == 1 { return to.update(from: from, count: count) }
      for i in 0..<count { to[i] = from[i * stride] }
    case (.bf16, _):
      withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.stretch) { values in
        for start in Swift.stride(from: 0, to: count, by: Self.stretch) {
          let some = min(Self.stretch, count - start)
          stored.read(first + start * stride, stride: stride, count: some, to: values.baseAddress!)
          kernels.pointee.to_bf16(
            Int64(some), values.baseAddress!, data.assumingMemoryBound(to: UInt16.self) + place + start)
        }
      }
    }
  }
}
