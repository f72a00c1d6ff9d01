import CShims

/// A packed copy of the experts' weights, made once for inference: forward then streams panels as they will be multiplied,
/// instead of packing them in every call. The values are the same, and so are the bits of the results.
/// In bfloat16 forward computes as a layer with bfloat16 weights does.
struct PreparedWeights {
  let bf16: Bool
  fileprivate let gate: UnsafeMutableRawPointer?  // [E, chunks of I, filled up H, 32]
  fileprivate let up: UnsafeMutableRawPointer  // the same; empty for linear experts
  fileprivate let down: UnsafeMutableRawPointer  // [E, chunks of H, filled up I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>  // [E, 3, samplesPerMatrix]

  fileprivate static var samplesPerMatrix: Int { 16 }

  /// `experts`: for how many of the group's there is room.
  init(_ arena: inout Arena, _ c: ExpertGroup, experts: Int, bf16: Bool) {
    func take<P: Precision>(_: P.Type, _ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      UnsafeMutableRawPointer(arena.take(P.Element.self, experts * padded(rows), P.filledUp(columns)))
    }
    func take(_ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      bf16 ? take(BF16.self, rows, columns) : take(F32.self, rows, columns)
    }
    self.bf16 = bf16
    gate = c.gated ? take(c.intermediate, c.hidden) : nil
    up = take(c.linear ? 0 : c.intermediate, c.hidden)
    down = take(c.hidden, c.intermediate)
    samples = arena.take(Float.self, experts, 3 * Self.samplesPerMatrix)
  }

  func panels<P: Precision>(_: P.Type, _ c: ExpertGroup) -> PreparedPanels<P> { PreparedPanels(self, c) }

  /// Whether the expert's weights are still those that were packed, as far as a sample of each matrix tells: reading all
  /// of them would cost what the packing saves.
  func isCurrent(_ c: ExpertGroup, expert: Int, parameters: Parameters) -> Bool {
    let count = 3 * Self.samplesPerMatrix
    return withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { now in
      Self.sample(c, expert: expert, parameters, into: now.baseAddress!)
      let then = samples + expert * count
      for i in 0..<count where now[i].bitPattern != then[i].bitPattern { return false }
      return true
    }
  }

  fileprivate static func sample(
    _ c: ExpertGroup, expert: Int, _ parameters: Parameters, into samples: UnsafeMutablePointer<Float>
  ) {
    let size = c.hidden * c.intermediate
    func take(_ role: Parameters.Role, _ number: Int) {
      for i in 0..<samplesPerMatrix {
        // From the first element to the last.
        let place = expert * size + i * (size - 1) / (samplesPerMatrix - 1)
        samples[number * samplesPerMatrix + i] = parameters.value(role, place)
      }
    }
    samples.update(repeating: 0, count: 2 * samplesPerMatrix)
    if c.gated { take(.gateWeight, 0) }
    if !c.linear { take(.upWeight, 1) }
    take(.downWeight, 2)
  }
}

/// The packed copies of all groups; none of any where nothing was prepared.
struct PreparedGroups {
  private let arena: Arena?
  private let c: Configuration
  private let bf16: Bool
  private let slots: Slots?

  /// Of a group that has room for some experts alone, which come from a file.
  typealias Slots = (group: Int, count: Int)

  init(_ c: Configuration) {
    self.c = c
    arena = nil
    bf16 = false
    slots = nil
  }

  init(_ arena: inout Arena, _ c: Configuration, bf16: Bool, slots: Slots? = nil) {
    self.c = c
    self.arena = arena
    self.bf16 = bf16
    self.slots = slots
    for index in 0..<c.groupCount { _ = take(&arena, c.groups[index]) }
  }

  /// Whether forward computes in bfloat16 what backward would compute in float32.
  var roundsFloats: Bool { arena != nil && bf16 && c.groups[0].weights == .f32 }

  /// Found by laying the groups out again.
  func of(_ group: ExpertGroup) -> PreparedWeights? {
    guard var arena else { return nil }
    for index in 0..<group.index { _ = take(&arena, c.groups[index]) }
    return take(&arena, group)
  }

  private func take(_ arena: inout Arena, _ group: ExpertGroup) -> PreparedWeights? {
    guard group.multiplies else { return nil }
    let experts = hasSlots(group) ? slots!.count : group.experts
    return PreparedWeights(&arena, group, experts: experts, bf16: bf16)
  }

  private func hasSlots(_ group: ExpertGroup) -> Bool { slots?.group == group.index }

