// The experts' networks over the rows that dispatch gave them.
//   MLP:    out = W_down act(W_up x + b_up) + b_down
//   gated:  out = W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
//   linear: out = W_down x + b_down
//   without matrices: FreeExperts.swift
// Groups of experts run one after another, over their own rows of the same outputs. Where a backward belongs to a call, a group is
// computed in runs: consecutive experts, so that what lies between their matrices has memory for these alone. What one group's run holds
// is dear on a small stack, so each has a frame of its own (never inlined).

/// All groups, one after another in the same scratch.
struct ExpertsForward {
  let outputs: UnsafeMutablePointer<Float>  // [rows, padded H]
  private let work: ExpertsWork
  private let offload: OffloadPointer?
  private let groups: GroupRange
  private let arena: Arena  // where every group begins

  /// `keeps`: whether pre-activations go to a tape. `groups`: those that are computed here. `outputs`: of others, where these go too.
  init(
    _ arena: inout Arena, _ work: ExpertsWork, context: ContextPointer, offload: OffloadPointer?, keeps: Bool,
    groups: GroupRange, outputs: UnsafeMutablePointer<Float>? = nil
  ) {
    self.work = work
    self.offload = offload
    self.groups = groups
    self.outputs = outputs ?? arena.take(Float.self, work.dispatch.size.mostRows, padded(work.c.hidden))
    self.arena = arena
    // What is kept elsewhere takes no memory here, whatever place it is at.
    let kept =
      keeps
      ? KeptGroups(
        work.c, work.dispatch.size, groups, packsWeights: context.packsWeights, frozen: work.prepared.frozenForms) : nil
    for index in groups.range {
      var own = self.arena
      _ = group(index, &own, context, kept)
      arena.cover(own)
    }
  }

  /// `kept`: where the chunk's pre-activations go.
  func run(in context: ContextPointer, kept: KeptGroups?) throws(Fault) {
    for index in groups.range {
      if let offload, offload.pointee.group == index {
        let rows = work.dispatch.rows(of: work.c.groups[index])
        try offload.forEachWave(rows, in: context) { (wave) throws(Fault) in
          try run(index, in: context, kept, only: .marked(wave))
        }
      } else {
        var next = 0
        while next < work.c.groups[index].experts {
          let part = work.run(index, from: next)
          try run(index, in: context, kept, only: .some(part))
          next = part.range.upperBound
        }
      }
    }
  }

  /// Some of the experts alone, by their numbers.
  func run(in context: ContextPointer, kept: KeptGroups?, only experts: Range<Int>) throws(Fault) {
    for index in groups.range {
      let part = work.c.groups[index].part(of: experts)
      if !part.isEmpty { try run(index, in: context, kept, only: .some(ExpertRun(part))) }
    }
  }

  @inline(never) private func run(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups?, only wanted: WantedExperts
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: wanted).run(in: context)
  }

  private func group(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups?,
    only wanted: WantedExperts = .all
  ) -> GroupForward {
    let group = work.of(index, in: context, only: wanted)
    return GroupForward(&arena, group, kept: kept?.of(group.c), outputs: outputs)
  }
}

/// All groups for one chunk of tokens, run after run of their experts in the same scratch.
struct ExpertsBackward {
  let gradients: GroupGradients
  private let work: ExpertsWork
  /// Where pre-activations are computed again, with `inRuns` those of one run.
  private let again: KeptGroups?
  private let groups: GroupRange
  /// Memory for the gradient of a single expert, where there is none for all.
  private let one: UnsafeMutablePointer<Float>?
  private let arena: Arena  // where every group begins

