import CShims

/// How a model is written into a folder.
public struct ModelSaving {
  public let family: Family
  public let shapes: TensorRows.Shapes
  /// The config.json, as it was.
  public let config: JSONTree
  public let type: ElementType
  public let shardBytes: Int?
  public let progress: Progress

  public init(
    _ family: Family, _ shapes: TensorRows.Shapes, config: JSONTree, type: ElementType, shardBytes: Int?,
    _ progress: Progress
  ) {
    (self.family, self.shapes, self.config, self.type) = (family, shapes, config, type)
    (self.shardBytes, self.progress) = (shardBytes, progress)
  }
}

extension Model {
  /// Writes weights, then config.json.
  public func save(to folder: UnsafePointer<CChar>, _ saving: ModelSaving) throws(Fault) {
    if isPacked {
      if ranks != nil {
        throw .badState(
          "the model's weights are packed, and its experts spread over ranks: pack and save in one process")
      }
      try write(try PackedOutgoing(self), to: folder, saving, isPacked: true)
    } else {
      try write(try ModelOutgoing(self, saving), to: folder, saving, isPacked: false)
    }
  }

  private func write<T: OutgoingTensors>(
    _ outgoing: T, to folder: UnsafePointer<CChar>, _ saving: ModelSaving, isPacked: Bool
  ) throws(Fault) {
    var total = 0
    try outgoing.visit { (tensor) throws(Fault) in
      let (sum, overflow) = total.addingReportingOverflow(tensor.bytes)
      if overflow { throw .invalid("\(tensor.name): the files would have more than 2^63 bytes") }
      total = sum
    }
    let shardBytes = saving.shardBytes.flatMap { total > $0 ? $0 : nil }
    guard let ranks else { return try put(outgoing, total, shardBytes, to: folder, saving, isPacked: isPacked) }
    try ranks.open(saving: outgoing, shardBytes)
    if ranks.pointee.rank == 0 {
      try put(outgoing, total, shardBytes, to: folder, saving, isPacked: isPacked)
    } else if let shardBytes {
      try sendShards(outgoing, mostBytes: shardBytes, in: context)
    } else {
      try sendTensors(outgoing, in: context)
    }
    try ranks.pointee.agree(SpreadTensor.words, nil, next: nil)
  }

  /// `total`: bytes of all tensors.
  private func put<T: OutgoingTensors>(
    _ outgoing: T, _ total: Int, _ shardBytes: Int?, to folder: UnsafePointer<CChar>, _ saving: ModelSaving,
    isPacked: Bool
  ) throws(Fault) {
    let allocator = context.pointee.allocator
    let paths = try FolderPaths(folder, allocator)
    defer { paths.free() }
    let made = moei_folder_make(folder)
    if made != 0 { throw .io("making a folder", folder, made) }
    var progress = saving.progress
    progress.total = total
    try progress.add(0, in: context)
    if let most = shardBytes {
      try writeShards(
        outgoing, to: paths.path("model.safetensors.index.json"), mostBytes: most, in: context, progress: &progress)
      // A reader would take it in place of the shards.
      let error = moei_file_remove(paths.path("model.safetensors"))
      if error != 0 { throw .io("removing a file", paths.path("model.safetensors"), error) }
    } else {
      try writeSafetensors(outgoing, to: paths.path("model.safetensors"), in: context, progress: &progress)
      try removeShards(of: paths.path("model.safetensors.index.json"), allocator)
    }
    try ConfigEdit(saving.config, type: isPacked ? configuration.weights : saving.type, isPacked: isPacked).write(
      to: paths.path("config.json"), allocator)
  }

  /// The config.json that the model came with, if any.
  public func withOrigin<R>(
    _ body: (Family, TensorRows.Shapes, ElementType, JSONTree) throws(Fault) -> R
  ) throws(Fault) -> R {
    guard let origin else {
      throw .invalid(
        "model: it came from no folder, so that nobody knows its names: give options.config, the text of a config.json")
    }
    let allocator = context.pointee.allocator
    let tree = try JSONTree(origin.text, count: origin.count, path: cText("config.json"), allocator)
    defer { tree.free(allocator) }
    return try body(origin.family, origin.shapes, origin.type, tree)
  }
}

/// A model's tensors on their way into files.
private struct ModelOutgoing: OutgoingTensors {
  private let tensors: FamilyTensors
  private let type: ElementType
  private let ranks: RanksPointer?
  /// The folder's own, where the model came from one of this family.
  private let norms: UnsafePointer<Float>?

  init(_ model: Model, _ saving: ModelSaving) throws(Fault) {
    tensors = FamilyTensors(model: model, family: saving.family, shapes: saving.shapes)
    (type, ranks) = (saving.type, model.ranks)
    norms = model.origin.flatMap { $0.family.table == saving.family.table ? UnsafePointer($0.norms) : nil }
    try tensors.requireComplete()
    let own = tensors
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        if entry.parameter.data == nil { throw .badState("\(entry.parameter.name) has no memory") }
      case .block(let n, let layer):
        try layer.pointee.requireOwnExperts()
        try layer.pointee.requireMemory()
        try own.withBlock(n, try own.writtenLayout(n)) { (prefix) throws(Fault) in
          try LayerTensors(layer.pointee, try own.writtenLayout(n), .prefix(prefix)).requireFit()
        }
      }
    }
  }

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    let kernels = tensors.model.context.kernels
    var norms = norms
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        try tensors.withName(entry) { (name) throws(Fault) in
          try body(
            OutgoingTensor(
              name: name, type: StoredType(entry.parameter.isBuffer ? .f32 : type), shape: entry.shape,
              contents: .rows(OutgoingRows(entry, norms, kernels))))
        }
        if entry.rule.isFromZero { norms = norms.map { $0 + entry.parameter.count } }
      case .block(let n, let layer):
        let layout = try tensors.writtenLayout(n)
        try tensors.withBlock(n, layout) { (prefix) throws(Fault) in
          try LayerOutgoing(
            tensors: LayerTensors(layer.pointee, layout, .prefix(prefix)), type: type, kernels: kernels, ranks: ranks
          ).visit(body)
        }
      }
    }
  }
}

extension FamilyTensors {
  fileprivate func writtenLayout(_ n: Int) throws(Fault) -> Layout {
    guard let layout = family.layout(0) else {
      throw .invalid("layers.\(n): model_type \(family.name) has no MoE layers, the model has")
    }
    return layout
  }
}

/// A parameter, or rows of one, as a tensor holds it.
struct OutgoingRows {
  private let parameter: Parameter
  private let places: TensorRows
  private let columns: Int
  private let shift: ElementShift?
  private let kernels: UnsafePointer<moei_kernels>

  /// `norms`: of a norm that is stored minus 1, what it was read as.
  init(_ entry: FamilyEntry, _ norms: UnsafePointer<Float>?, _ kernels: UnsafePointer<moei_kernels>) {
    (parameter, places, columns) = (entry.parameter, entry.places, entry.columns)
    shift = entry.rule.isFromZero ? ElementShift(known: norms) : nil
    self.kernels = kernels
  }

  func write(_ type: StoredType, to output: inout FileOutput) throws(Fault) {
    if places.isStraight { return try write(places.place(of: 0), rows: places.count, type, to: &output) }
    for r in 0..<places.count { try write(places.place(of: r), rows: 1, type, to: &output) }
  }

  private func write(_ first: Int, rows: Int, _ type: StoredType, to output: inout FileOutput) throws(Fault) {
    try writeElements(
      parameter, first * columns, rows * columns, shift: shift, type, kernels, to: &output)
  }
}
