import CShims

/// What a forward leaves for its backward in memory of the caller's: plain bytes without an address among them, each of which
/// is written, so that the same call leaves the same bytes, and a copy is as good.
struct SavedExperts {
  /// What the bytes are of. A backward that is another call's is refused, and not computed from them.
  private struct Header {
    var mark: Int64 = 0
    var tokens: Int64 = 0
    var topK: Int64 = 0
    var experts: Int64 = 0
    var hidden: Int64 = 0
    var intermediate: Int64 = 0
    var form: Int64 = 0  // of pre-activations: kernels, format and kind of experts
    var choices: UInt64 = 0  // a sum of the numbers of experts
  }

  /// "experts1"
  private static var mark: Int64 { 0x3173_7472_6570_7865 }

  let kept: KeptGroups
  /// [rows,H] Over ranks, x of the rows that have come to this rank's experts.
  let x: UnsafeMutablePointer<Float>?
  private let header: UnsafeMutablePointer<Header>
  private let own: Header
  private let bytes: Int  // that are used
  private let end: Int  // behind what becomes 0
  private let lent: CallerMemory

  init(
    _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize, lent: CallerMemory, in context: ContextPointer
  ) throws(Fault) {
    bytes = try Self.bytes(call, c, size, in: context)
    if lent.bytes < bytes {
      throw .invalid(
        "saved_size = \(lent.bytes), but the call needs \(bytes) bytes: moe_experts_plan says so in tape_bytes")
    }
    // Where the memory was planned for any choices.
    let any = call.ranks == nil ? ChunkSize(tokens: call.tokens, mostRows: call.pairs, mayRepeat: true) : size
    end = min(lent.bytes, try Self.bytes(call, c, any, in: context))
    self.lent = lent
    var arena = Arena(lent.memory)
    (header, kept, x) = Self.layout(&arena, call, c, size, in: context)
    let group = call.group
    let kernels = context.kernels.pointee
    let precision = Int64(group.weights.format.precision.rawValue)
    own = Header(
      mark: Self.mark, tokens: Int64(call.tokens), topK: Int64(call.topK), experts: Int64(group.experts),
      hidden: Int64(group.hidden), intermediate: Int64(group.intermediate),
      form: (call.isFrozen ? 1 << 32 : 0) | (context.packsWeights ? Int64(kernels.tile_height) : 0) << 16 | precision
        << 8
        | Int64(group.kind.rawValue),
      choices: call.sumOfChoices())
  }

  private static func layout(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize, in context: ContextPointer
  ) -> (UnsafeMutablePointer<Header>, KeptGroups, UnsafeMutablePointer<Float>?) {
    let header = arena.take(Header.self, 1)
    // The group of such a call is of float32 itself where its weights are in few bits.
    return (
      header,
      KeptGroups(&arena, c, size, GroupRange(0..<1), packsWeights: context.packsWeights, frozen: LayerForms()),
      call.ranks == nil ? nil : arena.take(Float.self, size.mostRows, c.hidden)
    )
  }

  /// `size`: over ranks that of the rows that come.
  static func bytes(
    _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize, in context: ContextPointer
  ) throws(Fault) -> Int {
    try Arena.bytes { layout(&$0, call, c, size, in: context).0 }
  }

  // MARK: writing

  /// After forward: the header, and 0 where nothing else was written.
  func seal(_ rows: GroupRows, _ group: ExpertGroup) {
    header.initialize(to: own)
    if let x { clearEnd(x, rows.most * group.hidden) }
    // Linear experts have no pre-activations.
    switch group.linear ? nil : kept.of(group) {
    case .bf16(let kept):
      clearGaps(kept.up, rows, group)
      if let gate = kept.gate { clearGaps(gate, rows, group) }
    case .float(let kept):
      let written = self.kept.width(group) * rows.most
      clearEnd(kept.up, written)
      if let gate = kept.gate { clearEnd(gate, written) }
    case nil: break
    }
    (lent.memory + bytes).initializeMemory(as: UInt8.self, repeating: 0, count: end - bytes)
  }

  /// Every expert begins at an even place: what lies between them.
  private func clearGaps(_ array: UnsafeMutablePointer<UInt16>, _ rows: GroupRows, _ group: ExpertGroup) {
    let (width, unit) = (padded(group.intermediate), BF16.unit)
    var end = 0
    for e in 0...group.experts {
      let begin =
        e < group.experts
        ? ExpertPiece.firstPlace(rows.rows(ofExpert: e).lowerBound, expert: e, unit: unit)
        : ExpertPiece.places(rows.most, experts: group.experts, unit: unit)
      (array + end * width).update(repeating: 0, count: (begin - end) * width)
      if e < group.experts { end = begin + rows.count(ofExpert: e) }
    }
  }

  /// An array's memory is filled up to whole cache lines.
  private func clearEnd(_ array: UnsafeMutablePointer<Float>, _ written: Int) {
    let line = Allocator.alignment / MemoryLayout<Float>.stride
    let all = (written + line - 1) / line * line
    (array + written).update(repeating: 0, count: all - written)
  }

  // MARK: reading

  func require(_ call: ExpertsCall) throws(Fault) {
    let found = UnsafeRawPointer(header).loadUnaligned(as: Header.self)
    if found.mark != own.mark {
      throw .badState("saved holds nothing that moe_experts_forward saved: pass its bytes, whole and unchanged")
    }
    if found.tokens != own.tokens || found.topK != own.topK {
      throw .badState(
        "saved is of a call with n_tokens = \(Int(found.tokens)) and top_k = \(Int(found.topK)); this one has \(call.tokens) and \(call.topK)"
      )
    }
    if found.experts != own.experts || found.hidden != own.hidden || found.intermediate != own.intermediate {
      throw .badState(
        "saved is of \(Int(found.experts)) experts with hidden_size = \(Int(found.hidden)) and intermediate_size = \(Int(found.intermediate)), not of these"
      )
    }
    if found.form != own.form {
      throw .badState(
        "saved was written by other kernels, or of other experts: use the same moe_context_config, kind and dtype in both calls, or pass NULL to compute it again"
      )
    }
    if found.choices != own.choices {
      throw .badState("saved is of other expert_indices: pass those of the forward")
    }
  }
}

extension ExpertsCall {
  /// A sum that tells choices apart.
  fileprivate func sumOfChoices() -> UInt64 {
    guard let indices else { return 0 }
    var sum = Hash()
    for pair in 0..<pairs { sum.add(UInt64(UInt32(bitPattern: indices.expert(pair, of: experts)))) }
    guard let ranks else { return sum.value }
    // Those of the other ranks, as far as they are for experts of this one.
    for i in 0..<ranks.pointee.size * group.experts { sum.add(UInt64(UInt32(bitPattern: ranks.pointee.counts[i]))) }
    return sum.value
  }
}
