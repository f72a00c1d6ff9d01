import CShims

extension UnsafeMutablePointer where Pointee == Model {
  /// Overwrites the parameters with a folder's, most of whose weights are of `type`. Experts without memory are offloaded, each
  /// layer keeping so much of them as the limit says, nil: all; with `forms` they, and all that tokens are multiplied by, are packed while
  /// they are read, and kept so alone, offloaded under a limit alone; with a calibration when all of a matrix has been read. On an error nothing is overwritten, but where a disk fails on the way, or somebody stops it.
  /// `isNew`: nobody but the caller has the model yet, who frees it after an error; with `forms` it may lack memory.
  public func load(
    _ source: PretrainedSource, _ shapes: TensorRows.Shapes, type: ElementType, residentLimit: ResidentLimit?,
    forms: PartForms?, _ calibration: CalibrationPointer?, isNew: Bool, _ progress: Progress
  ) throws(Fault) {
    var loading = ModelLoading(pointee, source, shapes, residentLimit, progress)
    loading.needsMemory = !isNew || forms == nil
    try loading.check()
    let allocator = pointee.context.pointee.allocator
    if let forms { loading.packing = try ModelPacking.make(loading, forms, calibration) }
    defer { loading.packing?.free(allocator) }
    try loading.limitPacked()
    let raw = try allocator.allocate(bytes: try loading.rawBytes())
    defer { allocator.deallocate(raw) }
    let origin = try ModelOrigin(source, shapes, type, norms: try loading.normsFromZero())
    do throws(Fault) {
      try loading.packing?.makeRoom(loading)
      try loading.copy(raw, origin.norms)
      try loading.packing?.finish(pointee)
      if forms != nil && pointee.isTrainable { try pointee.allocateGradients() }
    } catch {
      origin.free(allocator)
      throw isNew ? error : error.whileOverwriting("the model's parameters are")
    }
    pointee.origin?.free(allocator)
    pointee.origin = origin
  }
}

extension Model {
  /// Refuses a folder whose files are not this model's, as far as their headers tell. The model needs no memory for that.
  public func requireFit(_ source: PretrainedSource, _ shapes: TensorRows.Shapes) throws(Fault) {
    var loading = ModelLoading(self, source, shapes, nil, Progress(nil, nil))
    loading.needsMemory = false
    try loading.check()
  }
}

/// A folder's tensors on their way into a model.
struct ModelLoading {
  let tensors: FamilyTensors
  let checkpoint: Checkpoint
  private let folder: UnsafePointer<CChar>
  private var residentLimit: ResidentLimit?
  private var progress: Progress
  /// Whether parameters have to have some before.
  var needsMemory = true
  /// What is packed; nil where nothing is.
  var packing: ModelPacking?
  private var kernels: UnsafePointer<moei_kernels> { tensors.model.context.kernels }

  init(
    _ model: Model, _ source: PretrainedSource, _ shapes: TensorRows.Shapes, _ residentLimit: ResidentLimit?,
    _ progress: Progress
  ) {
    tensors = FamilyTensors(model: model, family: source.names, shapes: shapes)
    (checkpoint, folder, self.progress) = (source.checkpoint.pointee, source.path, progress)
    self.residentLimit = residentLimit
  }

  /// Whether the layer's experts stay in the files.
  private func offloads(_ layer: LayerPointer) -> Bool {
    !layer.pointee.configuration.keepsExpertWeights && (packing == nil || residentLimit != nil)
  }

  /// Experts stay in the files where they do not fit as they are packed.
  mutating func limitPacked() throws(Fault) {
    guard let packing, let limit = residentLimit else { return }
    let (experts, others) = packing.bytes(self)
    residentLimit = try limit.packed(experts: experts, others: others)
  }

  // MARK: checks

  /// Whether the files have what the model has, and nothing else; and whether there is memory for it, where the model has any.
  mutating func check() throws(Fault) {
    try tensors.requireComplete()
    try checkpoint.requireUnchanged()
    do throws(Fault) { try compare() } catch { throw error.inFolder(folder) }
  }

