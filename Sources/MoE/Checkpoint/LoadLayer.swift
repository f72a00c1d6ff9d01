import CShims

extension Layer {
  /// Overwrites the parameters with a checkpoint's; on an error none of them, but where a disk fails on the way.
  public func load(_ checkpoint: Checkpoint, _ layout: Layout, _ place: LayerPlace) throws(Fault) {
    let loading = Loading(self, checkpoint, layout, place)
    try loading.check()
    try checkpoint.requireUnchanged()
    let allocator = context.pointee.allocator
    let raw = try allocator.allocate(bytes: try loading.rawBytes(in: context))
    defer { allocator.deallocate(raw) }
    do throws(Fault) {
      try loading.tensors.entries { (entry) throws(Fault) in
        try loading.copy(entry, raw: raw, in: context) { entry.matrices.part($0).data! }
      }
    } catch {
      throw error.whileOverwriting("the layer's parameters are")
    }
  }
}

/// A checkpoint's tensors on their way into a layer.
struct Loading {
  let tensors: LayerTensors
  let checkpoint: Checkpoint
  let kernels: UnsafePointer<moei_kernels>
  /// Whether a config.json made the layer, which messages then speak of, in place of its options.
  let isOfFolder: Bool

  init(
    _ layer: Layer, _ checkpoint: Checkpoint, _ layout: Layout, _ place: LayerPlace, isOfFolder: Bool = false
  ) {
    tensors = LayerTensors(layer, layout, place, in: checkpoint)
    (self.checkpoint, self.isOfFolder) = (checkpoint, isOfFolder)
    kernels = layer.context.kernels
  }

  // MARK: checks

  /// Whether the checkpoint has what the layer has, and nothing else for it.
  func check() throws(Fault) {
    try tensors.requireFit()
    try tensors.entries { (entry) throws(Fault) in
      for expert in 0..<entry.count { _ = try place(entry, expert) }
    }
    try requireNothingElse()
  }

  /// Where an entry's numbers are, or one expert's where each has a tensor.
  func place(_ entry: LayerTensors.Entry, _ expert: Int) throws(Fault) -> StoredPlace {
    let shape = entry.matrices.shape(entry.rule.listing)
    if case .mxfp4 = entry.rule.listing { return try packedPlace(entry, shape) }
    return try tensors.withName(entry.rule, expert: expert) { (name) throws(Fault) in
      let tensor = try find(entry.rule, name, shape)
      guard let place = StoredPlace(weights: tensor) else {
        throw .invalid(
          "\(name): \(tensor.typeName) is none of F32, F16 and BF16, nor blocks of GGUF; convert the checkpoint to one of them first"
        )
      }
      return place
    }
  }

  private func packedPlace(_ entry: LayerTensors.Entry, _ shape: StoredShape) throws(Fault) -> StoredPlace {
    if shape[2] % MXFP4.block != 0 {
      throw .invalid("layout: MXFP4 has blocks of \(MXFP4.block) numbers, and \(shape[2]) is no multiple")
    }
    let scalesShape = StoredShape(shape[0], shape[1], shape[2] / MXFP4.block)
    var blocksShape = scalesShape
    blocksShape.append(MXFP4.block / 2)
    let blocks = try bytes(entry.rule, "_blocks", blocksShape)
    let scales = try bytes(entry.rule, "_scales", scalesShape)
    return StoredPlace(blocks: blocks, scales: scales)
  }

  private func bytes(
    _ rule: TensorRule, _ part: StaticString, _ shape: StoredShape
  ) throws(Fault) -> StoredTensor {
    try tensors.withName(rule, expert: 0, part: part) { (name) throws(Fault) in
      let tensor = try find(rule, name, shape)
      if tensor.type != .u8 { throw .invalid("\(name): \(tensor.typeName) is not U8") }
      return tensor
    }
  }

  private func find(_ rule: TensorRule, _ name: UnsafePointer<CChar>, _ shape: StoredShape) throws(Fault)
    -> StoredTensor
  {
    guard let tensor = checkpoint.tensor(name) else { throw missing(rule, name) }
    switch tensor.difference(from: shape) {
    case nil: return tensor
    case .rank where isOfFolder:
      throw .invalid("\(name): \(tensor.shape.rank) dimensions in the file, \(shape.rank) by config.json")
    case .rank:
      throw .invalid("\(name): \(tensor.shape.rank) dimensions in the checkpoint, \(shape.rank) in the layer")
    case .extent(let dimension):
      throw misshapen(name, dimension: dimension, stored: tensor.shape[dimension], wanted: shape[dimension])
    }
  }

  // MARK: copies

  /// Elements that are read at once where they may be cut anywhere: a multiple of all blocks.
  private static var stretch: Int { 1 << 18 }

