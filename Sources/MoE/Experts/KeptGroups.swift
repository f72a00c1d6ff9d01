/// Some of a layer's groups, of which there are few: structures that have them are copied on the stack.
struct GroupRange {
  private let first: UInt8
  private let end: UInt8

  init(_ range: Range<Int>) {
    (first, end) = (UInt8(truncatingIfNeeded: range.lowerBound), UInt8(truncatingIfNeeded: range.upperBound))
  }

  var range: Range<Int> { Int(first)..<Int(end) }
}

/// The pre-activations of some groups, for the rows of one chunk, or of one run of a group's experts after another. Each group's are
/// found by laying them out again.
struct KeptGroups {
  private let arena: Arena
  private let c: Configuration
  private let size: ChunkSize
  private let groups: GroupRange
  private let packsWeights: Bool
  private let inRuns: Bool
  private let frozen: LayerForms

  /// `frozen`: of groups in few bits, whose pre-activations are float32. `inRuns`: the runs of all groups use the same memory.
  init(
    _ arena: inout Arena, _ c: Configuration, _ size: ChunkSize, _ groups: GroupRange, packsWeights: Bool,
    frozen: LayerForms, inRuns: Bool = false
  ) {
    self.arena = arena
    self.inRuns = inRuns
    self.c = c
    self.size = size
    self.groups = groups
    self.packsWeights = packsWeights
    self.frozen = frozen
    for index in groups.range {
      var own = inRuns ? self.arena : arena
      _ = take(&own, c.groups[index])
      arena.cover(own)
    }
  }

  /// In place of those that are elsewhere, while memory is measured.
  init(_ c: Configuration, _ size: ChunkSize, _ groups: GroupRange, packsWeights: Bool, frozen: LayerForms) {
    var arena = Arena()
    self.init(&arena, c, size, groups, packsWeights: packsWeights, frozen: frozen)
  }

  func of(_ group: ExpertGroup) -> KeptPreactivations? {
    var arena = arena
    for index in groups.range.lowerBound..<group.index { _ = take(&arena, c.groups[index]) }
    return take(&arena, group)
  }

  /// Those that some of a group's experts read and write, placed as if those of all were there.
  func of(_ group: ExpertGroup, _ rows: GroupRows) -> KeptPreactivations? {
    if !inRuns { return of(group) }
    var arena = arena
    return take(&arena, group)?.before(rows, width: width(group))
  }

  /// Elements of a row.
  func width(_ group: ExpertGroup) -> Int { packsWeights ? padded(group.intermediate) : group.intermediate }

  private func take(_ arena: inout Arena, _ group: ExpertGroup) -> KeptPreactivations? {
    guard group.multiplies else { return nil }
    let rows = size.rows(of: group, in: inRuns ? .ofBackward : .none)
    if !packsWeights { return .float(Preactivations(&arena, group, rows: rows, width: width(group))) }
    let width = width(group)
    switch frozen[group]?.precision ?? group.weights.format.precision {
    case .f32: return .float(Preactivations(&arena, group, rows: rows, width: width))
    case .bf16:
      let places = ExpertPiece.places(rows, experts: group.experts, unit: BF16.unit)
      return .bf16(Preactivations(&arena, group, rows: places, width: width))
    }
  }
}

/// Those of all chunks on a tape, one after the other.
struct KeptChunks {
  private let arena: Arena
  private let c: Configuration
  private let plan: Plan
  private let groups: GroupRange
  private let packsWeights: Bool
  private let frozen: LayerForms
  private let bytesPerChunk: Int

  init(
    _ arena: inout Arena, _ c: Configuration, _ plan: Plan, _ groups: GroupRange, packsWeights: Bool, frozen: LayerForms
  ) {
    self.c = c
    self.plan = plan
    self.groups = groups
    self.packsWeights = packsWeights
    self.frozen = frozen
    self.arena = arena
    var (one, last) = (Arena(), Arena())
    _ = KeptGroups(&one, c, plan.chunk, groups, packsWeights: packsWeights, frozen: frozen)
    _ = KeptGroups(&last, c, plan.lastChunk, groups, packsWeights: packsWeights, frozen: frozen)
    bytesPerChunk = one.bytes
    for _ in 0..<plan.chunks - 1 { arena.cover(after: one) }
    arena.cover(after: last)
  }

  subscript(chunk: Int) -> KeptGroups {
    var own = arena
    own.skip(chunk * bytesPerChunk)
    return KeptGroups(
      &own, c, chunk == plan.chunks - 1 ? plan.lastChunk : plan.chunk, groups, packsWeights: packsWeights,
      frozen: frozen)
  }
}
