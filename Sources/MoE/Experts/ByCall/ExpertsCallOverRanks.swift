import CShims

// Experts by call that are spread over ranks: tokens are combined where they are, their rows go to the owners of their experts, and come
// back unweighted. What a rank keeps for backward is of the rows that came to its experts.

/// What all ranks do together.
private enum Meeting: UInt64 {
  case plan = 11
  case forward = 12
  case backward = 13
}

extension ExpertsCall {
  func memoryPlan(
    saves: Bool, over spread: ExpertRanksPointer, in context: ContextPointer
  ) throws(Fault) -> MemoryPlan {
    let ranks = spread.pointee.ranks
    var found: MemoryPlan?
    try withConfiguration { (c) throws(Fault) in
      let packed = prepared?.groups(c) ?? PreparedGroups(c)
      try meet(for: .plan, packed, c, isWanted: saves, saves: false, over: ranks)
      found = try memory(c, saves: ranks.pointee.all.isWanted, over: ranks, in: context)
    }
    try ranks.pointee.agree(0, nil, next: nil)
    return found!
  }

  func forward(
    _ x: UnsafeRawPointer, y: UnsafeMutableRawPointer?, rows: UnsafeMutableRawPointer?, saved lent: CallerMemory?,
    over spread: ExpertRanksPointer, in context: ContextPointer
  ) throws(Fault) {
    let ranks = spread.pointee.ranks
    try withConfiguration { (c) throws(Fault) in
      let packed = try packed(c, differentiated: lent != nil, in: context)
      try meet(for: .forward, packed, c, isWanted: false, saves: lent != nil, over: ranks)
      try requireWithinLimit(c, saves: lent != nil, over: ranks, in: context)
      let saved = try lent.map { (memory) throws(Fault) in
        try SavedExperts(self, c, ranks.pointee.sizeOwned, lent: memory, in: context)
      }
      var tensors = CallTensors(self)
      try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
        func layout(_ arena: inout Arena) -> ForwardHome {
          ForwardHome(
            &arena, self, c, chunk(), tensors, x: x, y: y, rows: rows, prepared: packed, saves: lent != nil, context)
        }
        try context.withScratch(layout) { (home) throws(Fault) in
          try home.run(self, saved, over: spread, in: context)
        }
      }
    }
  }

  func backward(
    _ x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?, dRouting: UnsafeMutableRawPointer?,
    saved lent: CallerMemory?, over spread: ExpertRanksPointer, in context: ContextPointer
  ) throws(Fault) {
    let ranks = spread.pointee.ranks
    try withConfiguration { (c) throws(Fault) in
      let packed = try packed(c, differentiated: true, in: context)
      try meet(for: .backward, packed, c, isWanted: dx != nil, saves: lent != nil, over: ranks)
      let saved = try lent.map { (memory) throws(Fault) in
        let saved = try SavedExperts(self, c, ranks.pointee.sizeOwned, lent: memory, in: context)
        try saved.require(self)
        return saved
      }
      try requireWithinLimit(c, saves: lent != nil, over: ranks, in: context)
      var tensors = CallTensors(self)
      try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
        func layout(_ arena: inout Arena) -> BackwardHome {
          BackwardHome(&arena, self, c, chunk(), tensors, x: x, dy: dy, dx: dx, prepared: packed, context)
        }
        try context.withScratch(layout) { (home) throws(Fault) in
          try home.run(self, saved, dRouting, over: spread, in: context)
        }
      }
    }
  }

  /// All ranks hear of each other's tokens and choices, so that sizes are known. What goes wrong then is told in an agreement of no words.
  private func meet(
    for meeting: Meeting, _ packed: PreparedGroups, _ c: Configuration, isWanted: Bool, saves: Bool,
    over ranks: RanksPointer
  ) throws(Fault) {
    var kind = Hash()
    kind.add(meeting.rawValue)
    kind.add(saves ? 1 : 0)
    kind.add(UInt64(topK))
    kind.add(UInt64(group.hidden))
    kind.add(UInt64(group.intermediate))
    kind.add(UInt64(UInt32(bitPattern: group.kind.rawValue)))
    kind.add(UInt64(UInt32(bitPattern: tokenType.rawValue)))
    kind.add(group.weightOnInput ? 1 : 0)
    withUnsafeBytes(of: group.activation) { kind.add($0) }
    var own = Ranks.AllTokens(tokens: tokens)
    own.isWanted = isWanted
    own.isWide = group.experts > 0 && c.typeOfRows(over: ranks, packed, training: false) == .f32
    try ranks.pointee.open(own, kind: kind)
    // The same on all ranks, and so is the refusal.
    if ranks.pointee.all.tokens > Int(Int32.max) / topK {
      throw .invalid(
        "call.n_tokens: all ranks together have \(ranks.pointee.all.tokens), and with top_k = \(topK) that are 2^31 choices or more"
      )
    }
    let words = ranks.pointee.words
    words.update(repeating: 0, count: experts)
    if let indices {
      for pair in 0..<pairs {
        let expert = indices.expert(pair, of: experts)
        if expert.isExpert { words[Int(expert)] += 1 }
      }
    }
    try ranks.pointee.agree(experts, nil, next: 0)
    ranks.pointee.takeCounts(experts: experts)
  }

  // MARK: memory

  private func memory(
    _ c: Configuration, saves: Bool, over ranks: RanksPointer, in context: ContextPointer
  ) throws(Fault) -> MemoryPlan {
    let nowhere = UnsafeMutableRawPointer(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    var tensors = CallTensors(self)
    let packed = isFrozen ? prepared!.groups(c) : PreparedGroups(c)
    var (forward, backward) = (0, 0)
    try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
      forward = try Arena.bytes { (arena: inout Arena) in
        let home = ForwardHome(
          &arena, self, c, chunk(), tensors, x: nowhere, y: nowhere, rows: nil, prepared: packed, saves: saves, context)
        _ = ForwardOfOwned(&arena, home.ends.parts, nil, saves: saves, over: ranks, context)
      }
      backward = try Arena.bytes { (arena: inout Arena) in
        let home = BackwardHome(
          &arena, self, c, chunk(), tensors, x: nowhere, dy: nowhere, dx: nowhere, prepared: packed, context)
        _ = BackwardOfOwned(&arena, home.ends.parts, nil, saves: saves, over: ranks, context)
      }
    }
    let tape = saves ? try SavedExperts.bytes(self, c, ranks.pointee.sizeOwned, in: context) : 0
    return try MemoryPlan(
      tokens: tokens, forward: forward, backward: backward, tape: tape, keepsActivations: saves)
  }

  private func requireWithinLimit(
    _ c: Configuration, saves: Bool, over ranks: RanksPointer, in context: ContextPointer
  ) throws(Fault) {
    guard let limit = context.memoryLimit else { return }
    try require(try memory(c, saves: saves, over: ranks, in: context).total, within: limit)
  }
}

