import CShims

/// A packed copy of the experts' weights, made once for inference: forward then streams panels as they will be multiplied,
/// instead of packing them in every call. The values are the same, and so are the bits of the results.
/// In another type forward computes as a layer with weights of that type does, in blocks as one with the blocks' values.
struct PreparedWeights {
  let form: PanelForm
  fileprivate let gate: UnsafeMutableRawPointer?  // [E, chunks of I, filled up H, 32]
  fileprivate let up: UnsafeMutableRawPointer  // the same; empty for linear experts
  fileprivate let down: UnsafeMutableRawPointer  // [E, chunks of H, filled up I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>  // [E, 3, samplesPerMatrix]
  /// [E] 1 = a matrix holds what the form cannot
  fileprivate let faults: UnsafeMutablePointer<Int32>

  fileprivate static var samplesPerMatrix: Int { StoredMatrix.sampleCount }

  /// `experts`: for how many of the group's there is room.
  init(_ arena: inout Arena, _ c: ExpertGroup, experts: Int, form: PanelForm) {
    func take(_ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      UnsafeMutableRawPointer(arena.take(UInt8.self, experts * chunks(of: rows), form.panelBytes(columns)))
    }
    self.form = form
    gate = c.gated ? take(c.intermediate, c.hidden) : nil
    up = take(c.linear ? 0 : c.intermediate, c.hidden)
    down = take(c.hidden, c.intermediate)
    samples = arena.take(Float.self, experts, 3 * Self.samplesPerMatrix)
    faults = arena.take(Int32.self, experts)
  }

  enum Matrix: Int32 { case gate, up, down }

  /// Where a panel lies: of number `expert`, 32 outputs from number 32 `chunk` on.
  func panel(_ matrix: Matrix, _ c: ExpertGroup, _ expert: Int, _ chunk: Int) -> UnsafeMutableRawPointer {
    let (start, rows, columns) =
      switch matrix {
      case .gate: (gate!, c.intermediate, c.hidden)
      case .up: (up, c.intermediate, c.hidden)
      case .down: (down, c.hidden, c.intermediate)
      }
    return start + (expert * chunks(of: rows) + chunk) * form.panelBytes(columns)
  }

  /// The same as the products of a precision read it.
  func panel<P: Precision>(
    _: P.Type, _ matrix: Matrix, _ c: ExpertGroup, _ expert: Int, _ chunk: Int
  ) -> WeightPanel<P> {
    form.panel(P.self, panel(matrix, c, expert, chunk))
  }

