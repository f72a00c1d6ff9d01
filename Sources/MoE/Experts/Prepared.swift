import CShims

/// A packed copy of the experts' weights, made once: forward then streams panels as they will be multiplied, instead of packing them
/// in every call. In the weights' own type the values are the same, and so are the bits of the results. In another type forward
/// computes as a layer with weights of that type does, in blocks as one with the blocks' values, which backward reads as well.
struct PreparedWeights {
  let forms: MatrixForms
  fileprivate let gate: UnsafeMutableRawPointer?  // [E, chunks of I, filled up H, 32]
  fileprivate let up: UnsafeMutableRawPointer  // the same; empty for linear experts
  fileprivate let down: UnsafeMutableRawPointer  // [E, chunks of H, filled up I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>?  // [E, 3, samplesPerMatrix]; nil of panels from a file
  /// [E] 1 and more: that matrix holds what its form cannot
  fileprivate let faults: UnsafeMutablePointer<Int32>?

  fileprivate static var samplesPerMatrix: Int { StoredMatrix.sampleCount }

  /// `experts`: for how many of the group's there is room.
  init(_ arena: inout Arena, _ c: ExpertGroup, experts: Int, forms: MatrixForms) {
    func take(_ matrix: Matrix, _ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      UnsafeMutableRawPointer(arena.take(UInt8.self, experts * chunks(of: rows), forms[matrix].panelBytes(columns)))
    }
    self.forms = forms
    gate = c.gated ? take(.gate, c.intermediate, c.hidden) : nil
    up = take(.up, c.linear ? 0 : c.intermediate, c.hidden)
    down = take(.down, c.hidden, c.intermediate)
    samples = arena.take(Float.self, experts, 3 * Self.samplesPerMatrix)
    faults = arena.take(Int32.self, experts)
  }

  /// Panels from a file, to which nobody writes.
  init(_ forms: MatrixForms, gate: UnsafeRawPointer?, up: UnsafeRawPointer, down: UnsafeRawPointer) {
    self.forms = forms
    self.gate = gate.map { UnsafeMutableRawPointer(mutating: $0) }
    (self.up, self.down) = (UnsafeMutableRawPointer(mutating: up), UnsafeMutableRawPointer(mutating: down))
    (samples, faults) = (nil, nil)
  }

  enum Matrix: Int32 { case gate, up, down }

  /// Numbers of samples, where panels are made of something else than matrices in memory; 0 of matrices that there are none of.
  func clearSamples(experts: Int) { samples?.update(repeating: 0, count: experts * 3 * Self.samplesPerMatrix) }
  func note(_ matrix: Matrix, _ expert: Int, _ i: Int, _ value: Float) {
    samples?[(expert * 3 + Int(matrix.rawValue)) * Self.samplesPerMatrix + i] = value
  }

  /// Bytes of one expert's.
  func bytes(_ matrix: Matrix, _ c: ExpertGroup) -> Int {
    let rows = matrix == .down ? c.hidden : c.intermediate
    let columns = matrix == .down ? c.intermediate : c.hidden
    return chunks(of: rows) * forms[matrix].panelBytes(columns)
  }

  /// Where a panel lies: of number `expert`, 32 outputs from number 32 `chunk` on.
  func panel(_ matrix: Matrix, _ c: ExpertGroup, _ expert: Int, _ chunk: Int) -> UnsafeMutableRawPointer {
    let start =
      switch matrix {
      case .gate: gate!
      case .up: up
      case .down: down
      }
    let columns = matrix == .down ? c.intermediate : c.hidden
    return start + expert * bytes(matrix, c) + chunk * forms[matrix].panelBytes(columns)
  }

  /// All of one expert's panels, whose form is looked up once.
  func panels(_ matrix: Matrix, _ c: ExpertGroup, _ expert: Int) -> ExpertPanels {
    let form = forms[matrix]
    let columns = matrix == .down ? c.intermediate : c.hidden
    let start = UnsafeRawPointer(panel(matrix, c, expert, 0))
    return ExpertPanels(start: start, form: form, bytes: form.panelBytes(columns))
  }

  struct ExpertPanels {
    fileprivate let start: UnsafeRawPointer
    let form: PanelForm
    fileprivate let bytes: Int  // of one

    /// As the products of a precision read it: 32 outputs from number 32 `chunk` on.
    func panel<P: Precision>(_: P.Type, _ chunk: Int) -> WeightPanel<P> { form.panel(P.self, start + chunk * bytes) }
  }

