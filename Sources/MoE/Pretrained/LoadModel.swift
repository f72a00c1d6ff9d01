import CShims

extension UnsafeMutablePointer where Pointee == Model {
  /// Overwrites the parameters with a folder's, most of whose weights are of `type`. Experts without memory are offloaded, each
  /// layer keeping `expertLimit` bytes of them. On an error nothing is overwritten, but where a disk fails on the way, or somebody
  /// stops it.
  public func load(
    _ source: PretrainedSource, _ shapes: TensorRows.Shapes, type: ElementType, expertLimit: Int, _ progress: Progress
  ) throws(Fault) {
    let tensors = FamilyTensors(model: pointee, family: source.family, shapes: shapes)
    try tensors.requireComplete()
    var loading = ModelLoading(tensors, source.checkpoint.pointee, expertLimit, progress)
    try loading.check()
    let allocator = pointee.context.pointee.allocator
    let raw = try allocator.allocate(bytes: try loading.rawBytes())
    defer { allocator.deallocate(raw) }
    let origin = try ModelOrigin(source, shapes, type)
    do throws(Fault) {
      try loading.copy(raw)
    } catch {
      origin.free(allocator)
      throw error.whileOverwriting("the model's parameters are")
    }
    pointee.origin?.free(allocator)
    pointee.origin = origin
  }
}

/// A folder's tensors on their way into a model.
struct ModelLoading {
  let tensors: FamilyTensors
  let checkpoint: Checkpoint
  private let expertLimit: Int
  private var progress: Progress
  private var kernels: UnsafePointer<moei_kernels> { tensors.model.context.kernels }

  init(_ tensors: FamilyTensors, _ checkpoint: Checkpoint, _ expertLimit: Int, _ progress: Progress) {
    (self.tensors, self.checkpoint) = (tensors, checkpoint)
    (self.expertLimit, self.progress) = (expertLimit, progress)
  }

  // MARK: checks

