import CShims

// What hot experts send, and their part of forward and backward on every rank.

/// The memory of a chunk's hot experts.
struct HotRoom {
  let weights: UnsafeMutableRawPointer  // [hot, bytes of one]
  let gradients: UnsafeMutablePointer<Float>?  // [hot, floats of one]
  let arena: Arena  // where their stages begin

  init(_ arena: inout Arena, _ hot: HotExperts, gradients: Bool) {
    weights = UnsafeMutableRawPointer(arena.take(UInt8.self, hot.count, hot.count == 0 ? 0 : hot.bytesOfOne))
    self.gradients = gradients ? arena.take(Float.self, hot.count, hot.count == 0 ? 0 : hot.floatsOfOne) : nil
    self.arena = arena
  }
}

extension Layer {
  /// Whether a layer's experts can be hot: from weights that are packed nobody could send any.
  var mayHaveHotExperts: Bool { prepared.of(configuration.groups[0]) == nil }

  func hotForward(
    _ arena: inout Arena, _ stages: ForwardStages, over ranks: RanksPointer, isTaped: Bool
  ) -> ExpertsForward {
    let hot = ranks.pointee.hot
    let work = ExpertsWork(
      c: hot.configuration, x: stages.jittered.rows, source: .call(UnsafePointer(hot.tensors)),
      prepared: PreparedGroups(hot.configuration), dispatch: stages.dispatch, draws: stages.route.work.draws,
      isDifferentiated: isTaped)
    return ExpertsForward(
      &arena, work, context: context, offload: nil, keeps: false, groups: GroupRange(0..<1),
      outputs: stages.compute.outputs)
  }

  func hotBackward(
    _ arena: inout Arena, _ stages: BackwardStages, _ taped: TapeContents, over ranks: RanksPointer
  ) -> ExpertsBackward {
    let hot = ranks.pointee.hot
    let work = ExpertsWork(
      c: hot.configuration, x: stages.jittered.rows, source: .call(UnsafePointer(hot.tensors)),
      prepared: PreparedGroups(hot.configuration), dispatch: stages.dispatch, draws: taped.draws,
      isDifferentiated: true)
    let whole = stages.compute.gradients
    return ExpertsBackward(
      &arena, work, context: context, dy: whole.dy, keeps: false, dWeights: whole.dWeights, fused: nil,
      groups: GroupRange(0..<1), dRows: whole.dRows)
  }

  /// The weights begin their way from their owners to all ranks. Room for gradients is what backward has.
  @inline(never) func sendHotWeights(_ room: HotRoom, over ranks: RanksPointer) throws(Fault) {
    let (hot, rank) = (ranks.pointee.hot, ranks.pointee.rank)
    if hot.count == 0 { return }
    let (bytes, floats) = (hot.bytesOfOne, hot.floatsOfOne)
    var (call, before) = (hot.call, 0)
    let own = parameters.of(configuration.groups[0])
    hot.forEachPart { part, type, place, size in
      let count = size.outputs * size.inputs
      for i in hot.range(of: ranks.pointee.experts) {
        let expert = Int(hot.numbers[i]) - ranks.pointee.experts.lowerBound
        (room.weights + i * bytes + place).copyMemory(
          from: own.memory(part.role)! + type.bytes(expert * count), byteCount: type.bytes(count))
      }
      call.weights[part] = GivenTensor(
        type, data: room.weights + place, experts: nil,
        strides: (bytes / type.bytes(1), part.isVector ? 1 : size.inputs, 1))
      if let gradients = room.gradients {
        call.gradients[part] = GivenTensor(
          .f32, data: UnsafeMutableRawPointer(gradients + before), experts: nil,
          strides: (floats, part.isVector ? 1 : size.inputs, 1))
      }
      before += count
    }
    hot.tensors.pointee = CallTensors(call)
    func sent(by other: Int, _ isOther: Bool) -> Range<Int> {
      let theirs = hot.range(of: ranks.pointee.placement.experts(of: other))
      return isOther ? theirs : theirs.lowerBound..<theirs.lowerBound
    }
    try ranks.pointee.begin(
      room.weights, { sent(by: rank, $0 != rank) }, to: room.weights, { sent(by: $0, $0 != rank) }, bytesOfOne: bytes,
      room: bytes)
  }