  /// `keeps`: whether pre-activations are on the tape. `fused`: memory for steps of an optimiser, which takes gradients as soon as
  /// they are there. `groups`: those that are computed here. `dRows`: of others, where these go too.
  init(
    _ arena: inout Arena, _ work: ExpertsWork, context: ContextPointer, dy: UnsafePointer<Float>, keeps: Bool,
    dWeights: UnsafeMutablePointer<Float>, fused: FusedScratch?, groups: GroupRange,
    dRows: UnsafeMutablePointer<Float>? = nil
  ) {
    self.work = work
    self.groups = groups
    one = fused?.gradient
    let (c, size) = (work.c, work.dispatch.size)
    gradients = GroupGradients(
      dy: dy, dWeights: dWeights, dRows: dRows ?? arena.take(Float.self, size.mostRows, padded(c.hidden)))
    let (packsWeights, frozen) = (context.packsWeights, work.prepared.frozenForms)
    again =
      keeps
      ? nil
      : KeptGroups(&arena, c, size, groups, packsWeights: packsWeights, frozen: frozen, inRuns: work.runs != .none)
    self.arena = arena
    let kept = again ?? KeptGroups(c, size, groups, packsWeights: packsWeights, frozen: frozen)
    for index in groups.range {
      var own = self.arena
      _ = inner(index, &own, context, kept)
      arena.cover(own)
      own = self.arena
      _ = group(index, &own, context, kept, to: fused.map { .steps(UnsafePointer($0.steps)) } ?? .whole)
      arena.cover(own)
    }
  }

  /// What backward does for one chunk. `kept`: the chunk's pre-activations; nil where they are computed again.
  /// With `steps`, experts with matrices are stepped by an optimiser, each when its gradient is complete: here where the
  /// chunk is the only one; otherwise their matrices' gradients are left to `addWeightGradient`, after all chunks.
  func run(
    in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool, _ steps: inout FusedStep?, isOnlyChunk: Bool
  ) throws(Fault) {
    guard let kept = kept ?? again else { return }
    for index in groups.range {
      try requireCurrentWeights(index, in: steps?.context ?? context)
      var next = 0
      while next < work.c.groups[index].experts {
        let here = steps?.context ?? context
        let part = work.run(index, from: next)
        next = part.range.upperBound
        try computeAgain(index, in: here, kept, only: .some(part))
        if steps == nil {
          try run(index, in: here, kept, needInputGradient, only: part)
        } else {
          try runInputs(index, in: here, kept, needInputGradient, only: .some(part))
          if isOnlyChunk { try step(&steps!, index, kept, part) }
        }
      }
      if isOnlyChunk && steps != nil { stepRest(&steps!, index) }
    }
  }

  @inline(never) private func requireCurrentWeights(_ index: Int, in context: ContextPointer) throws(Fault) {
    try work.of(index, in: context).requireCurrentWeights()
  }