  /// Whether the expert's weights are still those that were packed, as far as a sample of each matrix tells: reading all
  /// of them would cost what the packing saves.
  func isCurrent(
    _ c: ExpertGroup, expert: Int, _ source: ExpertSource, _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    let count = 3 * Self.samplesPerMatrix
    return withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { now in
      Self.sample(c, expert: expert, source, into: now.baseAddress!, kernels)
      let then = samples + expert * count
      for i in 0..<count where now[i].bitPattern != then[i].bitPattern { return false }
      return true
    }
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

/// The packed copies of all groups; none of any where nothing was prepared.
struct PreparedGroups {
  private let arena: Arena?
  private let c: Configuration
  private let form: PanelForm
  private let slots: Slots?

  /// Of a group that has room for some experts alone, which come from a file.
  typealias Slots = (group: Int, count: Int)

  init(_ c: Configuration) {
    self.c = c
    arena = nil
    form = .f32
    slots = nil
  }

  init(_ arena: inout Arena, _ c: Configuration, form: PanelForm, slots: Slots? = nil) {
    self.c = c
    self.arena = arena
    self.form = form
    self.slots = slots
    for index in 0..<c.groupCount { _ = take(&arena, c.groups[index]) }
  }

  /// Whether forward computes something else than backward would.
  var changesValues: Bool { arena != nil && form.changesValues(of: c.groups[0].weights) }
  /// What they are in, for messages.
  var constant: StaticString { form.constant }

  /// Whether weights are in few bits, where they are packed.
  var isOfBlocks: Bool { arena != nil && form.code != nil }

  /// Whether both are packed in the same form, or neither is.
  func isAlike(_ other: PreparedGroups) -> Bool { (arena == nil) == (other.arena == nil) && form == other.form }

  /// Found by laying the groups out again.
  func of(_ group: ExpertGroup) -> PreparedWeights? {
    guard var arena else { return nil }
    for index in 0..<group.index { _ = take(&arena, c.groups[index]) }
    return take(&arena, group)
  }

  private func take(_ arena: inout Arena, _ group: ExpertGroup) -> PreparedWeights? {
    guard group.multiplies else { return nil }
    let experts = hasSlots(group) ? slots!.count : group.experts
    return PreparedWeights(&arena, group, experts: experts, form: form)
  }

  private func hasSlots(_ group: ExpertGroup) -> Bool { slots?.group == group.index }

  /// All that is in memory; `squares` tells what the experts read, where that is known.
  func pack(_ source: ExpertSource, _ squares: LayerSquares? = nil, in context: ContextPointer) throws(Fault) {
    for index in 0..<c.groupCount where !hasSlots(c.groups[index]) {
      let group = c.groups[index]
      guard let prepared = of(group) else { continue }
      prepared.faults.update(repeating: 0, count: group.experts)
      try PrepareWeights(group, context: context, source: source.of(group), prepared: prepared).run(
        squares?.group(index), in: context)
      for expert in 0..<group.experts where prepared.faults[expert] != 0 {
        throw Fault(
          .notFinite,
          "the weights of expert \(group.first + expert) hold a number that is not finite, or too large for its scale (\(form.constant)): mend the weights, or prepare another form"
        )
      }
    }
  }
}

extension Configuration {
  /// Refuses sizes that a form cannot hold.
  func require(_ form: PanelForm?) throws(Fault) {
    guard let form else { return }
    for index in 0..<groupCount where groups[index].multiplies {
      let group = groups[index]
      try form.require(group.hidden, inputsOf: "an expert's matrix by hidden_size")
      if !group.linear { try form.require(group.intermediate, inputsOf: "an expert's matrix by intermediate_size") }
    }
  }
}

/// Packs one chunk of columns of one expert per item: those of gate and up, then those of down.
private struct PrepareWeights: Job {
  let source: ExpertSource
  let prepared: PreparedWeights
  private let packing: Packing
  private var calibrated: CalibratedExperts?

  init(_ c: ExpertGroup, context: ContextPointer, source: ExpertSource, prepared: PreparedWeights) {
    self.source = source
    self.prepared = prepared
    packing = Packing(c: c, kernels: context.kernels, prepared: prepared)
  }

  func run(_ squares: GroupSquares?, in context: ContextPointer) throws(Fault) {
    let items = packing.c.experts * packing.chunksPerExpert
    guard let squares, prepared.form.code != nil else { return context.runToTheEnd(items, self) }
    try context.withScratch(
      { CalibratedExperts(&$0, packing, squares, lanes: context.lanes) }
    ) { (calibrated) throws(Fault) in
      var own = self
      own.calibrated = calibrated
      context.runToTheEnd(items, own)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let c = packing.c
    let (expert, chunk) = (item / packing.chunksPerExpert, item % packing.chunksPerExpert)
    let weighted = calibrated.map { $0.weighted(packing, chunk, expert: expert, lane: lane.pointee.index) }
    if !packing.run(chunk, place: expert, source.tensors(c, expert: expert), weighted: weighted) {
      moei_store(prepared.faults + expert, 1)
    }
    if chunk == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, source, into: prepared.samples + expert * count, packing.kernels)
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

  /// One chunk of columns of an expert's matrices, to number `place` of the panels. False where the form cannot hold them.
  func run(_ chunk: Int, place: Int, _ w: ExpertTensors, weighted: WeightedScratch? = nil) -> Bool {
    let (h, i) = (c.hidden, c.intermediate)
    if chunk >= innerChunks {
      let outer = chunk - innerChunks
      return pack(w.downWeight, h, i, outer, into: prepared.panel(.down, c, place, outer), weighted)
    }
    let up = pack(w.upWeight, i, h, chunk, into: prepared.panel(.up, c, place, chunk), weighted)
    guard let gate = w.gateWeight else { return up }
    return pack(gate, i, h, chunk, into: prepared.panel(.gate, c, place, chunk), weighted) && up
  }

  private func pack(
    _ matrix: StoredMatrix, _ rows: Int, _ depth: Int, _ chunk: Int, into panel: UnsafeMutableRawPointer,
    _ weighted: WeightedScratch?
  ) -> Bool {
    prepared.form.pack(matrix, rows: rows, depth: depth, chunk: chunk, into: panel, kernels, weighted: weighted)
  }
}

/// What the packing of a calibrated group's matrices reads, by each thread in scratch of its own.
private struct CalibratedExperts {
  private let inner: CalibratedPacking?
  private let down: CalibratedPacking

  init(_ arena: inout Arena, _ packing: Packing, _ squares: GroupSquares, lanes: Int) {
    let code = packing.prepared.form.code!
    func calibrated(_ squares: InputSquares, _ arena: inout Arena) -> CalibratedPacking {
      CalibratedPacking(squares: squares, scratch: EncodingScratch(&arena, code, depth: squares.inputs, lanes: lanes))
    }
    inner = squares.inner.map { calibrated($0, &arena) }
    down = calibrated(squares.down, &arena)
  }

  func weighted(_ packing: Packing, _ chunk: Int, expert: Int, lane: Int) -> WeightedScratch {
    (chunk < packing.innerChunks ? inner! : down).weighted(expert: expert, lane: lane)
  }
}
