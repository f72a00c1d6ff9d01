import CShims

// The experts' networks over the rows that dispatch gave them.
//   MLP:    out = W_down act(W_up x + b_up) + b_down
//   gated:  out = W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
//   linear: out = W_down x + b_down
//   without matrices: FreeExperts.swift
// Groups of experts run one after another, over their own rows of the same outputs. What one group's run holds is dear on a
// small stack, so each has a frame of its own (never inlined).

/// One expert's parameters, its matrices as they are stored; or their gradients.
struct ExpertTensors<Matrix> {
  let gateWeight: Matrix?  // [I,H]
  let gateBias: UnsafeMutablePointer<Float>?  // [I]
  let upWeight: Matrix  // [I,H]; the same as downWeight where experts are linear, and not used
  let upBias: UnsafeMutablePointer<Float>?  // [I]
  let downWeight: Matrix  // [H,I]
  let downBias: UnsafeMutablePointer<Float>?  // [H]
}

extension ExpertTensors<StoredMatrix> {
  init(_ c: ExpertGroup, expert e: Int, _ parameters: Parameters) {
    let (h, i, place) = (c.hidden, c.intermediate, parameters.place(ofExpert: e))
    func matrix(_ role: Parameters.Role, rowStride: Int) -> StoredMatrix? {
      parameters.memory(role).map { StoredMatrix($0, c.weights, first: place * i * h, rowStride: rowStride) }
    }
    gateWeight = matrix(.gateWeight, rowStride: h)
    gateBias = parameters.data(.gateBias).map { $0 + e * i }
    upWeight = matrix(c.linear ? .downWeight : .upWeight, rowStride: h)!
    upBias = parameters.data(.upBias).map { $0 + e * i }
    downWeight = matrix(.downWeight, rowStride: i)!
    downBias = parameters.data(.downBias).map { $0 + e * h }
  }
}

extension ExpertTensors<UnsafeMutablePointer<Float>> {
  init(gradientsIn parameters: Parameters, _ c: ExpertGroup, expert e: Int) {
    let (h, i) = (c.hidden, c.intermediate)
    func part(_ role: Parameters.Role, _ place: Int) -> UnsafeMutablePointer<Float>? {
      parameters.grad(role).map { $0 + place }
    }
    gateWeight = part(.gateWeight, e * i * h)
    gateBias = part(.gateBias, e * i)
    upWeight = part(c.linear ? .downWeight : .upWeight, e * i * h)!
    upBias = part(.upBias, e * i)
    downWeight = part(.downWeight, e * i * h)!
    downBias = part(.downBias, e * h)
  }

  /// One expert's gradients in memory for one expert, tensor after tensor as above.
  init(passing memory: UnsafeMutablePointer<Float>, _ c: ExpertGroup) {
    let (matrix, bias) = (c.intermediate * c.hidden, c.hasBias ? c.intermediate : 0)
    var place = memory
    gateWeight = c.gated ? place : nil
    if c.gated { place += matrix }
    gateBias = c.gated && c.hasBias ? place : nil
    if c.gated { place += bias }
    upWeight = place
    if !c.linear { place += matrix }
    upBias = c.hasBias && !c.linear ? place : nil
    if !c.linear { place += bias }
    downWeight = place
    downBias = c.hasBias ? place + matrix : nil
  }
}

/// W x + b before the activation, for all rows or for a part of them: what backward needs of forward. Nothing where
/// experts are linear.
struct Preactivations<Element> {
  let gate: UnsafeMutablePointer<Element>?  // [rows, width], gated experts only
  let up: UnsafeMutablePointer<Element>  // [rows, width]

  init(_ arena: inout Arena, _ c: ExpertGroup, rows: Int, width: Int) {
    gate = c.gated ? arena.take(Element.self, rows, width) : nil
    up = arena.take(Element.self, c.linear ? 0 : rows, width)
  }