  /// Whether the expert's weights are still those that were packed, as far as a sample of each matrix tells: reading all
  /// of them would cost what the packing saves.
  func isCurrent(
    _ c: ExpertGroup, expert: Int, _ source: ExpertSource, _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    guard let samples else { return true }
    let count = 3 * Self.samplesPerMatrix
    return withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { now in
      Self.sample(c, expert: expert, source, into: now.baseAddress!, kernels)
      let then = samples + expert * count
      for i in 0..<count where now[i].bitPattern != then[i].bitPattern { return false }
      return true
    }
  }

  /// What `isCurrent` will read of the expert's matrices is fetched.
  func fetchSamples(_ c: ExpertGroup, expert: Int, _ source: ExpertSource) {
    let (h, i, w) = (c.hidden, c.intermediate, source.tensors(c, expert: expert))
    w.gateWeight?.fetchSample(rows: i, columns: h)
    if !c.linear { w.upWeight.fetchSample(rows: i, columns: h) }
    w.downWeight.fetchSample(rows: h, columns: i)
  }

  fileprivate static func sample(
    _ c: ExpertGroup, expert: Int, _ source: ExpertSource, into samples: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    let (h, i, w) = (c.hidden, c.intermediate, source.tensors(c, expert: expert))
    let (gate, up, down) = (samples, samples + samplesPerMatrix, samples + 2 * samplesPerMatrix)
    samples.update(repeating: 0, count: 2 * samplesPerMatrix)
    w.gateWeight?.sample(rows: i, columns: h, into: gate, kernels)
    if !c.linear { w.upWeight.sample(rows: i, columns: h, into: up, kernels) }
    w.downWeight.sample(rows: h, columns: i, into: down, kernels)
  }
}

/// The packed copies of all groups; none of those that have no forms.
struct PreparedGroups {
  private let arena: Arena?
  private let c: Configuration
  private let forms: LayerForms
  /// Whether groups that could be trained count as not packed.
  private var areFrozenAlone = false
  private let slots: Slots?
  private let places: Places?

  /// [groups] Of panels that lie elsewhere, in files.
  typealias Places = UnsafePointer<PreparedWeights?>
  /// Of a group that has room for some experts alone, which come from a file.
  typealias Slots = (group: Int, count: Int)

  init(_ c: Configuration) {
    self.c = c
    arena = nil
    forms = LayerForms()
    (slots, places) = (nil, nil)
  }

  /// `places`: of groups without slots, which then take no memory.
  init(_ arena: inout Arena, _ c: Configuration, forms: LayerForms, slots: Slots? = nil, places: Places? = nil) {
    self.c = c
    self.arena = arena
    self.forms = forms
    (self.slots, self.places) = (slots, places)
    for index in 0..<c.groupCount { _ = take(&arena, c.groups[index]) }
  }

  /// The form in which forward computes something else than backward would.
  var changedValues: PanelForm? {
    for index in 0..<c.groupCount where c.groups[index].multiplies {
      let group = c.groups[index]
      if let own = forms[group], !own.isFrozen, let form = own.changing(group.weights) { return form }
    }
    return nil
  }

  /// Those of few bits.
  var frozenForms: LayerForms { forms.frozen }
  var areOfBlocks: Bool { !frozenForms.isEmpty }

  /// Those of few bits, which backward reads: others it reads as they are.
  var frozen: PreparedGroups {
    var own = self
    own.areFrozenAlone = true
    return own
  }

  /// Whether both are packed in the same forms, or neither is.
  func isAlike(_ other: PreparedGroups) -> Bool { forms == other.forms }

  /// Found by laying the groups out again.
  func of(_ group: ExpertGroup) -> PreparedWeights? {
    var arena = arena ?? Arena()
    for index in 0..<group.index { _ = take(&arena, c.groups[index]) }
    if areFrozenAlone && !(forms[group]?.isFrozen ?? false) { return nil }
    return take(&arena, group)
  }

  private func take(_ arena: inout Arena, _ group: ExpertGroup) -> PreparedWeights? {
    guard group.multiplies, let forms = forms[group] else { return nil }
    if let places, !hasSlots(group) { return places[group.index] }
    let experts = hasSlots(group) ? slots!.count : group.experts
    return PreparedWeights(&arena, group, experts: experts, forms: forms)
  }

  private func hasSlots(_ group: ExpertGroup) -> Bool { slots?.group == group.index }

