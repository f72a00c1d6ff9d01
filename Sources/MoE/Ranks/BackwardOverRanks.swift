import CShims

// A layer's backward where its experts are spread over ranks: rows of dy go to the owners of the experts, gradients of rows and of
// routing weights come back. An expert's gradient is one chain over all its rows, at its owner. What every rank has whole (gates,
// shared and replicated experts, the output bias) is one chain over all tokens, which goes on from rank to rank.

/// The memory of a backward beside its own stages.
struct BackwardRoom {
  let rows: OwnedRows  // of x, where the tape has not kept them; with the weights
  let dy: UnsafeMutablePointer<Float>  // [rows,H]
  let dWeights: UnsafeMutablePointer<Float>  // [rows] in the order in which they came
  let compute: ExpertsBackward
  let hot: HotRoom
  let gradients: UnsafeMutablePointer<Float>  // of what every rank has whole
  let moving: MovingContext

  init(
    _ arena: inout Arena, _ layer: Layer, _ ranks: RanksPointer, _ stages: BackwardStages, _ taped: TapeContents,
    _ tape: OwnedTape, frozen: Bool
  ) {
    let (c, context) = (layer.configuration, layer.context)
    moving = MovingContext(&arena)
    // x has a place of its own: rows of dy arrive and leave where it arrives.
    rows = OwnedRows(
      &arena, c, ranks, x: tape.x ?? arena.take(Float.self, ranks.pointee.rowsOwned, c.hidden),
      pieces: RankPieces(c, ranks, tokens: tape.chunks.size), sendsWeights: true,
      sendsNumbers: c.dropsInner(taped.draws, over: ranks))
    self.dy = arena.take(Float.self, rows.count, c.hidden)
    dWeights = arena.take(Float.self, rows.count)
    gradients = arena.take(Float.self, layer.mostChained(over: ranks))
    var work = ExpertsWork(
      c: c, x: rows.x, source: .layer(layer.parameters, frozen: frozen), prepared: layer.prepared.frozen,
      dispatch: rows.dispatch, draws: taped.draws, isDifferentiated: true)
    work.pairNumbers = rows.numbers.map { UnsafePointer($0) }
    compute = ExpertsBackward(
      &arena, work, context: context, dy: self.dy, keeps: tape.kept != nil, dWeights: dWeights, fused: nil,
      groups: c.groupsSpread(over: ranks))
    hot = HotRoom(&arena, ranks.pointee.hot, gradients: !frozen)
    if ranks.pointee.hot.count == 0 { return }
    arena.cover(from: hot.arena) { _ = layer.hotBackward(&$0, stages, taped, over: ranks) }
  }
}

extension Layer {
  @inline(never) func backward(
    _ tape: UnsafePointer<Tape>, x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?,
    _ call: BackwardCall, over ranks: RanksPointer
  ) throws(Fault) {
    guard let taped = tape.pointee.contents, let owned = tape.pointee.owned else { return }
    if taped.frozen != prepared.frozenForms { throw .packedSince }
    var kind = Hash()
    kind.add(2)
    kind.add(UInt64(bitPattern: owned.call))
    kind.add((dx != nil ? 1 : 0) | (call.frozenExperts ? 2 : 0))
    kind.add(UInt64(call.dAuxLoss.bitPattern))
    try ranks.pointee.open(Ranks.AllTokens(tokens: taped.routing.tokens), kind: kind)
    ranks.pointee.expect(0)
    try turn.acquire(for: "layer")
    defer { turn.release() }
    try context.withScratch(
      lent: call.scratch, { backwardStages(&$0, taped, taped.plan, x: x, dy: dy, dx: dx, call) }
    ) { (stages) throws(Fault) in try run(stages, taped, owned, call, over: ranks) }
  }