  init(gate: UnsafeMutablePointer<Element>?, up: UnsafeMutablePointer<Element>) {
    self.gate = gate
    self.up = up
  }
}

extension Preactivations<Float> {
  func from(row: Int, _ c: ExpertGroup) -> Preactivations {
    Preactivations(gate: gate.map { $0 + row * c.intermediate }, up: up + row * c.intermediate)
  }

  /// a = act(up), or act(gate) * up, then dropout; a may be `up`. Rows of `width` floats hold columns `from` ..<
  /// `from` + `count`.
  func activate(
    _ a: UnsafeMutablePointer<Float>, rows: Int, width: Int, from: Int, count: Int, pairs: UnsafePointer<Int32>,
    _ c: ExpertGroup, _ dropout: Dropout?, _ kernels: UnsafePointer<moei_kernels>
  ) {
    if let gate {
      kernels.pointee.activate_gated(c.activation, Int64(rows * width), gate, up, a)
    } else {
      kernels.pointee.activate(c.activation, Int64(rows * width), up, a)
    }
    guard let dropout else { return }
    for row in 0..<rows { dropout.apply(a + row * width, pair: Int(pairs[row]), from: from, count: count) }
  }
}

/// Pre-activations on a tape, in the form of the experts that will read them.
enum KeptPreactivations {
  case float(Preactivations<Float>)
  case bf16(Preactivations<UInt16>)

  var floats: Preactivations<Float>? { if case .float(let kept) = self { kept } else { nil } }
  var halves: Preactivations<UInt16>? { if case .bf16(let kept) = self { kept } else { nil } }
}

// MARK: forward

/// All groups, one after another in the same scratch.
struct ExpertsForward {
  let outputs: UnsafeMutablePointer<Float>  // [rows, padded H]
  private let c: Configuration
  private let x: UnsafePointer<Float>  // [T,H]
  private let parameters: Parameters
  private let prepared: PreparedGroups
  private let offload: OffloadPointer?
  private let dispatch: Dispatch
  private let draws: Draws
  private let arena: Arena  // where every group begins

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    prepared: PreparedGroups, offload: OffloadPointer?, dispatch: Dispatch, draws: Draws, keeps: Bool
  ) {
    outputs = arena.take(Float.self, dispatch.size.mostRows, padded(c.hidden))
    self.c = c
    self.x = x
    self.parameters = parameters
    self.prepared = prepared
    self.offload = offload
    self.dispatch = dispatch
    self.draws = draws
    self.arena = arena
    // What is kept elsewhere takes no memory here, whatever place it is at.
    let kept = keeps ? KeptGroups(c, dispatch.size, packsWeights: context.packsWeights) : nil
    for index in 0..<c.groupCount {
      var own = self.arena
      _ = group(index, &own, context, kept)
      arena.cover(own)
    }
  }

  /// `kept`: where the chunk's pre-activations go.
  func run(in context: ContextPointer, kept: KeptGroups?) throws(Fault) {
    for index in 0..<c.groupCount {
      if let offload, offload.pointee.group == index {
        try offload.forEachWave(dispatch.rows(of: c.groups[index]), in: context) { (wave) throws(Fault) in
          try run(index, in: context, kept, only: .marked(wave))
        }
      } else {
        try run(index, in: context, kept, only: .all)
      }
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
    let group = c.groups[index]
    return GroupForward(
      &arena, group, context: context, x: x, parameters: parameters.of(group), prepared: prepared.of(group),
      dispatch: dispatch.rows(of: group, only: wanted), dropout: Dropout(group, draws), kept: kept?.of(group),
      outputs: outputs)
  }
}

/// Ways to the same sums: our own kernels, tile by tile, in float32 or bfloat16, or row-major products; and experts that
/// have nothing to multiply.
enum GroupForward {
  case tiled(TiledForward<F32>)
  case tiledBF16(TiledForward<BF16>)
  case plain(PlainForward)
  case free(FreeForward)