  /// Whether the files have what the model has, and nothing else.
  mutating func check() throws(Fault) {
    try checkpoint.requireUnchanged()
    let allocator = tensors.model.context.pointee.allocator
    var used = try UsedTensors(checkpoint, allocator)
    defer { used.free(allocator) }
    var total = 0
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        let index = try find(entry)
        used.note(index)
        total += checkpoint[index].bytes
        if entry.parameter.data == nil { throw .badState("\(entry.parameter.name) has no memory") }
      case .block(let n, let layer):
        total += try check(n, layer, &used)
      }
    }
    progress.total = total
    try used.requireAll(tensors)
  }

  private func find(_ entry: FamilyEntry) throws(Fault) -> Int {
    try tensors.withName(entry) { (name) throws(Fault) in
      guard let index = checkpoint.find(name) else { throw checkpoint.missing(name) }
      let (tensor, shape) = (checkpoint[index], entry.shape)
      if tensor.shape.rank != shape.rank {
        throw .invalid("\(name): \(tensor.shape.rank) dimensions in the file, \(shape.rank) by config.json")
      }
      for dimension in 0..<shape.rank where tensor.shape[dimension] != shape[dimension] {
        throw .invalid(
          "\(name): dimension \(dimension) is \(tensor.shape[dimension]) in the file, \(shape[dimension]) by config.json"
        )
      }
      _ = try form(tensor)
      return index
    }
  }

  private func form(_ tensor: StoredTensor) throws(Fault) -> StoredForm {
    guard let form = StoredForm(tensor.type), form == .f32 || form == .bf16 || form == .f16 else {
      throw .invalid(
        "\(tensor.name): \(tensor.typeName) is none of F32, F16 and BF16; convert the model to one of them first")
    }
    return form
  }

  /// Returns the bytes that it will read.
  private func check(_ n: Int, _ layer: LayerPointer, _ used: inout UsedTensors) throws(Fault) -> Int {
    if layer.pointee.isOffloaded { throw .badState("layers.\(n): its experts are offloaded already") }
    if layer.pointee.configuration.keepsExpertWeights { try layer.pointee.requireMemory() }
    return try withBlock(n, layer) { (loading, prefix) throws(Fault) in
      try loading.check()
      return used.note(beginning: prefix, loading.tensors.layout)
    }
  }

  /// The MoE block of layer n.
  private func withBlock<R>(
    _ n: Int, _ layer: LayerPointer, _ body: (Loading, UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    guard let layout = checkpoint.layout(of: tensors.family, n) else {
      throw .invalid("layers.\(n): model_type \(tensors.family.name) has no MoE layers, the model has")
    }
    return try tensors.withBlock(n, layout) { (prefix) throws(Fault) in
      try body(Loading(layer.pointee, checkpoint, layout, .prefix(prefix)), prefix)
    }
  }

  // MARK: copies

  /// Elements that are read at once where a tensor may be cut anywhere between rows.
  private static var stretch: Int { 1 << 18 }

  private static func rowsAtOnce(_ entry: FamilyEntry) -> Int {
    min(max(1, stretch / max(1, entry.columns)), max(1, entry.places.count))
  }

  func rawBytes() throws(Fault) -> Int {
    var most = 0
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry): most = max(most, 4 * Self.rowsAtOnce(entry) * entry.columns)
      case .block(let n, let layer) where layer.pointee.configuration.keepsExpertWeights:
        most = max(most, try withBlock(n, layer) { (loading, _) throws(Fault) in try loading.rawBytes() })
      case .block: break
      }
    }
    return most
  }

  mutating func copy(_ raw: UnsafeMutableRawPointer) throws(Fault) {
    let context = tensors.model.context
    var progress = progress
    try progress.add(0, in: context)
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        try copy(entry, raw)
        try progress.add(checkpoint[try find(entry)].bytes, in: context)
      case .block(let n, let layer) where !layer.pointee.configuration.keepsExpertWeights:
        try withBlock(n, layer) { (loading, prefix) throws(Fault) in
          try layer.pointee.offload(checkpoint, loading.tensors.layout, .prefix(prefix), residentLimit: expertLimit)
          try progress.add(0, in: context)
        }
      case .block(let n, let layer):
        try withBlock(n, layer) { (loading, _) throws(Fault) in
          try loading.tensors.entries { (block) throws(Fault) in
            try loading.copy(block, raw: raw) { block.matrices.part($0).data! }
            try progress.add(try loading.bytes(block), in: context)
          }
        }
      }
    }
  }

  private func copy(_ entry: FamilyEntry, _ raw: UnsafeMutableRawPointer) throws(Fault) {
    let tensor = checkpoint[try find(entry)]
    let stored = StoredPlace(form: try form(tensor), file: tensor.file, offset: tensor.offset)
    let (parameter, columns) = (entry.parameter, entry.columns)
    if entry.isStraight && stored.form == StoredForm(parameter.type) {
      let first = entry.places.place(of: 0) * columns
      return try checkpoint.read(stored, entry.elements, to: parameter.data! + parameter.type.bytes(first))
    }
    let target = ParameterValues(parameter, kernels)
    let (rows, atOnce) = (entry.places.count, Self.rowsAtOnce(entry))
    for start in stride(from: 0, to: rows, by: atOnce) {
      let some = min(atOnce, rows - start)
      let values = try checkpoint.values(stored.from(start * columns), some * columns, raw: raw)
      if entry.places.isStraight {
        target.write(entry.places.place(of: start) * columns, some * columns, from: values, 0, stride: 1)
      } else {
        for r in 0..<some {
          target.write(entry.places.place(of: start + r) * columns, columns, from: values, r * columns, stride: 1)
        }
      }
    }
    // Of norms, which are float32.
    if entry.rule.isFromZero && parameter.type == .f32 { for i in 0..<parameter.count { parameter.floats[i] += 1 } }
  }
}

extension Loading {
  /// Of an entry's tensors in the files.
  fileprivate func bytes(_ entry: LayerTensors.Entry) throws(Fault) -> Int {
    var sum = 0
    for expert in 0..<entry.count {
      let elements = (entry.isNumbered ? 1 : entry.matrices.experts) * entry.matrices.elements
      sum += try place(entry, expert).bytes(elements)
    }
    return sum
  }
}

extension Checkpoint {
  /// Which of the family's layouts the MoE block of layer n has; nil where the family has none.
  func layout(of family: Family, _ n: Int) -> Layout? {
    guard let packed = family.layout(1) else { return family.layout(0) }
    // The second one's own tensors tell.
    for index in 0..<packed.form(0)!.count {
      let rule = packed.form(0)![index]
      guard rule.listing == .mxfp4 else { continue }
      let isThere = withText {
        family.appendBlock(n, packed, to: &$0)
        rule.append(to: &$0, expert: 0, part: "_blocks")
      } body: {
        find($0) != nil
      }
      if isThere { return packed }
    }
    return family.layout(0)
  }
}