  @inline(never) private func run(
    _ stages: BackwardStages, _ taped: TapeContents, _ owned: OwnedTape, _ call: BackwardCall, over ranks: RanksPointer
  ) throws(Fault) {
    let routing = taped.routing
    try stages.x.run(in: context)
    try stages.jittered.run(in: context)
    try stages.dy.run(in: context)
    stages.dWeights.update(repeating: 0, count: routing.tokens * routing.slots)
    stages.losses.prepare()
    var failed: Fault?
    var memory: UnsafeMutablePointer<Float>?
    for i in 0..<owned.chunks.count { memory = try run(stages, taped, owned, i, call, &failed, over: ranks) }
    if !call.frozenExperts { try chainExperts(stages, taped, owned.chunks, memory!, &failed, over: ranks) }
    try runRouter(stages, taped, memory!, &failed, over: ranks)
    if let out = call.dExpertWeights {
      for t in 0..<routing.tokens {
        (out + t * routing.choices).update(from: stages.dWeights + t * routing.slots, count: routing.choices)
      }
    }
    attempt(&failed) { () throws(Fault) in try stages.dx?.run(in: context) }
    try ranks.pointee.agree(0, failed, next: nil)
  }

  /// One chunk of the tokens of all ranks; returns memory for gradients that go from rank to rank.
  @inline(never) private func run(
    _ stages: BackwardStages, _ taped: TapeContents, _ owned: OwnedTape, _ i: Int, _ call: BackwardCall,
    _ failed: inout Fault?, over ranks: RanksPointer
  ) throws(Fault) -> UnsafeMutablePointer<Float> {
    let (c, tokens) = (configuration, owned.chunks.tokens(ofChunk: i))
    let (dispatch, firstPair) = (stages.dispatch, taped.draws.firstToken * c.slots)
    try context.measure(.dispatch, backward: true) { () throws(Fault) in
      ranks.pointee.hot.choose(owned.hot(ofChunk: i))
      dispatch.group(taped.routing, tokens, firstPair: firstPair, order: ranks.pointee.hot.order)
    }
    ranks.pointee.setRows(dispatch, owned.counts(ofChunk: i))
    let room = try ranks.room(context.pointee.allocator) {
      BackwardRoom(&$0, self, ranks, stages, taped, owned, frozen: call.frozenExperts)
    }
    try ranks.pointee.agree(0, failed, next: 0)

    // From here on every exchange is made, whatever fails.
    let (rows, here) = (room.rows, context.moving(ranks.pointee.exchanges, in: room.moving))
    let (type, needInputGradient) = (c.tokens == .bf16 ? ElementType.bf16 : .f32, stages.dx != nil)
    rows.place(dispatch, owned.counts(ofChunk: i))
    try rows.bringWords(dispatch)
    if owned.x == nil { try bringAgain(rows, stages, taped, over: ranks, &failed, in: here) }
    try rows.send(stages.dy.floats, dispatch, as: type, &failed, in: here)
    try sendHotWeights(room.hot, over: ranks)
    attempt(&failed) { () throws(Fault) in
      try stages.compute.runInputs(in: here, kept: taped.kept(0), needInputGradient: needInputGradient)
      rows.group(owned.counts(ofChunk: i))
    }
    for piece in 0..<rows.pieces.count {
      let experts = rows.experts(ofPiece: piece)
      try rows.receive(piece, as: type, to: room.dy, &failed, in: here)
      attempt(&failed) { () throws(Fault) in
        try room.compute.runRows(in: here, kept: owned.kept, needInputGradient: needInputGradient, only: experts)
      }
      if needInputGradient { try rows.sendBack(piece, room.compute.gradients.dRows, &failed, in: here) }
      if piece + 1 == rows.pieces.count { try rows.sendBack(room.dWeights) }
      // While the rows go back:
      attempt(&failed) { () throws(Fault) in
        try room.compute.finish(in: here, kept: owned.kept, only: experts)
      }
    }
    try runHotInputs(room.hot, stages, taped, &failed, over: ranks, in: here)
    let dRows = stages.compute.gradients.dRows
    if needInputGradient { try rows.takeBack(dRows, &failed, in: here) }
    let dWeights = try rows.takeBack()
    for row in 0..<rows.own { stages.dWeights[Int(dispatch.pairOfRow[row]) - firstPair] = dWeights[row] }
    attempt(&failed) { () throws(Fault) in
      guard let dx = stages.dx else { return }
      try context.measure(.combine, backward: true) { () throws(Fault) in
        try CombineBackward(
          c: c, kernels: context.kernels, chunk: tokens, dispatch: dispatch, dRows: dRows, dx: dx.floats
        ).run(in: context)
      }
    }
    try chainHot(room.hot, stages, taped, &failed, over: ranks)
    return room.gradients
  }