  @inline(never) private func run(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool, only part: ExpertRun
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: .some(part)).run(in: context, needInputGradient: needInputGradient)
  }

  @inline(never) private func runInputs(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool,
    only wanted: WantedExperts = .all
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: wanted).runInputs(in: context, needInputGradient: needInputGradient)
  }

  /// The gradients of x and of the routing weights alone; `runWeights` follows.
  func runInputs(in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool) throws(Fault) {
    guard let kept = kept ?? again else { return }
    for index in groups.range {
      try requireCurrentWeights(index, in: context)
      try computeAgain(index, in: context, kept)
      try runInputs(index, in: context, kept, needInputGradient)
    }
  }

  /// What rows wait for of some of the experts alone, by their numbers; `finish` follows with the same ones.
  func runRows(
    in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool, only experts: Range<Int>
  ) throws(Fault) {
    guard let kept = kept ?? again else { return }
    var before: Int?
    for index in groups.range {
      let part = work.c.groups[index].part(of: experts)
      if part.isEmpty { continue }
      // The groups have the same scratch, so that all but the last one are done with here.
      if let before { try finish(before, in: context, kept, only: experts) }
      before = index
      let run = ExpertRun(part)
      try work.of(index, in: context, only: .some(run)).requireCurrentWeights()
      try computeAgain(index, in: context, kept, only: .some(run))
      try runRows(index, in: context, kept, needInputGradient, only: run)
    }
  }

  /// The gradients of matrices and biases, as far as `runRows` has left them.
  func finish(in context: ContextPointer, kept: KeptGroups?, only experts: Range<Int>) throws(Fault) {
    guard let kept = kept ?? again else { return }
    let last = groups.range.last { !work.c.groups[$0].part(of: experts).isEmpty }
    if let last { try finish(last, in: context, kept, only: experts) }
  }

  @inline(never) private func runRows(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool, only run: ExpertRun
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: .some(run)).runRows(in: context, needInputGradient: needInputGradient)
  }

  @inline(never) private func finish(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, only experts: Range<Int>
  ) throws(Fault) {
    let part = work.c.groups[index].part(of: experts)
    if part.isEmpty || !work.source.of(work.c.groups[index]).wantsGradients { return }
    var own = arena
    try group(index, &own, context, kept, only: .some(ExpertRun(part))).finish(in: context)
  }

  /// Where the gradient of a single expert goes.
  private var oneExpert: GradientPlace { one.map { .one($0) } ?? .whole }

  /// The steps of some of a group's experts, each with its gradient, right after their `runInputs`; `stepRest` follows the last of them.
  @inline(never) private func step(
    _ steps: inout FusedStep, _ index: Int, _ kept: KeptGroups, _ part: ExpertRun
  ) throws(Fault) {
    let group = work.c.groups[index]
    if !group.multiplies || !wantsGradients(group) { return }
    steps.begin()
    // Each block of their matrices by the thread that has summed up its gradient.
    if stepsBlocks(steps, index) {
      return try runWeights(
        index, in: steps.context, kept, only: .some(part), to: .steps(steps.blocks(of: group)), again: false)
    }
    for expert in part.range {
      try runWeights(index, in: steps.context, kept, only: .one(expert, of: part), to: oneExpert, again: false)
      steps.step(group, expert: expert)
    }
  }

  /// What is left of a group that was stepped block by block: all biases, and the matrices of experts without rows, whose gradient is 0,
  /// but moments fade and weights decay.
  @inline(never) private func stepRest(_ steps: inout FusedStep, _ index: Int) {
    let group = work.c.groups[index]
    if !group.multiplies || !wantsGradients(group) || !stepsBlocks(steps, index) { return }
    steps.stepBiases(group)
    let rows = work.dispatch.rows(of: group)
    for expert in 0..<group.experts where rows.count(ofExpert: expert) == 0 {
      steps.step(group, expert: expert, onlyMatrices: true)
    }
  }

  /// Whether all of a run's matrices are stepped at once, and not expert by expert.
  @inline(never) private func stepsBlocks(_ steps: FusedStep, _ index: Int) -> Bool {
    steps.stepsElements(work.c.groups[index]) && ExpertForm(work.of(index, in: steps.context)) != .plain
  }

  @inline(never) private func wantsGradients(_ group: ExpertGroup) -> Bool { work.source.of(group).wantsGradients }

  /// One chunk's part of one expert's gradient. `isRepeated`: others have used the scratch since its `runInputs`.
  func addWeightGradient(
    ofExpert expert: Int, inGroup index: Int, in context: ContextPointer, kept: KeptGroups?, isRepeated: Bool
  ) throws(Fault) {
    guard let kept = kept ?? again, wantsGradients(work.c.groups[index]) else { return }
    if work.dispatch.rows(of: work.c.groups[index]).count(ofExpert: expert) == 0 { return }
    if isRepeated { try computeAgain(index, in: context, kept, only: .one(expert)) }
    try runWeights(index, in: context, kept, only: .one(expert), to: oneExpert, again: isRepeated)
  }

  @inline(never) private func runWeights(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, only wanted: WantedExperts, to place: GradientPlace,
    again: Bool
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: wanted, to: place).runWeights(in: context, again: again)
  }

  /// Pre-activations that are not on the tape.
  @inline(never) private func computeAgain(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, only wanted: WantedExperts = .all
  ) throws(Fault) {
    if again == nil { return }
    var own = arena
    try inner(index, &own, context, kept, only: wanted).runInner(in: context)
  }

  private func inner(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups,
    only wanted: WantedExperts = .all
  ) -> GroupForward {
    var group = work.of(index, in: context, only: wanted)
    group.dropout = nil  // which comes after the pre-activations
    return GroupForward(&arena, group, kept: kept.of(group.c, group.dispatch), outputs: nil)
  }

  private func group(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups,
    only wanted: WantedExperts = .all, to place: GradientPlace = .whole
  ) -> GroupBackward {
    let group = work.of(index, in: context, only: wanted)
    var gradients = gradients
    gradients.place = place
    return GroupBackward(&arena, group, kept: kept.of(group.c, group.dispatch), gradients)
  }
}