  /// What copying takes, or packing of what has sources: room for what each thread reads at once. `inMemory`: without the matrices
  /// that come from files.
  func rawBytes(
    _ sources: LayerSources? = nil, inMemory: Bool = false, in context: ContextPointer
  ) throws(Fault) -> Int {
    var most = 0
    try tensors.entries { (entry) throws(Fault) in
      if inMemory && tensors.layer.comesFromFile(entry.matrices.first) { return }
      if let packed = sources.flatMap({ self.sources(entry, $0) }) {
        most = max(most, context.lanes * (try rawBytes(packed)))
        return
      }
      most = max(most, context.lanes * (try rawBytes(entry)))
    }
    return most
  }

  /// Of one thread.
  private func rawBytes(_ entry: LayerTensors.Entry) throws(Fault) -> Int {
    let matrices = entry.matrices
    var most = 4 * (matrices.isFlat ? min(matrices.elements, Self.stretch) : matrices.elements)
    for expert in 0..<entry.count {
      let place = try place(entry, expert)
      if place.matrix != nil { most = max(most, place.bytes(matrices.elements)) }
    }
    return (most + 63) & ~63
  }

  /// `raw`: [rawBytes]; `memory`: where the values of a part go.
  func copy(
    _ entry: LayerTensors.Entry, raw: UnsafeMutableRawPointer, in context: ContextPointer,
    to memory: (Int) -> UnsafeMutableRawPointer
  ) throws(Fault) {
    let parts = (memory(0), memory(entry.matrices.parts - 1))
    try context.runToTheEnd(
      entry.matrices.experts,
      CopyMatrices(loading: self, entry: entry, raw: raw, rawBytes: try rawBytes(entry), parts: parts))
  }

  /// One expert's matrices.
  fileprivate func copy(
    _ entry: LayerTensors.Entry, _ expert: Int, raw: UnsafeMutableRawPointer, to parts: Parts
  ) throws(Fault) {
    let matrices = entry.matrices
    let number = matrices.stored.first + expert
    let start = entry.isNumbered ? 0 : number * matrices.elements
    let stored = try place(entry, entry.isNumbered ? number : 0).from(start)
    let own = expert * matrices.rows * matrices.columns
    func target(_ part: Int) -> ParameterValues {
      ParameterValues(part == 0 ? parts.0 : parts.1, matrices.part(part).type, kernels)
    }
    if matrices.isFlat && stored.form == StoredForm(matrices.first.type) {
      let type = matrices.first.type
      try checkpoint.read(stored, matrices.elements, to: parts.0 + type.bytes(own))
    } else if matrices.isFlat && stored.matrix == nil {
      for first in stride(from: 0, to: matrices.elements, by: Self.stretch) {
        let count = min(Self.stretch, matrices.elements - first)
        let values = try checkpoint.values(stored.from(first), count, raw: raw)
        target(0).write(own + first, count, from: values, 0, stride: 1)
      }
    } else {
      let values = try checkpoint.values(stored, matrices.elements, raw: raw)
      for part in 0..<matrices.parts { matrices.copy(part, from: values, at: 0, to: target(part), at: own) }
    }
  }

  fileprivate typealias Parts = (UnsafeMutableRawPointer, UnsafeMutableRawPointer)
}

/// An item is one expert: all threads read files and convert numbers.
private struct CopyMatrices: FallibleJob {
  let loading: Loading
  let entry: LayerTensors.Entry
  let raw: UnsafeMutableRawPointer  // [lanes, rawBytes]
  let rawBytes: Int
  let parts: Loading.Parts

  func run(_ item: Int, lane: Int) throws(Fault) {
    try loading.copy(entry, item, raw: raw + lane * rawBytes, to: parts)
  }
}

extension FusedMatrices {
  /// Whether elements are stored in their parameter's order.
  var isFlat: Bool { parts == 1 && !transposed }

  /// One expert's matrix of one parameter, which begins at element `start` of what is stored together with the other's, to
  /// element `own` of `target` and what follows.
  func copy(
    _ part: Int, from stored: StoredValues, at start: Int, to target: ParameterValues, at own: Int
  ) {
    if isFlat { return target.write(own, rows * columns, from: stored, start, stride: 1) }
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

/// A parameter's memory.
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
    if type == .f32 {
      let floats = data.assumingMemoryBound(to: Float.self) + place
      return stored.read(first, stride: stride, count: count, to: floats)
    }
    if stored.form == StoredForm(type) {
      // Of two bytes, as all types but float32 are.
      let to = data.assumingMemoryBound(to: UInt16.self) + place
      let from = stored.data.assumingMemoryBound(to: UInt16.self) + first
      if stride == 1 { return to.update(from: from, count: count) }
      for i in 0..<count { to[i] = from[i * stride] }
      return
    }
    withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.stretch) { values in
      for start in Swift.stride(from: 0, to: count, by: Self.stretch) {
        let some = min(Self.stretch, count - start)
        stored.read(first + start * stride, stride: stride, count: some, to: values.baseAddress!)
        type.fromFloats(values.baseAddress!, some, data, place + start, kernels)
      }
    }
  }
}
