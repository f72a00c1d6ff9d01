import CShims

// One tensor's rows become panels while they are read.

extension ModelLoading {
  /// What packing a tensor takes: all of it where it is read at once, and what each thread needs.
  func packedBytes(_ entry: FamilyEntry, _ packing: ModelPacking) throws(Fault) -> Int {
    guard let source = packing.source(entry, tensors.model) else { return 0 }
    let rows = try PackRows(self, entry, source, try stored(entry))
    return rows.wholeBytes + tensors.model.context.lanes * rows.rawBytes
  }

  /// Where it is packed.
  func pack(_ entry: FamilyEntry, _ raw: UnsafeMutableRawPointer) throws(Fault) {
    guard let packing, let source = packing.source(entry, tensors.model) else { return }
    var rows = try PackRows(self, entry, source, try stored(entry))
    if rows.wholeBytes > 0 { rows.whole = try checkpoint.values(rows.stored, 0, raw: raw) }
    (rows.target, rows.raw) = (packing.target(entry, tensors.model), raw + rows.wholeBytes)
    try tensors.model.context.runToTheEnd(rows.panels, rows)
  }
}

/// Where a tensor's panels are.
enum PanelTarget {
  case matrix(PanelMatrixPointer)
  /// Of a dense ffn's only expert.
  case expert(PreparedWeights, PreparedWeights.Matrix, ExpertGroup)

  func panel(_ number: Int) -> UnsafeMutableRawPointer {
    switch self {
    case .matrix(let panels): panels.pointee.start(number)
    case .expert(let prepared, let matrix, let group): prepared.panel(matrix, group, 0, number)
    }
  }

  /// Number i of a sample.
  func note(_ i: Int, _ value: Float) {
    switch self {
    case .matrix(let panels): panels.pointee.note(i, value)
    case .expert(let prepared, let matrix, _): prepared.note(matrix, 0, i, value)
    }
  }
}

/// An item is one panel of the tensor's.
private struct PackRows: FallibleJob {
  private let checkpoint: Checkpoint
  private let kernels: UnsafePointer<moei_kernels>
  private let entry: FamilyEntry
  private let source: PanelSource
  let stored: StoredPlace
  private let stretches: (Range<Int>, Range<Int>?)
  private let rowBytes: Int
  /// Of a thread: a row as it is read, and what a panel's rows need.
  let rawBytes: Int
  /// Of all rows, where they are read at once.
  let wholeBytes: Int
  var whole: StoredValues?
  var target: PanelTarget?
  var raw: UnsafeMutableRawPointer?  // [lanes, rawBytes]

  init(_ loading: ModelLoading, _ entry: FamilyEntry, _ source: PanelSource, _ stored: StoredPlace) throws(Fault) {
    (checkpoint, kernels) = (loading.checkpoint, loading.tensors.model.context.kernels)
    (self.entry, self.source, self.stored) = (entry, source, stored)
    stretches = entry.places.stretches
    func filledUp(_ bytes: Int) -> Int { (bytes + 63) & ~63 }
    wholeBytes = stored.matrix == nil ? 0 : filledUp(stored.bytes(0))
    rowBytes = stored.matrix == nil ? filledUp(stored.bytes(entry.columns)) : 0
    rawBytes = rowBytes + (try PanelStage.bytes(source, columns: entry.columns, kernels))
  }

  private var panelsOfFirst: Int { chunks(of: stretches.0.count) }
  var panels: Int { panelsOfFirst + (stretches.1.map { chunks(of: $0.count) } ?? 0) }

  func run(_ item: Int, lane: Int) throws(Fault) {
    guard let target, let raw else { return }
    let (stretch, number) = item < panelsOfFirst ? (stretches.0, item) : (stretches.1!, item - panelsOfFirst)
    let first = stretch.lowerBound + number * chunkWidth
    let rows = first..<min(first + chunkWidth, stretch.upperBound)
    let own = raw + lane * rawBytes
    var arena = Arena(own + rowBytes)
    let stage = PanelStage(&arena, source, columns: entry.columns, kernels)
    var values = whole
    for p in rows {
      var row = entry.places.row(at: p) * entry.columns
      if whole == nil {
        values = try checkpoint.values(stored.from(row), entry.columns, raw: own)
        row = 0
      }
      stage.gather(values!, row, stride: 1, as: p - first)
      for i in 0..<StoredMatrix.sampleCount {
        let place = StoredMatrix.samplePlace(i, rows: entry.rows, columns: entry.columns)
        if place.row == p { target.note(i, stage.number(values!, row + place.column)) }
      }
    }
    if !stage.pack(rows: rows.count, of: values!, into: target.panel(first / chunkWidth)) {
      throw .notHeld(entry.parameter.name, source)
    }
  }
}