extension Ranks {
  /// How many rows go where, from what the ranks have told of their choices; keeps those of this rank's experts.
  fileprivate mutating func takeCounts(experts all: Int) {
    let mine = words(of: rank, all)
    for other in 0..<size {
      let theirs = words(of: other, all)
      (rowsTo[other], rowsFrom[other]) = (0, 0)
      for e in placement.experts(of: other) { rowsTo[other] += Int(mine[e]) }
      for e in experts {
        rowsFrom[other] += Int(theirs[e])
        counts[other * experts.count + e - experts.lowerBound] = Int32(truncatingIfNeeded: theirs[e])
      }
    }
  }

  /// Of the rows that come to this rank's experts.
  fileprivate var sizeOwned: ChunkSize { ChunkSize(tokens: rowsOwned, mostRows: rowsOwned, mayRepeat: false) }
  /// How rows of x travel.
  fileprivate var typeOfRows: ElementType { all.isWide ? .f32 : .bf16 }
}

extension CallParts {
  /// The same experts over rows that have come.
  fileprivate func work(over rows: OwnedRows) -> ExpertsWork {
    ExpertsWork(
      c: c, x: rows.x, source: work.source, prepared: work.prepared, dispatch: rows.dispatch, draws: work.draws,
      isDifferentiated: work.isDifferentiated)
  }

  /// What the experts read and write, once it is known which rows they have.
  fileprivate func begin(_ rows: OwnedRows, _ counts: UnsafePointer<Int32>, in context: ContextPointer) -> GroupRows {
    rows.group(counts)
    let own = rows.dispatch.rows(of: c.groups[0])
    tensors.pointee.begin(own, context.kernels)
    return own
  }
}

// MARK: forward

/// The rows that come to this rank's experts, and their memory.
private struct ForwardOfOwned {
  let rows: OwnedRows
  let compute: ExpertsForward
  let moving: MovingContext

  init(
    _ arena: inout Arena, _ parts: CallParts, _ saved: SavedExperts?, saves: Bool, over ranks: RanksPointer,
    _ context: ContextPointer
  ) {
    let c = parts.c
    moving = MovingContext(&arena)
    let widened = ranks.pointee.typeOfRows == .f32 ? nil : arena.take(Float.self, ranks.pointee.rowsOwned, c.hidden)
    rows = OwnedRows(
      &arena, c, ranks, x: saved?.x ?? widened, pieces: RankPieces(c, ranks, tokens: ranks.pointee.all.tokens),
      sendsWeights: c.weightOnInput, sendsNumbers: false)
    compute = ExpertsForward(
      &arena, parts.work(over: rows), context: context, offload: nil, keeps: saves, groups: GroupRange(0..<1))
  }
}

