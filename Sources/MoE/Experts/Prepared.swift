import CShims

/// A packed copy of the experts' weights, made once for inference: forward then streams panels as they will be multiplied,
/// instead of packing them in every call. The values are the same, and so are the bits of the results.
/// In another type forward computes as a layer with weights of that type does.
struct PreparedWeights {
  let type: ElementType
  fileprivate let gate: UnsafeMutableRawPointer?  // [E, chunks of I, filled up H, 32]
  fileprivate let up: UnsafeMutableRawPointer  // the same; empty for linear experts
  fileprivate let down: UnsafeMutableRawPointer  // [E, chunks of H, filled up I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>  // [E, 3, samplesPerMatrix]

  fileprivate static var samplesPerMatrix: Int { 16 }

  /// `experts`: for how many of the group's there is room.
  init(_ arena: inout Arena, _ c: ExpertGroup, experts: Int, type: ElementType) {
    let precision = type.format.precision
    func take(_ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      let bytes = type.bytes(precision.filledUp(columns))
      return UnsafeMutableRawPointer(arena.take(UInt8.self, experts * padded(rows), bytes))
    }
    self.type = type
    gate = c.gated ? take(c.intermediate, c.hidden) : nil
    up = take(c.linear ? 0 : c.intermediate, c.hidden)
    down = take(c.hidden, c.intermediate)
    samples = arena.take(Float.self, experts, 3 * Self.samplesPerMatrix)
  }

  func panels<P: Precision>(_: P.Type, _ c: ExpertGroup) -> PreparedPanels<P> { PreparedPanels(self, c) }

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
    let (size, w) = (c.hidden * c.intermediate, source.tensors(c, expert: expert))
    func take(_ matrix: StoredMatrix, width: Int, _ number: Int) {
      for i in 0..<samplesPerMatrix {
        // From the first element to the last.
        let place = i * (size - 1) / (samplesPerMatrix - 1)
        matrix.from(row: place / width).from(column: place % width).read(
          0, 1, into: samples + number * samplesPerMatrix + i, kernels)
      }
    }
    samples.update(repeating: 0, count: 2 * samplesPerMatrix)
    if let gate = w.gateWeight { take(gate, width: c.hidden, 0) }
    if !c.linear { take(w.upWeight, width: c.hidden, 1) }
    take(w.downWeight, width: c.intermediate, 2)
  }
}

/// The packed copies of all groups; none of any where nothing was prepared.
struct PreparedGroups {
  private let arena: Arena?
  private let c: Configuration
  private let type: ElementType
  private let slots: Slots?

  /// Of a group that has room for some experts alone, which come from a file.
  typealias Slots = (group: Int, count: Int)

  init(_ c: Configuration) {
    self.c = c
    arena = nil
    type = .f32
    slots = nil
  }

  init(_ arena: inout Arena, _ c: Configuration, type: ElementType, slots: Slots? = nil) {
    self.c = c
    self.arena = arena
    self.type = type
    self.slots = slots
    for index in 0..<c.groupCount { _ = take(&arena, c.groups[index]) }
  }

  /// Whether both are packed in the same form, or neither is.
  func isAlike(_ other: PreparedGroups) -> Bool { (arena == nil) == (other.arena == nil) && type == other.type }

  /// Whether forward rounds tokens that backward would not.
  var rounds: Bool { arena != nil && type.format.precision != c.groups[0].weights.format.precision }

  /// Found by laying the groups out again.
  func of(_ group: ExpertGroup) -> PreparedWeights? {
    guard var arena else { return nil }
    for index in 0..<group.index { _ = take(&arena, c.groups[index]) }
    return take(&arena, group)
  }

  private func take(_ arena: inout Arena, _ group: ExpertGroup) -> PreparedWeights? {
    guard group.multiplies else { return nil }
    let experts = hasSlots(group) ? slots!.count : group.experts
    return PreparedWeights(&arena, group, experts: experts, type: type)
  }

  private func hasSlots(_ group: ExpertGroup) -> Bool { slots?.group == group.index }

  /// All that is in memory.
  func pack(_ source: ExpertSource, in context: ContextPointer) {
    for index in 0..<c.groupCount where !hasSlots(c.groups[index]) {
      let group = c.groups[index]
      guard let prepared = of(group) else { continue }
      type.format.precision.visit(
        Prepare(group: group, prepared: prepared, source: source.of(group), context: context))
    }
  }
}