  init(
    _ arena: inout Arena, _ c: ExpertGroup, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    prepared: PreparedWeights?, dispatch: GroupRows, dropout: Dropout?, kept: KeptPreactivations?,
    outputs: UnsafeMutablePointer<Float>?
  ) {
    switch ExpertForm(c, context: context, prepared: prepared) {
    case .tiled:
      self = .tiled(
        TiledForward(
          &arena, c, context: context, x: x, parameters: parameters, prepared: prepared, dispatch: dispatch,
          dropout: dropout, kept: kept?.floats, outputs: outputs))
    case .tiledBF16:
      self = .tiledBF16(
        TiledForward(
          &arena, c, context: context, x: x, parameters: parameters, prepared: prepared, dispatch: dispatch,
          dropout: dropout, kept: kept?.halves, outputs: outputs))
    case .plain:
      self = .plain(
        PlainForward(
          &arena, c, context: context, x: x, parameters: parameters, dispatch: dispatch, dropout: dropout,
          kept: kept?.floats, outputs: outputs))
    case .free:
      self = .free(
        FreeForward(
          c: c, kernels: context.kernels, x: x, parameters: parameters, dispatch: dispatch, outputs: outputs))
    }
  }

  @inline(never) func run(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let forward): try forward.run(in: context)
    case .tiledBF16(let forward): try forward.run(in: context)
    case .plain(let forward): try forward.run(in: context)
    case .free(let forward): try forward.run(in: context)
    }
  }

  /// The pre-activations alone.
  @inline(never) func runInner(in context: ContextPointer) throws(Fault) {
    switch self {
    case .tiled(let forward): try forward.runInner(in: context)
    case .tiledBF16(let forward): try forward.runInner(in: context)
    case .plain(let forward): try forward.run(in: context)
    case .free: break
    }
  }
}

/// Which of the ways a group takes. The raw type is for the linker: without one the enum brings its own Hashable,
/// and with it a random seed that older C libraries do not have.
enum ExpertForm: Int32 {
  case tiled, tiledBF16, plain, free

  init(_ c: ExpertGroup, context: ContextPointer, prepared: PreparedWeights?) {
    if !c.multiplies {
      self = .free
    } else if !context.packsWeights {
      self = .plain
    } else {
      switch (prepared?.type ?? c.weights).format.precision {
      case .f32: self = .tiled
      case .bf16: self = .tiledBF16
      }
    }
  }
}

// MARK: backward

/// What the experts find for each row, or its pair.
struct RowGradients {
  let dWeights: UnsafeMutablePointer<Float>  // [T,slots] of the routing weights; 0 for pairs without a row
  let dRows: UnsafeMutablePointer<Float>  // [rows, padded H] of x
}

