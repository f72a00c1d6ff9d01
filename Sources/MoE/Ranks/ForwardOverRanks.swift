import CShims

// A layer's forward where its experts are spread over ranks: the page of Layer.swift with an exchange on both sides of the experts.
// Tokens are routed and combined where they are; their rows go to the owners of their experts, and come back unweighted.

/// What forward leaves at the owners of experts for backward.
struct OwnedTape {
  let call: Int64  // number of the forward
  let chunks: RankChunks
  private let allCounts: UnsafeMutablePointer<Int32>  // [chunks, ranks, experts of this rank] rows
  private let countsOfChunk: Int
  private let allHot: UnsafeMutablePointer<Int32>  // [chunks, most]
  private let mostHot: Int
  // Of a single chunk, where they are kept; else x is sent once more, and pre-activations are computed again.
  let x: UnsafeMutablePointer<Float>?  // [rows,H]
  let kept: KeptGroups?

  init(
    _ arena: inout Arena, _ c: Configuration, _ ranks: RanksPointer, _ chunks: RankChunks, keeps: Bool,
    frozen: LayerForms, _ context: ContextPointer
  ) {
    call = ranks.pointee.callNumber
    self.chunks = chunks
    countsOfChunk = ranks.pointee.size * ranks.pointee.experts.count
    allCounts = arena.take(Int32.self, chunks.count, countsOfChunk)
    mostHot = ranks.pointee.hot.most
    allHot = arena.take(Int32.self, chunks.count, mostHot)
    let rows = ranks.pointee.rowsOwned
    x = keeps ? arena.take(Float.self, rows, c.hidden) : nil
    kept =
      keeps
      ? KeptGroups(
        &arena, c, ChunkSize(tokens: rows, mostRows: rows, mayRepeat: false), c.groupsSpread(over: ranks),
        packsWeights: context.packsWeights,
        frozen: frozen) : nil
  }

  func counts(ofChunk i: Int) -> UnsafeMutablePointer<Int32> { allCounts + i * countsOfChunk }
  /// The numbers of hot experts.
  func hot(ofChunk i: Int) -> UnsafeMutablePointer<Int32> { allHot + i * mostHot }
  func keep(_ counts: UnsafePointer<Int32>, _ hot: HotExperts, ofChunk i: Int) {
    self.counts(ofChunk: i).update(from: counts, count: countsOfChunk)
    hot.keep(in: self.hot(ofChunk: i))
  }
}

/// The memory of a forward beside its own stages.
struct ForwardRoom {
  let rows: OwnedRows
  let compute: ExpertsForward
  let sums: SumsOfRanks
  let hot: HotRoom
  let moving: MovingContext

  init(
    _ arena: inout Arena, _ layer: Layer, _ ranks: RanksPointer, _ stages: ForwardStages, _ chunks: RankChunks,
    type: ElementType, tape: OwnedTape?, isTaped: Bool
  ) {
    let (c, context) = (layer.configuration, layer.context)
    moving = MovingContext(&arena)
    let draws = stages.route.work.draws
    let widened = type == .f32 ? nil : arena.take(Float.self, ranks.pointee.rowsOwned, c.hidden)
    rows = OwnedRows(
      &arena, c, ranks, x: tape?.x ?? widened, pieces: RankPieces(c, ranks, tokens: chunks.size),
      sendsWeights: c.weightOnInput, sendsNumbers: c.dropsInner(draws, over: ranks))
    sums = SumsOfRanks(&arena, c, stages)
    var work = ExpertsWork(
      c: c, x: rows.x, source: .layer(layer.parameters, frozen: false), prepared: layer.prepared,
      dispatch: rows.dispatch, draws: draws, isDifferentiated: isTaped)
    work.pairNumbers = rows.numbers.map { UnsafePointer($0) }
    compute = ExpertsForward(
      &arena, work, context: context, offload: nil, keeps: tape?.kept != nil, groups: c.groupsSpread(over: ranks))
    hot = HotRoom(&arena, ranks.pointee.hot, gradients: false)
    if ranks.pointee.hot.count == 0 { return }
    arena.cover(from: hot.arena) { _ = layer.hotForward(&$0, stages, over: ranks, isTaped: isTaped) }
  }
}

extension Layer {
  @inline(never) func forward(
    _ x: UnsafeRawPointer, _ given: Call, over ranks: RanksPointer, y: UnsafeMutableRawPointer, tape: TapePointer?,
    details: Details
  ) throws(Fault) -> Report {
    let c = configuration
    var call = given
    call.ranks = ranks
    try requireForward(taped: tape != nil)
    try requireForRanks(call)
    let type = c.typeOfRows(over: ranks, prepared, training: call.training)
    var kind = Hash()
    kind.add(1)
    kind.add(call.step)
    kind.add((call.training ? 1 : 0) | (tape != nil ? 2 : 0) | (call.tapePolicy == .lean ? 4 : 0))
    kind.add(UInt64(UInt32(bitPattern: type.rawValue)))
    kind.add(mayHaveHotExperts ? 1 : 0)
    let isDivided = (call.limit ?? context.memoryLimit) != nil || call.chunkTokens != nil
    try ranks.pointee.open(call, kind: kind, isDivided: isDivided, c)
    let chunks = try divide(
      call, over: ranks, type, taped: tape != nil,
      next: c.admits(call) && c.sharesRoom(ranks) ? c.experts * c.topK : c.experts)
    let isLean = call.tapePolicy == .lean || ranks.pointee.all.isDivided
    let plan = Plan(c, call, policy: isLean ? .lean : .full, chunkTokens: max(chunks.most, 1))
    let taped = try tape?.pointee.prepare(c, call, plan, parameters, frozen: prepared.frozenForms)
    var report = Report()
    let whole = call
    try context.withScratch(
      lent: call.scratch, { forwardStages(&$0, x, whole, plan, y: y, taped: taped) }
    ) { (stages) throws(Fault) in
      report = try run(stages, whole, over: ranks, chunks, type, taped, tape, details)
    }
    if let taped { tape!.pointee.fill(taped) }
    return report
  }