  /// All that is in memory of its own; `squares` tells what the experts read, where that is known.
  func pack(_ source: ExpertSource, _ squares: LayerSquares? = nil, in context: ContextPointer) throws(Fault) {
    for index in 0..<c.groupCount where !hasSlots(c.groups[index]) && places == nil {
      let group = c.groups[index]
      guard let prepared = of(group), let faults = prepared.faults else { continue }
      faults.update(repeating: 0, count: group.experts)
      try PrepareWeights(group, context: context, source: source.of(group), prepared: prepared).run(
        squares?.group(index), in: context)
      for expert in 0..<group.experts {
        guard let matrix = PreparedWeights.Matrix(rawValue: faults[expert] - 1) else { continue }
        throw Fault(
          .notFinite,
          "the weights of expert \(group.first + expert) hold a number that is not finite, or too large for its scale (\(prepared.forms[matrix].constant)): mend the weights, or prepare another form"
        )
      }
    }
  }
}

/// Packs one chunk of columns of one expert per item: those of gate and up, then those of down.
private struct PrepareWeights: Job {
  let source: ExpertSource
  let prepared: PreparedWeights
  private let packing: Packing
  private var chunks: Range<Int>  // of the expert's, those that are packed now
  private var calibrated: CalibratedPacking?

  init(_ c: ExpertGroup, context: ContextPointer, source: ExpertSource, prepared: PreparedWeights) {
    self.source = source
    self.prepared = prepared
    packing = Packing(c: c, kernels: context.kernels, prepared: prepared)
    chunks = 0..<packing.chunksPerExpert
  }

  func run(_ squares: GroupSquares?, in context: ContextPointer) throws(Fault) {
    guard let squares else { return context.runToTheEnd(packing.c.experts * chunks.count, self) }
    if let inner = squares.inner { try run(inner, 0..<packing.innerChunks, in: context) }
    try run(squares.down, packing.innerChunks..<packing.chunksPerExpert, in: context)
  }

  /// Those of the matrices that read the same.
  private func run(_ squares: InputSquares, _ chunks: Range<Int>, in context: ContextPointer) throws(Fault) {
    try context.withScratch({ CalibratedPacking(&$0, squares, lanes: context.lanes) }) { (calibrated) throws(Fault) in
      calibrated.begin(packing.kernels)
      var own = self
      (own.chunks, own.calibrated) = (chunks, calibrated)
      context.runToTheEnd(packing.c.experts * (calibrated.isByExpert ? 1 : chunks.count), own)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    guard let calibrated else {
      return pack(item / chunks.count, chunks.lowerBound + item % chunks.count, nil)
    }
    let expert = calibrated.isByExpert ? item : item / chunks.count
    let weighted = calibrated.weighted(expert: expert, lane: lane.pointee.index, packing.kernels)
    if !calibrated.isByExpert { return pack(expert, chunks.lowerBound + item % chunks.count, weighted) }
    for chunk in chunks { pack(expert, chunk, weighted) }
  }

  private func pack(_ expert: Int, _ chunk: Int, _ weighted: WeightedScratch?) {
    let c = packing.c
    if let matrix = packing.run(chunk, place: expert, source.tensors(c, expert: expert), weighted) {
      moei_store(prepared.faults! + expert, matrix.rawValue + 1)
    }
    if chunk == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, source, into: prepared.samples! + expert * count, packing.kernels)
    }
  }
}

/// From matrices of experts to panels.
struct Packing {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let prepared: PreparedWeights

  fileprivate var innerChunks: Int { c.linear ? 0 : chunks(of: c.intermediate) }
  var chunksPerExpert: Int { innerChunks + chunks(of: c.hidden) }

  /// One chunk of columns of an expert's matrices, to number `place` of the panels. Returns one that its form cannot hold.
  func run(
    _ chunk: Int, place: Int, _ w: ExpertTensors, _ weighted: WeightedScratch? = nil
  ) -> PreparedWeights.Matrix? {
    if chunk >= innerChunks {
      return pack(w.downWeight, .down, chunk - innerChunks, place, weighted) ? nil : .down
    }
    let isHeld = pack(w.upWeight, .up, chunk, place, weighted)
    if let gate = w.gateWeight, !pack(gate, .gate, chunk, place, weighted) { return .gate }
    return isHeld ? nil : .up
  }

  private func pack(
    _ weights: StoredMatrix, _ matrix: PreparedWeights.Matrix, _ chunk: Int, _ place: Int, _ weighted: WeightedScratch?
  ) -> Bool {
    let (rows, depth) = matrix == .down ? (c.hidden, c.intermediate) : (c.intermediate, c.hidden)
    return prepared.forms[matrix].pack(
      weights, rows: rows, depth: depth, chunk: chunk, into: prepared.panel(matrix, c, place, chunk), kernels,
      weighted: weighted)
  }
}