/// All groups for one chunk of tokens, one after another in the same scratch.
struct ExpertsBackward {
  let gradients: RowGradients
  private let c: Configuration
  private let x: UnsafePointer<Float>  // [T,H]
  private let dy: UnsafePointer<Float>  // [T,H]
  private let parameters: Parameters
  private let dispatch: Dispatch
  private let draws: Draws
  /// One expert's gradient, where an optimiser takes it before the next expert's is begun.
  private let passing: UnsafeMutablePointer<Float>?
  /// Where pre-activations are computed again.
  private let again: KeptGroups?
  private let arena: Arena  // where every group begins

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, tape: TapeContents, dispatch: Dispatch,
    dWeights: UnsafeMutablePointer<Float>, passing: UnsafeMutablePointer<Float>?
  ) {
    gradients = RowGradients(
      dWeights: dWeights, dRows: arena.take(Float.self, dispatch.size.mostRows, padded(c.hidden)))
    self.c = c
    self.x = x
    self.dy = dy
    self.parameters = parameters
    self.dispatch = dispatch
    self.passing = passing
    draws = tape.draws
    let packsWeights = context.packsWeights
    again = tape.keeps ? nil : KeptGroups(&arena, c, dispatch.size, packsWeights: packsWeights)
    self.arena = arena
    let kept = again ?? KeptGroups(c, dispatch.size, packsWeights: packsWeights)
    for index in 0..<c.groupCount {
      var own = self.arena
      _ = inner(index, &own, context, kept)
      arena.cover(own)
      own = self.arena
      _ = group(index, &own, context, kept)
      arena.cover(own)
    }
  }

  /// `kept`: the chunk's pre-activations; nil where they are computed again.
  func run(in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool) throws(Fault) {
    guard let kept = kept ?? again else { return }
    for index in 0..<c.groupCount {
      try computeAgain(index, in: context, kept)
      try run(index, in: context, kept, needInputGradient)
    }
  }

  @inline(never) private func run(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept).run(in: context, needInputGradient: needInputGradient)
  }

  /// The same without the gradients of matrices and their biases.
  func runInputs(in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool) throws(Fault) {
    guard let kept = kept ?? again else { return }
    for index in 0..<c.groupCount { try runInputs(index, in: context, kept, needInputGradient) }
  }

  /// Everything, for all tokens at once, and the steps of the experts with matrices, each with its gradient. Returns where
  /// the rest of the call has to run.
  func runWithSteps(
    _ steps: inout FusedStep, in context: ContextPointer, kept: KeptGroups?, needInputGradient: Bool
  ) throws(Fault) -> ContextPointer {
    guard let kept = kept ?? again else { return context }
    var context = context
    for index in 0..<c.groupCount {
      try runInputs(index, in: context, kept, needInputGradient)
      if !c.groups[index].multiplies { continue }
      context = steps.begin(in: context)
      for expert in 0..<c.groups[index].experts {
        try runWeights(index, in: context, kept, only: expert, again: false)
        steps.step(c.groups[index], expert: expert)
      }
    }
    return context
  }

  /// One chunk's part of one expert's gradient, after `runInputs` of other chunks.
  func addWeightGradient(
    ofExpert expert: Int, inGroup index: Int, in context: ContextPointer, kept: KeptGroups?
  ) throws(Fault) {
    guard let kept = kept ?? again else { return }
    if dispatch.rows(of: c.groups[index]).count(ofExpert: expert) == 0 { return }
    try computeAgain(index, in: context, kept, only: expert)
    try runWeights(index, in: context, kept, only: expert, again: true)
  }

  @inline(never) private func runWeights(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, only expert: Int, again: Bool
  ) throws(Fault) {
    var own = arena
    try group(index, &own, context, kept, only: expert).runWeights(in: context, again: again)
  }

  @inline(never) private func runInputs(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, _ needInputGradient: Bool
  ) throws(Fault) {
    try computeAgain(index, in: context, kept)
    var own = arena
    try group(index, &own, context, kept).runInputs(in: context, needInputGradient: needInputGradient)
  }

  /// Pre-activations that are not on the tape.
  @inline(never) private func computeAgain(
    _ index: Int, in context: ContextPointer, _ kept: KeptGroups, only expert: Int? = nil
  ) throws(Fault) {
    if again == nil { return }
    var own = arena
    try inner(index, &own, context, kept, only: expert).runInner(in: context)
  }

  private func inner(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups, only expert: Int? = nil
  ) -> GroupForward {
    let group = c.groups[index]
    return GroupForward(
      &arena, group, context: context, x: x, parameters: parameters.of(group), prepared: nil,
      dispatch: dispatch.rows(of: group, only: expert.map(WantedExperts.one) ?? .all), dropout: nil,
      kept: kept.of(group), outputs: nil)
  }

  /// Of one expert alone the gradient is the passing one.
  private func group(
    _ index: Int, _ arena: inout Arena, _ context: ContextPointer, _ kept: KeptGroups, only expert: Int? = nil
  ) -> GroupBackward {
    let group = c.groups[index]
    return GroupBackward(
      &arena, group, context: context, x: x, dy: dy, parameters: parameters.of(group),
      dispatch: dispatch.rows(of: group, only: expert.map(WantedExperts.one) ?? .all), dropout: Dropout(group, draws),
      kept: kept.of(group),
      gradients: gradients, passing: expert == nil ? nil : passing)
  }
}