  private mutating func compare() throws(Fault) {
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
        if needsMemory && entry.parameter.data == nil { throw .badState("\(entry.parameter.name) has no memory") }
      case .block(let n, let layer):
        total += try check(n, layer, &used)
      }
    }
    progress.total = total
    try used.requireAll(tensors)
  }

  private func find(_ entry: FamilyEntry) throws(Fault) -> Int {
    try tensors.withName(entry) { (name) throws(Fault) in
      guard let index = checkpoint.find(name) else { throw missing(entry, name) }
      let (tensor, shape) = (checkpoint[index], entry.shape)
      switch tensor.difference(from: shape) {
      case nil: break
      case .rank:
        throw .invalid("\(name): \(tensor.shape.rank) dimensions in the file, \(shape.rank) by config.json")
      case .extent(let dimension):
        throw .invalid(
          "\(name): dimension \(dimension) is \(tensor.shape[dimension]) in the file, \(shape[dimension]) by config.json"
        )
      }
      _ = try place(tensor)
      return index
    }
  }

  func stored(_ entry: FamilyEntry) throws(Fault) -> StoredPlace { try place(checkpoint[try find(entry)]) }

  private func missing(_ entry: FamilyEntry, _ name: UnsafePointer<CChar>) -> Fault {
    if entry.rule.mayBeTied {
      return .invalid(
        "\(name): the files have no such tensor, and tie_word_embeddings of config.json is false: set it to true where the model shares its embedding, or download the folder again"
      )
    }
    return checkpoint.missingOfConfig(name)
  }

  private func place(_ tensor: StoredTensor) throws(Fault) -> StoredPlace {
    guard let place = StoredPlace(weights: tensor) else {
      throw .invalid(
        "\(tensor.name): \(tensor.typeName) is none of F32, F16 and BF16; convert the model to one of them first")
    }
    return place
  }

  /// Returns the bytes that it will read.
  private func check(_ n: Int, _ layer: LayerPointer, _ used: inout UsedTensors) throws(Fault) -> Int {
    if layer.pointee.isOffloaded { throw .badState("layers.\(n): its experts are offloaded already") }
    if needsMemory && layer.pointee.configuration.keepsExpertWeights { try layer.pointee.requireMemory() }
    return try withBlock(n, layer) { (loading, prefix) throws(Fault) in
      try loading.check()
      return used.note(beginning: prefix, loading.tensors.layout)
    }
  }

  /// The MoE block of layer n.
  func withBlock<R>(
    _ n: Int, _ layer: LayerPointer, _ body: (Loading, UnsafePointer<CChar>) throws(Fault) -> R
  ) throws(Fault) -> R {
    guard let layout = checkpoint.layout(of: tensors.family, n) else {
      throw .invalid("layers.\(n): model_type \(tensors.family.name) has no MoE layers, the model has")
    }
    return try tensors.withBlock(n, layout) { (prefix) throws(Fault) in
      try body(Loading(layer.pointee, checkpoint, layout, .prefix(prefix), isOfFolder: true), prefix)
    }
  }

  // MARK: copies

  /// Elements that are read at once where a tensor may be cut anywhere between rows.
  private static var stretch: Int { 1 << 18 }

  fileprivate static func rowsAtOnce(_ entry: FamilyEntry) -> Int {
    min(max(1, stretch / max(1, entry.columns)), max(1, entry.places.count))
  }

  /// What a thread reads at once; of a transposed part a head, as it is stored and as float32.
  fileprivate static func rawBytes(_ entry: FamilyEntry) -> Int {
    if entry.isTransposed { return 8 * entry.places.count / entry.places.heads * entry.columns }
    return 4 * rowsAtOnce(entry) * entry.columns
  }

  func rawBytes() throws(Fault) -> Int {
    var most = 0
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        most = max(most, tensors.model.context.lanes * Self.rawBytes(entry))
        let stored = try stored(entry)
        if stored.matrix != nil { most = max(most, stored.bytes(0)) }
        if let packing { most = max(most, try packedBytes(entry, packing)) }
      case .block(let n, let layer):
        if offloads(layer) && packing == nil { return }  // which sees to it itself
        most = max(
          most,
          try withBlock(n, layer) { (loading, _) throws(Fault) in
            try loading.rawBytes(packing?.layer(n), inMemory: offloads(layer), in: tensors.model.context)
          })
      }
    }
    return most
  }

  /// Numbers of norms that the files hold minus 1.
  func normsFromZero() throws(Fault) -> Int {
    var count = 0
    try tensors.parts { (part) throws(Fault) in
      if case .own(let entry) = part, entry.rule.isFromZero { count += entry.parameter.count }
    }
    return count
  }

  /// `norms`: where those are noted as the files have them, one after the other.
  mutating func copy(_ raw: UnsafeMutableRawPointer, _ norms: UnsafeMutablePointer<Float>) throws(Fault) {
    let context = tensors.model.context
    var (progress, norms) = (progress, norms)
    try progress.add(0, in: context)
    try tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry):
        try pack(entry, raw)
        // What is packed alone has no memory.
        if entry.parameter.data != nil { try copy(entry, raw) }
        if entry.rule.isFromZero { norms = addOne(entry.parameter, norms) }
        try progress.add(checkpoint[try find(entry)].bytes, in: context)
      case .block(let n, let layer) where offloads(layer) && packing == nil:
        try withBlock(n, layer) { (loading, prefix) throws(Fault) in
          try layer.pointee.offload(
            checkpoint, loading.tensors.layout, .prefix(prefix),
            residentLimit: residentLimit ?? ResidentLimit(bytes: .max))
          try progress.add(0, in: context)
        }
      case .block(let n, let layer):
        try withBlock(n, layer) { (loading, _) throws(Fault) in
          if let packing {
            do throws(Fault) { try makeRoom(layer, loading, packing.layer(n)) } catch { throw error.inLayer(n) }
          }
          try loading.tensors.entries { (block) throws(Fault) in
            if layer.pointee.isOffloaded && layer.pointee.comesFromFile(block.matrices.first) { return }
            if let packed = packing.flatMap({ loading.sources(block, $0.layer(n)) }) {
              do throws(Fault) {
                try loading.pack(packed, raw: raw, to: layer.pointee.prepared.of(packed.group)!, in: context)
              } catch {
                throw error.inLayer(n)
              }
            } else {
              try loading.copy(block, raw: raw, in: context) { block.matrices.part($0).data! }
            }
            try progress.add(try loading.bytes(block), in: context)
          }
        }
        do throws(Fault) { try packing?.finish(n, layer) } catch { throw error.inLayer(n) }
      }
    }
  }

  /// For what is packed of a MoE block, and for all else of it.
  private func makeRoom(_ layer: LayerPointer, _ loading: Loading, _ sources: LayerSources) throws(Fault) {
    if let residentLimit, offloads(layer) {
      return try layer.pointee.offload(loading, sources, residentLimit: residentLimit)
    }
    try layer.pointee.makeRoom(sources.forms)
  }

  private func copy(_ entry: FamilyEntry, _ raw: UnsafeMutableRawPointer) throws(Fault) {
    let (stored, context) = (try stored(entry), tensors.model.context)
    if entry.isTransposed {
      return try context.runToTheEnd(
        entry.places.heads, CopyHeads(loading: self, entry: entry, stored: stored, raw: raw))
    }
    let atOnce = Self.rowsAtOnce(entry)
    let items = (entry.places.count + atOnce - 1) / atOnce
    // Of quantised weights all are read at once, and become floats row by row.
    let whole = stored.matrix == nil ? nil : try checkpoint.values(stored, 0, raw: raw)
    try context.runToTheEnd(items, CopyRows(loading: self, entry: entry, stored: stored, whole: whole, raw: raw))
  }

  /// To a norm, which is float32. Returns where the next one's numbers go.
  private func addOne(_ parameter: Parameter, _ norms: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    norms.update(from: parameter.floats, count: parameter.count)
    for i in 0..<parameter.count { parameter.floats[i] += 1 }
    return norms + parameter.count
  }

  /// As many rows as are read at once, from number `item` times so many on.
  fileprivate func copyRows(
    _ item: Int, _ entry: FamilyEntry, _ stored: StoredPlace, _ whole: StoredValues?, _ raw: UnsafeMutableRawPointer
  ) throws(Fault) {
    let (parameter, columns, atOnce) = (entry.parameter, entry.columns, Self.rowsAtOnce(entry))
    let start = item * atOnce
    let rows = start..<min(start + atOnce, entry.places.count)
    let from = stored.from(start * columns)
    if entry.isStraight && stored.form == StoredForm(parameter.type) {
      let first = (entry.places.place(of: 0) + start) * columns
      return try checkpoint.read(from, rows.count * columns, to: parameter.data! + parameter.type.bytes(first))
    }
    let target = ParameterValues(parameter, kernels)
    // Of what is read now the first row is that of this item.
    let first = whole.map { _ in 0 } ?? start
    let values: StoredValues
    if let whole { values = whole } else { values = try checkpoint.values(from, rows.count * columns, raw: raw) }
    if entry.places.isStraight {
      return target.write(
        entry.places.place(of: start) * columns, rows.count * columns, from: values, (start - first) * columns,
        stride: 1)
    }
    for r in rows {
      target.write(entry.places.place(of: r) * columns, columns, from: values, (r - first) * columns, stride: 1)
    }
  }

  /// Head `h` of a part that is stored transposed, [columns, rows of a head].
  fileprivate func copyHead(
    _ h: Int, _ entry: FamilyEntry, _ stored: StoredPlace, _ raw: UnsafeMutableRawPointer
  ) throws(Fault) {
    let (rows, columns) = (entry.places.count / entry.places.heads, entry.columns)
    let values = try checkpoint.values(stored.from(h * rows * columns), rows * columns, raw: raw)
    let floats = (raw + 4 * rows * columns).assumingMemoryBound(to: Float.self)
    values.read(0, stride: 1, count: rows * columns, to: floats)
    let turned = StoredValues(form: .f32, data: floats)
    let target = ParameterValues(entry.parameter, kernels)
    for r in 0..<rows {
      target.write(entry.places.place(of: h * rows + r) * columns, columns, from: turned, r, stride: rows)
    }
  }
}