/// The tokens of this rank. Its parameters are those of ForwardOfCall, more than ten.
private struct ForwardHome {
  let ends: ForwardEnds
  private let outputs: UnsafeMutablePointer<Float>  // [rows, padded H]
  private var parts: CallParts { ends.parts }

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, y: UnsafeMutableRawPointer?,
    rows: UnsafeMutableRawPointer?, prepared: PreparedGroups, saves: Bool, _ context: ContextPointer
  ) {
    ends = ForwardEnds(
      &arena, call, c, size, tensors, x: x, y: y, rows: rows, prepared: prepared, saves: saves, context)
    outputs = arena.take(Float.self, size.mostRows, padded(c.hidden))
  }

  @inline(never) func run(
    _ call: ExpertsCall, _ saved: SavedExperts?, over spread: ExpertRanksPointer, in context: ContextPointer
  ) throws(Fault) {
    let ranks = spread.pointee.ranks
    try parts.begin(call, in: context, backward: false)
    let owned = try spread.room {
      ForwardOfOwned(&$0, parts, saved, saves: saved != nil, over: ranks, context)
    }
    try ranks.pointee.agree(0, nil, next: 0)

    // From here on every exchange is made, whatever fails.
    var failed: Fault?
    let here = context.moving(ranks.pointee.exchanges, in: owned.moving)
    try owned.rows.depart(parts.dispatch, ranks.pointee.counts)
    try owned.rows.forward(
      parts.x.floats, parts.dispatch, as: ranks.pointee.typeOfRows, through: owned.compute, kept: saved?.kept,
      to: outputs, &failed, in: here
    ) { () throws(Fault) in _ = parts.begin(owned.rows, ranks.pointee.counts, in: context) }
    attempt(&failed) { () throws(Fault) in
      try ends.combine(outputs, in: context)
      saved?.seal(owned.rows.dispatch.rows(of: parts.c.groups[0]), call.group)
    }
    try ranks.pointee.agree(0, failed, next: nil)
  }
}

// MARK: backward

private struct BackwardOfOwned {
  let rows: OwnedRows  // of x, where it was not saved; with the weights
  let arrived: ArrivedGradients
  let compute: ExpertsBackward
  let moving: MovingContext

  init(
    _ arena: inout Arena, _ parts: CallParts, _ saved: SavedExperts?, saves: Bool, over ranks: RanksPointer,
    _ context: ContextPointer
  ) {
    let c = parts.c
    moving = MovingContext(&arena)
    // x has a place of its own: rows of dy arrive and leave where it arrives.
    let x = saved?.x ?? arena.take(Float.self, saves ? 0 : ranks.pointee.rowsOwned, c.hidden)
    rows = OwnedRows(
      &arena, c, ranks, x: x, pieces: RankPieces(c, ranks, tokens: ranks.pointee.all.tokens), sendsWeights: true,
      sendsNumbers: false)
    arrived = ArrivedGradients(&arena, rows: rows.count, hidden: c.hidden)
    compute = ExpertsBackward(
      &arena, parts.work(over: rows), context: context, dy: arrived.dy, keeps: saves, dWeights: arrived.dWeights,
      fused: nil, groups: GroupRange(0..<1))
  }
}

private struct BackwardHome {
  let ends: BackwardEnds
  private let dRows: UnsafeMutablePointer<Float>  // [rows, padded H]
  private var parts: CallParts { ends.parts }

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, prepared: PreparedGroups, _ context: ContextPointer
  ) {
    ends = BackwardEnds(&arena, call, c, size, tensors, x: x, dy: dy, dx: dx, prepared: prepared, context)
    dRows = arena.take(Float.self, size.mostRows, padded(c.hidden))
  }

  @inline(never) func run(
    _ call: ExpertsCall, _ saved: SavedExperts?, _ dRouting: UnsafeMutableRawPointer?,
    over spread: ExpertRanksPointer, in context: ContextPointer
  ) throws(Fault) {
    let ranks = spread.pointee.ranks
    let c = parts.c
    try ends.begin(call, in: context)
    let owned = try spread.room {
      BackwardOfOwned(&$0, parts, saved, saves: saved != nil, over: ranks, context)
    }
    try ranks.pointee.agree(0, nil, next: 0)

    // From here on every exchange is made, whatever fails.
    var failed: Fault?
    let (rows, here) = (owned.rows, context.moving(ranks.pointee.exchanges, in: owned.moving))
    try rows.depart(parts.dispatch, ranks.pointee.counts)
    if saved == nil {
      try rows.bring(parts.x.floats, parts.dispatch, as: ranks.pointee.typeOfRows, &failed, in: here)
    }
    let dWeights = try rows.backward(
      ends.dy.floats, parts.dispatch, as: c.tokens == .bf16 ? .bf16 : .f32, through: owned.compute, owned.arrived,
      kept: saved?.kept, needInputGradient: ranks.pointee.all.isWanted, to: dRows, &failed, in: here
    ) { () throws(Fault) in
      try call.clear(parts.tensors, parts.begin(rows, ranks.pointee.counts, in: context), in: here)
    }
    for row in 0..<rows.own { ends.dWeights[Int(parts.dispatch.pairOfRow[row])] = dWeights[row] }
    attempt(&failed) { () throws(Fault) in
      try ends.combine(dRows, call, dRouting, in: context)
      parts.tensors.pointee.finish(rows.dispatch.rows(of: c.groups[0]), context.kernels)
    }
    try ranks.pointee.agree(0, failed, next: nil)
  }
}
