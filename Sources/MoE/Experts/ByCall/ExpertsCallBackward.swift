import CShims

extension ExpertsCall {
  /// The gradients of <dy, y>: dx [T,H], those of the routing weights [T,K], and those of weights that `gradients` names.
  /// Without `saved` the pre-activations are computed again.
  public func backward(
    _ x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?, dRouting: UnsafeMutableRawPointer?,
    saved: CallerMemory?, in context: ContextPointer
  ) throws(Fault) {
    if let spread {
      return try backward(x, dy: dy, dx: dx, dRouting: dRouting, saved: saved, over: spread, in: context)
    }
    try withConfiguration { (c) throws(Fault) in
      let size = chunk()
      let packed = try packed(c, differentiated: true, in: context)
      let kept = try saved.map { (memory) throws(Fault) in
        let kept = try SavedExperts(self, c, size, lent: memory, in: context)
        try kept.require(self)
        return kept
      }
      try requireWithinLimit(c, size, saves: saved != nil, in: context)
      var tensors = CallTensors(self)
      try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
        func layout(_ arena: inout Arena) -> BackwardOfCall {
          BackwardOfCall(
            &arena, self, c, size, tensors, x: x, dy: dy, dx: dx, prepared: packed, saves: saved != nil, context)
        }
        try context.withScratch(layout) { (stages) throws(Fault) in
          try stages.run(self, kept, dRouting, in: context)
        }
      }
    }
  }
}

/// Made of more than ten parameters: the arena measures by them, and each is kept by the stage alone that it is for.
struct BackwardOfCall {
  private let ends: BackwardEnds
  private let compute: ExpertsBackward

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, prepared: PreparedGroups, saves: Bool, _ context: ContextPointer
  ) {
    ends = BackwardEnds(&arena, call, c, size, tensors, x: x, dy: dy, dx: dx, prepared: prepared, context)
    compute = ExpertsBackward(
      &arena, ends.parts.work, context: context, dy: ends.dy.floats, keeps: saves, dWeights: ends.dWeights,
      fused: nil, groups: GroupRange(0..<1))
  }

  @inline(never) func run(
    _ call: ExpertsCall, _ saved: SavedExperts?, _ dRouting: UnsafeMutableRawPointer?, in context: ContextPointer
  ) throws(Fault) {
    try ends.begin(call, in: context)
    try call.clear(ends.parts.tensors, ends.parts.rows, in: context)
    var steps: FusedStep?
    try compute.run(in: context, kept: saved?.kept, needInputGradient: ends.dx != nil, &steps, isOnlyChunk: true)
    try ends.combine(compute.gradients.dRows, call, dRouting, in: context)
    ends.parts.tensors.pointee.finish(ends.parts.rows, context.kernels)
  }
}

/// Where a backward's tokens are, before and after their experts.
struct BackwardEnds {
  let parts: CallParts
  let dy: TokensIn
  let dx: TokensOut?
  let dWeights: UnsafeMutablePointer<Float>  // [T,K]

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, prepared: PreparedGroups, _ context: ContextPointer
  ) {
    parts = CallParts(&arena, call, c, size, tensors, x: x, prepared: prepared, runs: .ofBackward, context)
    self.dy = TokensIn(&arena, c, context: context, dy, tokens: call.tokens)
    self.dx = dx.map { TokensOut(&arena, c, context: context, $0, tokens: call.tokens) }
    dWeights = arena.take(Float.self, call.tokens, call.topK)
  }

  func begin(_ call: ExpertsCall, in context: ContextPointer) throws(Fault) {
    try parts.begin(call, in: context, backward: true)
    try dy.run(in: context)
    dWeights.update(repeating: 0, count: call.pairs)
  }

  /// `dRows` [rows, padded H]: the gradients of x for each row.
  func combine(
    _ dRows: UnsafePointer<Float>, _ call: ExpertsCall, _ dRouting: UnsafeMutableRawPointer?,
    in context: ContextPointer
  ) throws(Fault) {
    if let dx {
      try context.measure(.combine, backward: true) { () throws(Fault) in
        try CombineBackward(
          c: parts.c, kernels: context.kernels, chunk: 0..<call.tokens, dispatch: parts.dispatch, dRows: dRows,
          dx: dx.floats
        ).run(in: context)
      }
      try dx.run(in: context)
    }
    if let dRouting { call.routingType.fromFloats(dWeights, call.pairs, dRouting, 0, context.kernels) }
  }
}

extension ExpertsCall {
  /// Of gradients that are overwritten, those of experts without rows.
  func clear(
    _ tensors: UnsafePointer<CallTensors>, _ rows: GroupRows, in context: ContextPointer
  ) throws(Fault) {
    if overwrites { try context.run(group.experts, ClearGradients(tensors: tensors, rows: rows)) }
  }
}
