import CShims

extension Layer {
  /// Overwrites the parameters with a checkpoint's; on an error none of them.
  public func load(_ checkpoint: Checkpoint, _ layout: Layout, _ place: LayerPlace) throws(Fault) {
    let loading = Loading(self, checkpoint, layout, place)
    try loading.check()
    try loading.tensors.entries { (entry) throws(Fault) in try loading.copy(entry) }
  }
}

/// A checkpoint's tensors on their way into a layer.
struct Loading {
  let tensors: LayerTensors
  let checkpoint: Checkpoint
  let kernels: UnsafePointer<moei_kernels>

  init(_ layer: Layer, _ checkpoint: Checkpoint, _ layout: Layout, _ place: LayerPlace) {
    tensors = LayerTensors(layer, layout, place, in: checkpoint)
    self.checkpoint = checkpoint
    kernels = layer.context.kernels
  }

  // MARK: checks

  /// Whether the checkpoint has what the layer has, and nothing else for it.
  func check() throws(Fault) {
    try tensors.requireFit()
    try tensors.entries { (entry) throws(Fault) in
      for expert in 0..<entry.count { _ = try values(entry, expert) }
    }
    try requireNothingElse()
  }

  func values(_ entry: LayerTensors.Entry, _ expert: Int) throws(Fault) -> StoredValues {
    let shape = entry.matrices.shape(entry.rule.listing)
    if case .mxfp4 = entry.rule.listing { return try packedValues(entry, shape) }
    return try tensors.withName(entry.rule, expert: expert) { (name) throws(Fault) in
      let tensor = try find(entry.rule, name, shape)
      switch tensor.type {
      case .f32: return StoredValues(form: .f32, data: tensor.data)
      case .bf16: return StoredValues(form: .bf16, data: tensor.data)
      case .f16: return StoredValues(form: .f16, data: tensor.data)
      default:
        throw .invalid(
          "\(name): \(tensor.type.name) is none of F32, F16 and BF16; convert the checkpoint to one of them first")
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
      let tensor = try find(rule, name, shape)
      if tensor.type != .u8 { throw .invalid("\(name): \(tensor.type.name) is not U8") }
      return tensor.data
    }
  }

  private func find(_ rule: TensorRule, _ name: UnsafePointer<CChar>, _ shape: StoredShape) throws(Fault)
    -> StoredTensor
  {
    guard let tensor = checkpoint.tensor(name) else { throw missing(rule, name) }
    if tensor.shape.rank != shape.rank {
      throw .invalid("\(name): \(tensor.shape.rank) dimensions in the checkpoint, \(shape.rank) in the layer")
    }
    for dimension in 0..<shape.rank where tensor.shape[dimension] != shape[dimension] {
      throw misshapen(name, dimension: dimension, stored: tensor.shape[dimension], wanted: shape[dimension])
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