  /// All that is in memory.
  func pack(_ parameters: Parameters, in context: ContextPointer) throws(Fault) {
    for index in 0..<c.groupCount where !hasSlots(c.groups[index]) {
      let group = c.groups[index]
      guard let prepared = of(group) else { continue }
      if bf16 {
        try pack(group, prepared, parameters, in: context, BF16.self)
      } else {
        try pack(group, prepared, parameters, in: context, F32.self)
      }
    }
  }

  private func pack<P: Precision>(
    _ group: ExpertGroup, _ prepared: PreparedWeights, _ parameters: Parameters, in context: ContextPointer,
    _: P.Type
  ) throws(Fault) {
    try context.withScratch({
      PrepareWeights<P>(&$0, group, context: context, parameters: parameters.of(group), prepared: prepared)
    }) { $0.run(in: context) }
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
  let parameters: Parameters
  let prepared: PreparedWeights
  private let packing: Packing<P>
  let buffers: UnsafeMutablePointer<P.Element>?  // [lanes, 32, panelDepth], where weights are rounded first

  init(
    _ arena: inout Arena, _ c: ExpertGroup, context: ContextPointer, parameters: Parameters, prepared: PreparedWeights
  ) {
    self.parameters = parameters
    self.prepared = prepared
    packing = Packing(c: c, kernels: context.kernels, panels: prepared.panels(P.self, c))
    let rounds = prepared.bf16 && c.weights == .f32
    buffers = rounds ? arena.take(P.Element.self, context.lanes * chunkWidth, P.panelDepth) : nil
  }

  func run(in context: ContextPointer) {
    context.runToTheEnd(packing.c.experts * packing.chunksPerExpert, self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let c = packing.c
    let (expert, chunk) = (item / packing.chunksPerExpert, item % packing.chunksPerExpert)
    packing.run(
      chunk, place: expert, buffer: buffers.map { $0 + lane.pointee.index * chunkWidth * P.panelDepth }
    ) { role in
      UnsafeRawPointer(parameters.memory(role)! + expert * c.matrixBytes)
    }
    if chunk == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, parameters, into: prepared.samples + expert * count)
    }
  }
}

/// From one expert's row-major matrices to the panels at one place.
struct Packing<P: Precision> {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let panels: PreparedPanels<P>

  typealias Buffer = UnsafeMutablePointer<P.Element>  // [32, panelDepth]

  private var innerChunks: Int { c.linear ? 0 : chunks(of: c.intermediate) }
  var chunksPerExpert: Int { innerChunks + chunks(of: c.hidden) }

  /// One chunk of columns. `buffer`: where weights are rounded first; not used where they are not.
  func run(_ chunk: Int, place: Int, buffer: Buffer?, _ matrix: (Parameters.Role) -> UnsafeRawPointer) {
    let (h, i) = (c.hidden, c.intermediate)
    if chunk >= innerChunks {
      let outer = chunk - innerChunks
      return pack(matrix(.downWeight), h, i, outer, into: panels.outer(place, outer), buffer)
    }
    if c.gated { pack(matrix(.gateWeight), i, h, chunk, into: panels.innerGate(place, chunk), buffer) }
    pack(matrix(.upWeight), i, h, chunk, into: panels.innerUp(place, chunk), buffer)
  }

  /// One panel of a matrix [rows, depth], piece by piece.
  private func pack(
    _ matrix: UnsafeRawPointer, _ rows: Int, _ depth: Int, _ chunk: Int, into panel: Buffer, _ buffer: Buffer?
  ) {
    let first = chunk * chunkWidth * depth
    let columns = min(chunkWidth, rows - chunk * chunkWidth)
    let rounds = MemoryLayout<P.Element>.size < c.weights.size
    for p in stride(from: 0, to: depth, by: P.panelDepth) {
      let piece = min(P.panelDepth, depth - p)
      if rounds, let buffer {
        let weights = UnsafeMutablePointer(mutating: matrix.assumingMemoryBound(to: Float.self) + first + p)
        for row in 0..<columns { P.store(piece, weights + row * depth, into: buffer + row * P.panelDepth, kernels) }
        P.pack(
          columns, piece, UnsafePointer(buffer), rowStride: P.panelDepth, transposed: true,
          into: panel + p * chunkWidth, kernels)
      } else {
        let weights = matrix.assumingMemoryBound(to: P.Element.self) + first + p
        P.pack(columns, piece, weights, rowStride: depth, transposed: true, into: panel + p * chunkWidth, kernels)
      }
    }
  }
}