  @inline(never) private func run(
    _ stages: ForwardStages, _ call: Call, over ranks: RanksPointer, _ chunks: RankChunks, _ type: ElementType,
    _ taped: TapeContents?, _ tape: TapePointer?, _ details: Details
  ) throws(Fault) -> Report {
    let (c, routing) = (configuration, stages.route.routing)
    taped?.keepNumbers(of: call, c)
    try stages.input.run(in: context)
    try stages.jittered.run(in: context)
    try context.measure(.route) { () throws(Fault) in try stages.route.run(in: context, details.bySequence) }
    var failed: Fault?
    var sums: SumsOfRanks?
    for i in 0..<chunks.count {
      sums = try run(stages, over: ranks, chunks, i, type, taped, tape, &failed)
    }
    attempt(&failed) { () throws(Fault) in
      try stages.output.run(in: context)
      try call.record?.pointee.store(
        routing.indices, stride: c.slots, tokens: call.tokens, choices: c.choices, experts: c.experts)
    }
    try sums!.addUp(over: ranks, c, call, stages, details.bySequence)
    let report = Report(c, call, stages.route, stages.statistics, taped?.slopes)
    details.write(c, stages)
    try ranks.pointee.agree(0, failed, next: nil)
    if call.notes == nil { note(call, measured: routing.norm) }  // a model's are noted once all of it has gone well
    return report
  }

  /// One chunk of the tokens of all ranks; returns where sums are added up.
  @inline(never) private func run(
    _ stages: ForwardStages, over ranks: RanksPointer, _ chunks: RankChunks, _ i: Int, _ type: ElementType,
    _ taped: TapeContents?, _ tape: TapePointer?, _ failed: inout Fault?
  ) throws(Fault) -> SumsOfRanks {
    let (c, tokens, routing) = (configuration, chunks.tokens(ofChunk: i), stages.route.routing)
    let firstPair = ranks.pointee.all.first * c.slots
    try context.measure(.dispatch) { () throws(Fault) in
      stages.dispatch.group(routing, tokens, firstPair: firstPair)
    }
    let words = ranks.pointee.words
    for e in 0..<c.experts { words[e] = Int64(stages.dispatch.count(ofExpert: e)) }
    try ranks.pointee.agree(c.experts, failed, next: 0)
    ranks.pointee.hot.chooseNone()
    if mayHaveHotExperts { ranks.pointee.chooseHot(c, type, isTaped: taped != nil) }
    if let order = ranks.pointee.hot.order {
      stages.dispatch.group(routing, tokens, firstPair: firstPair, order: order)
    }
    ranks.pointee.takeCounts(stages.dispatch, experts: c.experts)
    if i == 0 { try tape?.pointee.prepareOwned(c, ranks, chunks, keeps: taped!.keeps, frozen: taped!.frozen) }
    let owned = tape?.pointee.owned
    owned?.keep(ranks.pointee.counts, ranks.pointee.hot, ofChunk: i)
    let room = try ranks.room(context.pointee.allocator) {
      ForwardRoom(&$0, self, ranks, stages, chunks, type: type, tape: owned, isTaped: taped != nil)
    }
    try ranks.pointee.agree(0, nil, next: i + 1 < chunks.count ? c.experts : 0)

    // From here on every exchange is made, whatever fails.
    let (rows, here) = (room.rows, context.moving(ranks.pointee.exchanges, in: room.moving))
    rows.place(stages.dispatch, ranks.pointee.counts)
    try rows.bringWords(stages.dispatch)
    try rows.send(stages.jittered.rows, stages.dispatch, as: type, &failed, in: here)
    try sendHotWeights(room.hot, over: ranks)
    attempt(&failed) { () throws(Fault) in
      try stages.compute.run(in: here, kept: taped?.kept(0))
      rows.group(ranks.pointee.counts)
    }
    for piece in 0..<rows.pieces.count {
      try rows.receive(piece, as: type, to: rows.x, &failed, in: here)
      attempt(&failed) { () throws(Fault) in
        try room.compute.run(in: here, kept: owned?.kept, only: rows.experts(ofPiece: piece))
      }
      try rows.sendBack(piece, room.compute.outputs, &failed, in: here)
    }
    try runHot(room.hot, stages, isTaped: taped != nil, &failed, over: ranks, in: here)
    try rows.takeBack(stages.compute.outputs, &failed, in: here)
    attempt(&failed) { () throws(Fault) in
      try context.measure(.combine) { () throws(Fault) in
        try CombineForward(
          c: c, kernels: context.kernels, routing: routing, chunk: tokens, dispatch: stages.dispatch,
          outputs: stages.compute.outputs, bias: parameters.data(.outputBias), y: stages.output.floats
        ).run(in: context)
      }
    }
    return room.sums
  }
}