private struct Prepare: PrecisionBody {
  let group: ExpertGroup
  let prepared: PreparedWeights
  let source: ExpertSource
  let context: ContextPointer

  func run<P: Precision>(_: P.Type) {
    PrepareWeights<P>(group, context: context, source: source, prepared: prepared).run(in: context)
  }
}

/// The panels of one precision: H or I rows of 32.
struct PreparedPanels<P: Precision> {
  private let prepared: PreparedWeights
  private let c: ExpertGroup

  fileprivate init(_ prepared: PreparedWeights, _ c: ExpertGroup) {
    self.prepared = prepared
    self.c = c
  }

  func gate(_ expert: Int, _ chunk: Int) -> WeightPanel<P> { WeightPanel(packed: innerGate(expert, chunk)) }
  func up(_ expert: Int, _ chunk: Int) -> WeightPanel<P> { WeightPanel(packed: innerUp(expert, chunk)) }
  func down(_ expert: Int, _ chunk: Int) -> WeightPanel<P> { WeightPanel(packed: outer(expert, chunk)) }

  fileprivate func innerGate(_ expert: Int, _ chunk: Int) -> UnsafeMutablePointer<P.Element> {
    place(prepared.gate!, expert, chunk, c.intermediate, c.hidden)
  }
  fileprivate func innerUp(_ expert: Int, _ chunk: Int) -> UnsafeMutablePointer<P.Element> {
    place(prepared.up, expert, chunk, c.intermediate, c.hidden)
  }
  fileprivate func outer(_ expert: Int, _ chunk: Int) -> UnsafeMutablePointer<P.Element> {
    place(prepared.down, expert, chunk, c.hidden, c.intermediate)
  }
  private func place(
    _ matrix: UnsafeMutableRawPointer, _ expert: Int, _ chunk: Int, _ rows: Int, _ columns: Int
  ) -> UnsafeMutablePointer<P.Element> {
    matrix.assumingMemoryBound(to: P.Element.self)
      + (expert * padded(rows) + chunk * chunkWidth) * P.filledUp(columns)
  }
}

/// Packs one chunk of columns of one expert per item: those of gate and up, then those of down.
struct PrepareWeights<P: Precision>: Job {
  let source: ExpertSource
  let prepared: PreparedWeights
  private let packing: Packing<P>

  init(_ c: ExpertGroup, context: ContextPointer, source: ExpertSource, prepared: PreparedWeights) {
    self.source = source
    self.prepared = prepared
    packing = Packing(c: c, kernels: context.kernels, panels: prepared.panels(P.self, c))
  }

  func run(in context: ContextPointer) {
    context.runToTheEnd(packing.c.experts * packing.chunksPerExpert, self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let c = packing.c
    let (expert, chunk) = (item / packing.chunksPerExpert, item % packing.chunksPerExpert)
    packing.run(chunk, place: expert, source.tensors(c, expert: expert))
    if chunk == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, source, into: prepared.samples + expert * count, packing.kernels)
    }
  }
}

/// From matrices of experts to panels.
struct Packing<P: Precision> {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let panels: PreparedPanels<P>

  private var innerChunks: Int { c.linear ? 0 : chunks(of: c.intermediate) }
  var chunksPerExpert: Int { innerChunks + chunks(of: c.hidden) }

  /// One chunk of columns of an expert's matrices, to number `place` of the panels.
  func run(_ chunk: Int, place: Int, _ w: ExpertTensors) {
    let (h, i) = (c.hidden, c.intermediate)
    if chunk >= innerChunks {
      let outer = chunk - innerChunks
      return pack(w.downWeight, h, i, outer, into: panels.outer(place, outer))
    }
    if let gate = w.gateWeight { pack(gate, i, h, chunk, into: panels.innerGate(place, chunk)) }
    pack(w.upWeight, i, h, chunk, into: panels.innerUp(place, chunk))
  }

  /// One panel of a matrix [rows, depth], piece by piece.
  private func pack(_ matrix: StoredMatrix, _ rows: Int, _ depth: Int, _ chunk: Int, into panel: P.Target) {
    let own = WeightPanel<P>(
      matrix.from(row: chunk * chunkWidth), transposed: true, columns: min(chunkWidth, rows - chunk * chunkWidth))
    for p in stride(from: 0, to: depth, by: P.panelDepth) {
      own.pack(p, min(P.panelDepth, depth - p), into: panel + p * chunkWidth, kernels)
    }
  }
}
