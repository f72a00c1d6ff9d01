import CShims

// What follows from a configuration, or from a configuration and a call: asked in many rooms, answered here.

extension Configuration {
  /// Choices of a token: where experts choose, one for each of them.
  public var choices: Int { router.listsAllExperts ? experts : topK }
  /// Choices, then shared experts.
  public var slots: Int { choices + shared }
  public var hasGate: Bool { values.pointee.hasGate }
  /// Logits of the shared experts' gate.
  var sharedGates: Int {
    switch sharedGate {
    case .plain: 0
    case .sigmoid: shared
    case .residual: 2
    }
  }
  /// Of all groups' experts.
  var weightOnInput: Bool { groups[0].weightOnInput }

  // MARK: what a call draws, and what it may leave out

  func draws(_ call: Call, _ kernels: UnsafePointer<moei_kernels>) -> Draws {
    let first = call.ranks?.pointee.all.first ?? call.firstToken
    return Draws(
      kernels: kernels, seed: seed, step: call.step, training: call.training,
      given: call.given.counted(from: first, self),
      firstToken: first)
  }

  /// Whether a choice may come without a row.
  func mayLeaveSlotsEmpty(_ call: Call) -> Bool {
    call.validMask != nil || call.givenIndices != nil || router.mayLeaveSlotsEmpty || dynamicK != nil
      || capacity != nil || exploration.randomSecond
  }

  /// Groups that a rank computes for its own tokens, without sending them anywhere.
  func groupsHere(over ranks: RanksPointer?) -> GroupRange {
    GroupRange((ranks.map { groupsSpread(over: $0).range.upperBound } ?? 0)..<groupCount)
  }
  /// Those whose experts are spread over ranks; nil: over whichever.
  func groupsSpread(over ranks: RanksPointer?) -> GroupRange {
    GroupRange(0..<(ranks?.pointee.placement.strategy == .replicated ? 0 : groupCount - (shared > 0 ? 1 : 0)))
  }

  // MARK: choices and their weights

  /// Whether choices may go to other experts than those chosen.
  func movesChoices(_ call: Call) -> Bool { admits(call) && capacity?.nextBest == true }

  /// Whether weights follow after the choices, from other logits than those at hand when these were made.
  func weighsFromLogits(_ call: Call) -> Bool {
    Choice.isTogether(self, call) || movesChoices(call) || admits(call) && choice.weights.looksAtAllLogits
  }

  /// Experts that may be chosen. Training notes the number, and evaluation follows it.
  func activeExperts(_ call: Call, _ parameters: Parameters) -> Int {
    guard let warmup, let noted = parameters.data(.activeExperts) else { return experts }
    if call.training { return warmup.active(experts, step: call.step) }
    let wanted = noted[0]
    return wanted >= Float(experts) || wanted.isNaN ? experts : max(topK, Int(max(wanted, 0)))
  }

  /// Whether choices may be turned away.
  func admits(_ call: Call) -> Bool {
    !call.choicesAreGiven && router.admits
      && (capacity != nil || exploration.randomSecond && call.training)
  }

  /// Whether an expert's room is for the tokens of all ranks together.
  func sharesRoom(_ ranks: RanksPointer) -> Bool {
    capacity.map { !$0.perSequence } == true && !ranks.pointee.choosesLocally
  }

  // MARK: rows, where experts choose too

  var choosesBySequence: Bool { capacity?.perSequence ?? false }

  /// Tokens that an expert takes when experts choose: without a formula K experts a token on average.
  func room(tokens: Int, training: Bool) -> Int {
    if let capacity {
      return capacity.room(tokens: tokens, topK: topK, experts: experts, training: training, load: tokens)
    }
    return Int((Double(tokens) * Double(topK) / Double(experts)).rounded(.up))
  }

  /// Rows that so many of a call's tokens have at most.
  func mostRows(_ call: Call, of chunk: Int) -> Int { min(chunk * slots, mostRows(call)) }

  private func mostRows(_ call: Call) -> Int {
    if let given = call.givenIndices {
      var rows = call.tokens * shared
      for pair in 0..<call.tokens * choices where given[pair].isExpert { rows += 1 }
      return rows
    }
    guard router.listsAllExperts else { return call.tokens * slots }
    return experts * mostTaken(call) * call.sequences(apart: choosesBySequence) + call.tokens * shared
  }

  /// Whether some token may name an expert twice, and an expert have more rows than there are tokens.
  func mayRepeatChoices(_ call: Call) -> Bool {
    guard let given = call.givenIndices else { return router.mayRepeat || router.needsChoices }
    return nameTwice(tokens: call.tokens, choices: choices) { given[$0] }
  }

  /// Tokens of one sequence that an expert takes at most: the room grows with the number of tokens.
  func mostTaken(_ call: Call) -> Int {
    let tokens = choosesBySequence ? call.sequenceLength : call.tokens
    return min(room(tokens: tokens, training: call.training), tokens)
  }

  // MARK: losses that are asked for

  /// Of term number i of the list; the boundary has checked it.
  func lossKind(_ i: Int) -> LossTerm.Kind { LossTerm.Kind(rawValue: losses![i].kind)! }

  private func anyLoss(_ has: (LossTerm.Kind) -> Bool) -> Bool {
    for i in 0..<lossCount where has(lossKind(i)) { return true }
    return false
  }

  /// Where all experts are chosen, the loads are equal without being measured.
  var hasSmoothLoads: Bool { topK < experts && anyLoss { $0.needsNoise } }
  /// The softmax's shares are the probabilities themselves.
  var hasScoreShares: Bool { choice.score != .softmax && anyLoss { $0.needsShares } }
  var hasLossesBySequence: Bool { anyLoss { $0.isBySequence } }
  /// Such terms among the first n.
  func lossesBySequence(among n: Int) -> Int {
    var count = 0
    for i in 0..<n where lossKind(i).isBySequence { count += 1 }
    return count
  }
  var hasLossesOfFirstChoices: Bool { anyLoss { $0.balanceFamily(topK: topK)?.counts == .first } }
  var hasLossesOfWeights: Bool { anyLoss { $0.isOfWeights } }

  // MARK: what training notes

  /// Floats of `measured`.
  var notedFloats: Int { exploration.batchNorm == nil ? 0 : 2 * hidden }
  /// Whether a training call has anything to note.
  var takesNotes: Bool { exploration.batchNorm != nil || warmup != nil }

  // MARK: backward

  /// Means over all tokens stand in the way of chunks.
  var routesBackInOne: Bool { exploration.batchNorm != nil }
}