  /// Waits for the weights, and computes the rows of this rank's tokens.
  @inline(never) func runHot(
    _ room: HotRoom, _ stages: ForwardStages, isTaped: Bool, _ failed: inout Fault?, over ranks: RanksPointer,
    in context: ContextPointer
  ) throws(Fault) {
    if ranks.pointee.hot.count == 0 { return }
    try ranks.pointee.finishNext()
    attempt(&failed) { () throws(Fault) in
      var arena = room.arena
      try hotForward(&arena, stages, over: ranks, isTaped: isTaped).run(in: context, kept: nil)
    }
  }

  // MARK: backward

  @inline(never) func runHotInputs(
    _ room: HotRoom, _ stages: BackwardStages, _ taped: TapeContents, _ failed: inout Fault?, over ranks: RanksPointer,
    in context: ContextPointer
  ) throws(Fault) {
    if ranks.pointee.hot.count == 0 { return }
    try ranks.pointee.finishNext()
    attempt(&failed) { () throws(Fault) in
      var arena = room.arena
      try hotBackward(&arena, stages, taped, over: ranks).runInputs(
        in: context, kept: nil, needInputGradient: stages.dx != nil)
    }
  }

  /// Their gradients: from the owners to the first rank, from rank to rank, each with its own tokens, and back from the last one.
  @inline(never) func chainHot(
    _ room: HotRoom, _ stages: BackwardStages, _ taped: TapeContents, _ failed: inout Fault?, over ranks: RanksPointer
  ) throws(Fault) {
    let (hot, rank, last) = (ranks.pointee.hot, ranks.pointee.rank, ranks.pointee.size - 1)
    guard hot.count > 0, let gradients = room.gradients else { return }
    let (floats, bytes) = (hot.floatsOfOne, hot.floatsOfOne * MemoryLayout<Float>.stride)
    let mine = hot.range(of: ranks.pointee.experts)
    func theirs(_ other: Int, _ isSent: Bool) -> Range<Int> {
      let range = hot.range(of: ranks.pointee.placement.experts(of: other))
      return isSent ? range : range.lowerBound..<range.lowerBound
    }
    copyHotGradients(hot, mine, ranks.pointee.experts.lowerBound, gradients, isBack: false)
    try ranks.pointee.begin(
      gradients, { theirs(rank, $0 == 0 && rank != 0) }, to: gradients, { theirs($0, rank == 0 && $0 != 0) },
      bytesOfOne: bytes, room: bytes)
    try ranks.pointee.finishNext()
    for i in 0..<hot.count {
      let one = gradients + i * floats
      if rank > 0 { try ranks.pointee.receive(one, bytes: bytes, from: rank - 1) }
      attempt(&failed) { () throws(Fault) in try addHotGradient(i, room, stages, taped, over: ranks) }
      if rank < last { try ranks.pointee.send(one, bytes: bytes, to: rank + 1) }
    }
    try ranks.pointee.begin(
      gradients, { theirs($0, rank == last && $0 != last) }, to: gradients,
      { theirs(rank, $0 == last && rank != last) }, bytesOfOne: bytes, room: bytes)
    try ranks.pointee.finishNext()
    copyHotGradients(hot, mine, ranks.pointee.experts.lowerBound, gradients, isBack: true)
  }

  @inline(never) private func addHotGradient(
    _ i: Int, _ room: HotRoom, _ stages: BackwardStages, _ taped: TapeContents, over ranks: RanksPointer
  ) throws(Fault) {
    var arena = room.arena
    try hotBackward(&arena, stages, taped, over: ranks).addWeightGradient(
      ofExpert: i, inGroup: 0, in: context, kept: nil, isRepeated: false)
  }

  /// Between an owner's gradients and those that travel.
  private func copyHotGradients(
    _ hot: HotExperts, _ mine: Range<Int>, _ first: Int, _ travelling: UnsafeMutablePointer<Float>, isBack: Bool
  ) {
    let own = parameters.of(configuration.groups[0])
    var place = 0
    hot.forEachPart { part, _, _, size in
      let count = size.outputs * size.inputs
      for i in mine {
        guard let all = own.grad(part.role) else { continue }
        let (grad, there) = (all + (Int(hot.numbers[i]) - first) * count, travelling + i * hot.floatsOfOne + place)
        if isBack { grad.update(from: there, count: count) } else { there.update(from: grad, count: count) }
      }
      place += count
    }
  }
}
