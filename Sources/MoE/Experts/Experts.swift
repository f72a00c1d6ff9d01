// The experts' networks over the rows that dispatch gave them.
//   MLP:    out = W_down act(W_up x + b_up) + b_down
//   gated:  out = W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
//   linear: out = W_down x + b_down
//   without matrices: FreeExperts.swift
// Groups of experts run one after another, over their own rows of the same outputs. What one group's run holds is dear on a
// small stack, so each has a frame of its own (never inlined).

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
        try run(index, in: context, kept, only: .all)
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

/// All groups for one chunk of tokens, one after another in the same scratch.
struct ExpertsBackward {
  let gradients: GroupGradients
  private let work: ExpertsWork
  /// Where pre-activations are computed again.
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
    again = keeps ? nil : KeptGroups(&arena, c, size, groups, packsWeights: packsWeights, frozen: frozen)
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
      let here = steps?.context ?? context
      try work.of(index, in: here).requireCurrentWeights()
      try computeAgain(index, in: here, kept)
      if steps == nil {
        try run(index, in: here, kept, needInputGradient)
      } else {
        try runInputs(index, in: here, kept, needInputGradient)
        if isOnlyChunk { try step(&steps!, index, kept) }
      }
    }
  }

  @inline(never) private func run(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept).run(in: context, needInputGradient: needInputGradient)
  }

  @inline(never) private func runInputs(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept).runInputs(in: context, needInputGradient: needInputGradient)
  }

  /// The gradients of x and of the routing weights alone; `runWeights` follows.
  func runInputs(in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool) throws(Fault) {
    guard let kept = kept ?? again else { return }
    for index in groups.range {
      try work.of(index, in: context).requireCurrentWeights()
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

  /// The steps of one group's experts, each with its gradient, right after `runInputs`.
  @inline(never) private func step(_ steps: inout FusedStep, _ index: Int, _ kept: KeptGroups) throws(Fault) {
    let group = work.c.groups[index]
    if !group.multiplies || !wantsGradients(group) { return }
    steps.begin()
    if steps.stepsElements(group) && hasTiles(index, in: steps.context) { return try stepBlocks(steps, index, kept) }
    for expert in 0..<group.experts {
      try runWeights(index, in: steps.context, kept, only: .one(expert), to: oneExpert, again: false)
      steps.step(group, expert: expert)
    }
  }

  /// All experts at once, each block of their matrices by the thread that has summed up its gradient.
  @inline(never) private func stepBlocks(_ steps: FusedStep, _ index: Int, _ kept: KeptGroups) throws(Fault) {
    let group = work.c.groups[index]
    try runWeights(index, in: steps.context, kept, only: .all, to: .steps(steps.blocks(of: group)), again: false)
    steps.stepBiases(group)
    // Without rows a gradient is 0, but moments fade and weights decay.
    let rows = work.dispatch.rows(of: group)
    for expert in 0..<group.experts where rows.count(ofExpert: expert) == 0 {
      steps.step(group, expert: expert, onlyMatrices: true)
    }
  }

  @inline(never) private func hasTiles(_ index: Int, in context: ContextPointer) -> Bool {
    ExpertForm(work.of(index, in: context)) != .plain
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
    return GroupForward(&arena, group, kept: kept.of(group.c), outputs: nil)
  }

  private func group(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups,
    only wanted: WantedExperts = .all, to place: GradientPlace = .whole
  ) -> GroupBackward {
    let group = work.of(index, in: context, only: wanted)
    var gradients = gradients
    gradients.place = place
    return GroupBackward(&arena, group, kept: kept.of(group.c), gradients)
  }
}