/// An item is some rows of a tensor: all threads read files and convert numbers.
private struct CopyRows: FallibleJob {
  let loading: ModelLoading
  let entry: FamilyEntry
  let stored: StoredPlace
  /// Where all of it has been read.
  let whole: StoredValues?
  let raw: UnsafeMutableRawPointer  // [lanes, rawBytes]

  func run(_ item: Int, lane: Int) throws(Fault) {
    try loading.copyRows(item, entry, stored, whole, raw + lane * ModelLoading.rawBytes(entry))
  }
}

/// An item is one head's part, which is stored transposed.
private struct CopyHeads: FallibleJob {
  let loading: ModelLoading
  let entry: FamilyEntry
  let stored: StoredPlace
  let raw: UnsafeMutableRawPointer  // [lanes, rawBytes]

  func run(_ item: Int, lane: Int) throws(Fault) {
    try loading.copyHead(item, entry, stored, raw + lane * ModelLoading.rawBytes(entry))
  }
}

extension Loading {
  /// Of an entry's tensors in the files.
  fileprivate func bytes(_ entry: LayerTensors.Entry) throws(Fault) -> Int {
    var sum = 0
    for expert in 0..<entry.count {
      let elements = (entry.isNumbered ? 1 : entry.matrices.stored.experts) * entry.matrices.elements
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
