import CShims

// A layer's experts' matrices, packed while they are read: panel by panel, and nothing else of them is ever in memory.

extension Loading {
  /// What the matrices of its groups become. `wanted`: of a parameter.
  func sources(_ wanted: (Parameter) -> Layer.Preparation) throws(Fault) -> LayerSources {
    let layer = tensors.layer
    var (routed, shared) = (GroupChoices(), GroupChoices())
    try tensors.entries { (entry) throws(Fault) in
      for part in 0..<entry.matrices.parts {
        let parameter = entry.matrices.part(part)
        guard let place = layer.parameters.matrix(parameter) else { continue }
        var choice = MatrixChoice(wanted: wanted(parameter))
        if choice.wanted.isStored { choice.code = try code(entry, part) }
        if layer.configuration.groups[place.group].isShared {
          shared[place.matrix] = choice
        } else {
          routed[place.matrix] = choice
        }
      }
    }
    var sources = LayerSources()
    for index in 0..<layer.configuration.groupCount where layer.configuration.groups[index].multiplies {
      let group = layer.configuration.groups[index]
      if group.isShared {
        sources.shared = shared.sources(group, in: layer.context)
      } else {
        sources.routed = routed.sources(group, in: layer.context)
      }
    }
    return sources
  }

  /// The code that has exactly a part's numbers, of every expert.
  private func code(_ entry: LayerTensors.Entry, _ part: Int) throws(Fault) -> PanelCode? {
    let matrices = entry.matrices
    if matrices.transposed { return nil }
    var found: PanelCode?
    for expert in 0..<entry.count {
      let place = try place(entry, expert)
      guard let code = place.code(columns: matrices.columns), found == nil || found == code else { return nil }
      for first in stride(from: 0, to: matrices.rows, by: chunkWidth) {
        let last = min(first + chunkWidth, matrices.rows) - 1
        if !place.shareScales(matrices.fusedRow(part, first), matrices.fusedRow(part, last)) { return nil }
      }
      found = code
    }
    return found
  }

  /// The sources of an entry's parts; nil where it is none of matrices that are packed.
  func sources(_ entry: LayerTensors.Entry, _ sources: LayerSources) -> PackedEntry? {
    let layer = tensors.layer
    guard let place = layer.parameters.matrix(entry.matrices.first),
      let own = sources[layer.configuration.groups[place.group]]
    else { return nil }
    let matrices = FusedMatrices(
      entry.rule, entry.matrices.first, entry.matrices.second, byExpert: true,
      spread: layer.spreadExperts(of: entry.matrices.first))
    let second = matrices.second.flatMap { layer.parameters.matrix($0)?.matrix }
    return PackedEntry(
      entry: entry, matrices: matrices, group: layer.configuration.groups[place.group], first: place.matrix,
      second: second, sources: own)
  }

  /// `raw`: [PackedEntry.rawBytes] of each thread.
  func pack(
    _ packed: PackedEntry, raw: UnsafeMutableRawPointer, to prepared: PreparedWeights, in context: ContextPointer
  ) throws(Fault) {
    try context.runToTheEnd(
      packed.matrices.experts,
      PackMatrices(
        loading: self, packed: packed, prepared: prepared, raw: raw, rawBytes: try rawBytes(packed),
        valueBytes: try valueBytes(packed)))
  }

  /// What a thread needs: what is read of one expert, and one panel's rows.
  func rawBytes(_ packed: PackedEntry) throws(Fault) -> Int {
    var most = 0
    for part in 0..<packed.matrices.parts {
      most = max(
        most, try PanelStage.bytes(packed.sources[packed.matrix(part)], columns: packed.matrices.columns, kernels))
    }
    return most + (try valueBytes(packed))
  }

  fileprivate func valueBytes(_ packed: PackedEntry) throws(Fault) -> Int {
    var most = 0
    for expert in 0..<(packed.isNumbered ? packed.entry.count : 1) {
      most = max(most, try place(packed.entry, expert).bytes(packed.matrices.elements))
    }
    return (most + 63) & ~63
  }
}

/// A rule's matrices, which become panels.
struct PackedEntry {
  let entry: LayerTensors.Entry
  let matrices: FusedMatrices
  let group: ExpertGroup
  let first: PreparedWeights.Matrix
  let second: PreparedWeights.Matrix?
  let sources: GroupSources

  func matrix(_ part: Int) -> PreparedWeights.Matrix { part == 0 ? first : second! }
  /// A parameter as it is holds all its experts in one tensor, however many there are.
  var isNumbered: Bool { entry.isNumbered && entry.rule.listing != .plain }
}

extension FusedMatrices {
  /// Which of the elements that are read is at that place of a part.
  fileprivate func element(_ part: Int, _ row: Int, _ column: Int) -> Int {
    let row = fusedRow(part, row)
    return transposed ? column * fusedRows + row : row * columns + column
  }

  /// One panel of an expert's matrix. False where the form cannot hold it.
  func pack(
    _ part: Int, _ chunk: Int, from values: StoredValues, _ stage: PanelStage, into panel: UnsafeMutableRawPointer
  ) -> Bool {
    let first = chunk * chunkWidth
    let rows = min(chunkWidth, self.rows - first)
    if transposed {
      stage.gatherColumns(
        values, fusedRow(part, first), stride: fusedRows, step: fusedRow(part, 1) - fusedRow(part, 0), rows: rows)
    } else {
      for i in 0..<rows { stage.gather(values, fusedRow(part, first + i) * columns, stride: 1, as: i) }
    }
    return stage.pack(rows: rows, of: values, turned: transposed, into: panel)
  }
}

/// An item is one expert.
private struct PackMatrices: FallibleJob {
  let loading: Loading
  let packed: PackedEntry
  let prepared: PreparedWeights
  let raw: UnsafeMutableRawPointer  // [lanes, rawBytes]
  let rawBytes: Int
  let valueBytes: Int

  func run(_ item: Int, lane: Int) throws(Fault) {
    let raw = raw + lane * rawBytes
    let matrices = packed.matrices
    let number = matrices.stored.first + item
    let place = try loading.place(packed.entry, packed.isNumbered ? number : 0).from(
      packed.isNumbered ? 0 : number * matrices.elements)
    let values = try loading.checkpoint.values(place, matrices.elements, raw: raw)
    for part in 0..<matrices.parts {
      let (matrix, source) = (packed.matrix(part), packed.sources[packed.matrix(part)])
      var arena = Arena(raw + valueBytes)
      let stage = PanelStage(&arena, source, columns: matrices.columns, loading.kernels)
      for i in 0..<StoredMatrix.sampleCount {
        let place = StoredMatrix.samplePlace(i, rows: matrices.rows, columns: matrices.columns)
        prepared.note(matrix, item, i, stage.number(values, matrices.element(part, place.row, place.column)))
      }
      for chunk in 0..<chunks(of: matrices.rows) {
        let panel = prepared.panel(matrix, packed.group, item, chunk)
        if !matrices.pack(part, chunk, from: values, stage, into: panel) {
          throw .notHeld(matrices.part(part).name, source)
        }
      }
    }
  }
}