  /// Rows of x, which the tape has not kept: all of them, before those of dy take their place.
  private func bringAgain(
    _ rows: OwnedRows, _ stages: BackwardStages, _ taped: TapeContents, over ranks: RanksPointer,
    _ failed: inout Fault?, in context: ContextPointer
  ) throws(Fault) {
    let type = configuration.typeOfRows(over: ranks, prepared.frozen, training: taped.draws.training)
    try rows.send(stages.jittered.rows, stages.dispatch, as: type, &failed, in: context)
    for piece in 0..<rows.pieces.count { try rows.receive(piece, as: type, to: rows.x, &failed, in: context) }
  }

  /// The gradients of the matrices and biases of experts that every rank has: one expert after another, those of the last group first,
  /// whose scratch is still there.
  @inline(never) private func chainExperts(
    _ stages: BackwardStages, _ taped: TapeContents, _ chunks: RankChunks, _ memory: UnsafeMutablePointer<Float>,
    _ failed: inout Fault?, over ranks: RanksPointer
  ) throws(Fault) {
    let here = configuration.groupsHere(over: ranks).range
    for index in here.reversed() {
      let group = configuration.groups[index]
      if !group.multiplies { continue }
      let isRepeated = chunks.count > 1 || index != here.upperBound - 1
      try ranks.chain(group, of: parameters, in: memory) { expert in
        attempt(&failed) { () throws(Fault) in
          for i in 0..<chunks.count {
            let tokens = chunks.tokens(ofChunk: i)
            if tokens.isEmpty { continue }
            if chunks.count > 1 {
              stages.dispatch.group(taped.routing, tokens, firstPair: taped.draws.firstToken * configuration.slots)
            }
            try stages.compute.addWeightGradient(
              ofExpert: expert, inGroup: index, in: context, kept: taped.kept(0), isRepeated: isRepeated)
          }
        }
      }
    }
  }

  /// The router's part, and the output bias.
  @inline(never) private func runRouter(
    _ stages: BackwardStages, _ taped: TapeContents, _ memory: UnsafeMutablePointer<Float>, _ failed: inout Fault?,
    over ranks: RanksPointer
  ) throws(Fault) {
    let routing = taped.routing
    var arena = stages.routerArena
    let route = router(&arena, stages, taped, 0..<routing.tokens)
    attempt(&failed) { () throws(Fault) in
      try context.measure(.route, backward: true) { () throws(Fault) in try route.runLogits(in: context) }
    }
    try ranks.chain(gradients: { forEachOfNoExpert($0) }, in: memory) {
      attempt(&failed) { () throws(Fault) in
        try context.measure(.route, backward: true) { () throws(Fault) in try route.runGates(in: context) }
        if let grad = parameters.grad(.outputBias) {
          addOutputBiasGradient(stages.dy.floats, routing, configuration, context.kernels, to: grad)
        }
      }
    }
    attempt(&failed) { () throws(Fault) in
      guard let dx = stages.dx else { return }
      try RouterShare(router: route, jittered: stages.jittered, firstBlock: 0, dx: dx.floats).run(in: context)
    }
  }

  // MARK: gradients of what every rank has whole

  /// Of all that is no expert's.
  private func forEachOfNoExpert(_ body: (UnsafeMutablePointer<Float>, Int) -> Void) {
    for index in 0..<parameters.trainedCount {
      let parameter = parameters.trained(index)
      if !parameters.role(of: parameter).isOfGroup, let grad = parameter.grad { body(grad, parameter.count) }
    }
  }

  /// Floats that go from rank to rank at once, at most.
  func mostChained(over ranks: RanksPointer) -> Int {
    var most = 0
    forEachOfNoExpert { most += $1 }
    for index in configuration.groupsHere(over: ranks).range {
      most = max(most, configuration.groups[index].elementsOfOne)
    }
    return most
  }
}