enum GroupBackward {
  case tiled(TiledBackward<F32>)
  case tiledBF16(TiledBackward<BF16>)
  case plain(PlainBackward)
  case free(FreeBackward)

  init(
    _ arena: inout Arena, _ c: ExpertGroup, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, dispatch: GroupRows, dropout: Dropout?,
    kept: KeptPreactivations?, gradients: RowGradients, passing: UnsafeMutablePointer<Float>?
  ) {
    switch kept {
    case .bf16(let kept):
      self = .tiledBF16(
        TiledBackward(
          &arena, c, context: context, x: x, dy: dy, parameters: parameters, dispatch: dispatch, dropout: dropout,
          kept: kept, gradients: gradients, passing: passing))
    case .float(let kept):
      if context.packsWeights {
        self = .tiled(
          TiledBackward(
            &arena, c, context: context, x: x, dy: dy, parameters: parameters, dispatch: dispatch, dropout: dropout,
            kept: kept, gradients: gradients, passing: passing))
      } else {
        self = .plain(
          PlainBackward(
            &arena, c, context: context, x: x, dy: dy, parameters: parameters, dispatch: dispatch, dropout: dropout,
            kept: kept, gradients: gradients, passing: passing))
      }
    case nil:
      self = .free(
        FreeBackward(
          c: c, kernels: context.kernels, x: x, dy: dy, parameters: parameters, dispatch: dispatch,
          gradients: gradients))
    }
  }

  @inline(never) func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .tiledBF16(let backward): try backward.run(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.run(in: context)
    case .free(let backward): try backward.run(in: context)
    }
  }

  /// What the rows find, and the gradients of constants.
  @inline(never) func runInputs(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.runInputs(in: context, needInputGradient: needInputGradient)
    case .tiledBF16(let backward): try backward.runInputs(in: context, needInputGradient: needInputGradient)
    case .plain(let backward): try backward.runInputs(in: context)
    case .free(let backward): try backward.run(in: context)
    }
  }

  /// The gradients of matrices and their biases. `again`: something else has used the scratch since `runInputs`.
  @inline(never) func runWeights(in context: ContextPointer, again: Bool) throws(Fault) {
    switch self {
    case .tiled(let backward): try backward.runWeights(in: context, again: again)
    case .tiledBF16(let backward): try backward.runWeights(in: context, again: again)
    case .plain(let backward): try backward.runWeights(in: context)
    case .free: break
    }
  }
}

/// Where routing weights multiply what the experts read: the weight's gradient is <gradient of what was read, x>, and x's
/// gradient the weight's multiple.
struct InputWeightGradient: Job {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let x: UnsafePointer<Float>  // [T,H]
  let dispatch: GroupRows
  let gradients: RowGradients

  func run(in context: ContextPointer) throws(Fault) { try context.run(c.experts, self) }

  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let rows = dispatch.rows(ofExpert: expert)
    let (pairs, tokens) = (dispatch.pairs(from: rows.lowerBound), dispatch.tokens(from: rows.lowerBound))
    let weights = dispatch.weights(from: rows.lowerBound)
    for r in 0..<rows.count {
      let dRow = gradients.dRows + (rows.lowerBound + r) * padded(c.hidden)
      gradients.dWeights[Int(pairs[r])] = kernels.pointee.dot(Int64(c.hidden), dRow, x + Int(tokens[r]) * c.hidden)
      kernels.pointee.scale(Int64(c.hidden), weights[r], dRow, dRow)
    }
  }
}
