/// Row-major matrices of some experts of a group, in the weights' type.
struct ExpertMatrices {
  let gate: UnsafeMutableRawPointer?  // [n,I,H], gated experts only
  let up: UnsafeMutableRawPointer  // [n,I,H]; the same as `down` where experts are linear
  let down: UnsafeMutableRawPointer  // [n,H,I]

  init(_ arena: inout Arena, _ c: ExpertGroup, experts: Int) {
    func take() -> UnsafeMutableRawPointer {
      UnsafeMutableRawPointer(arena.take(UInt8.self, experts, c.matrixBytes))
    }
    gate = c.gated ? take() : nil
    down = take()
    up = c.linear ? down : take()
  }

  /// Addresses that nobody reads.
  fileprivate init(_ c: ExpertGroup, unread: UnsafeMutableRawPointer) {
    (gate, up, down) = (c.gated ? unread : nil, unread, unread)
  }

  subscript(role: Parameters.Role) -> UnsafeMutableRawPointer? {
    switch role {
    case .gateWeight: gate
    case .upWeight: up
    case .downWeight: down
    case .routerWeight, .routerBias, .gateBias, .upBias, .downBias, .constant, .selectionBias, .expertScale,
      .coarseWeight, .coarseBias, .noiseWeight, .normWeight, .normBias, .runningMean, .runningVariance,
      .activeExperts, .sharedRouterWeight, .sharedRouterBias, .outputBias:
      nil
    }
  }
}

extension ExpertMatrices {
  /// Number `place` of them, without biases.
  func tensors(_ c: ExpertGroup, at place: Int) -> ExpertTensors {
    let (h, i) = (c.hidden, c.intermediate)
    func matrix(_ data: UnsafeRawPointer, rowStride: Int) -> StoredMatrix {
      StoredMatrix(data, c.weights, first: place * h * i, rowStride: rowStride)
    }
    return ExpertTensors(
      gateWeight: gate.map { matrix($0, rowStride: h) }, gateBias: nil, upWeight: matrix(up, rowStride: h), upBias: nil,
      downWeight: matrix(down, rowStride: i), downBias: nil)
  }
}

extension ExpertGroup {
  /// Of one matrix of one expert, in bytes. The boundary has seen to it that those of all experts fit.
  var matrixBytes: Int { weights.bytes(hidden * intermediate) }
}

/// Memory for some experts of a group in place of all: a slot holds one expert's matrices, in the form that the kernels read,
/// so that an expert that is there already costs nothing.
struct ExpertSlots {
  let group: Int
  /// [experts of the group]: -1 = not in memory
  let slotOf: UnsafeMutablePointer<Int32>
  private let own: ExpertMatrices  // unread where slots hold panels

  fileprivate init(_ c: ExpertGroup, _ slotOf: UnsafeMutablePointer<Int32>, _ matrices: ExpertMatrices) {
    group = c.index
    self.slotOf = slotOf
    own = matrices
  }

  func matrices(_ role: Parameters.Role) -> UnsafeMutableRawPointer? { own[role] }
}

/// In what slots hold experts.
enum SlotForm {
  /// Row-major matrices.
  case rows
  /// Panels, which are packed as matrices are read.
  case packed(LayerForms)
  /// The same without matrices in between, each group's in forms of its own; those of groups without slots are read by others.
  case read(LayerSources)
  /// Panels as the files have them.
  case panels(Panels)

  /// `places`: of the groups that have no slots.
  typealias Panels = (forms: LayerForms, places: PreparedGroups.Places)

  /// The slots as panels; none where they are row-major. With it the panels of the other groups.
  func groups(_ arena: inout Arena, _ c: Configuration, slots: PreparedGroups.Slots) -> PreparedGroups {
    switch self {
    case .rows: PreparedGroups(c)
    case .packed(let forms): PreparedGroups(&arena, c, forms: forms, slots: slots)
    case .read(let sources): PreparedGroups(&arena, c, forms: sources.forms, slots: slots)
    case .panels(let panels): PreparedGroups(&arena, c, forms: panels.forms, slots: slots, places: panels.places)
    }
  }

  /// How many row-major experts there is room for. `isPacked`: whether slots are panels.
  fileprivate func rows(slots: Int, isPacked: Bool) -> Int {
    guard isPacked else { return slots }
    if case .packed = self { return Offload.readers }
    return 0
  }

  /// How a group's matrices become panels while they are read.
  func sources(_ group: ExpertGroup) -> GroupSources? {
    if case .read(let sources) = self { sources[group] } else { nil }
  }
}

/// One block of memory: slots, and what reading takes beside them.
struct SlotMemory {
  let slots: ExpertSlots
  let prepared: PreparedGroups
  let count: Int
  let sources: GroupSources?
  /// Where an expert's matrices are put: slot by slot; or one expert's of each reader, on their way into panels.
  let rows: ExpertMatrices
  // For each reader:
  let rawBytes: Int
  let raw: UnsafeMutableRawPointer  // what a file holds of a matrix, where it is not what is wanted

  init(
    _ arena: inout Arena, _ c: Configuration, _ group: ExpertGroup, form: SlotForm, count: Int,
    slotOf: UnsafeMutablePointer<Int32>, rawBytes: Int
  ) {
    self.count = count
    self.rawBytes = (rawBytes + Allocator.alignment - 1) / Allocator.alignment * Allocator.alignment
    sources = form.sources(group)
    raw = UnsafeMutableRawPointer(arena.take(UInt8.self, Offload.readers, self.rawBytes))
    prepared = form.groups(&arena, c, slots: (group.index, count))
    let isPacked = prepared.of(group) != nil
    rows = ExpertMatrices(&arena, group, experts: form.rows(slots: count, isPacked: isPacked))
    slots = ExpertSlots(group, slotOf, isPacked ? ExpertMatrices(group, unread: raw) : rows)
  }
}
