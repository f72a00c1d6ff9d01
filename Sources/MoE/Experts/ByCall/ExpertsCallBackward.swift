import CShims

extension ExpertsCall {
  /// The gradients of <dy, y>: dx [T,H], those of the routing weights [T,K], and those of weights that `gradients` names.
  /// Without `saved` the pre-activations are computed again.
  public func backward(
    _ x: UnsafeRawPointer, dy: UnsafeRawPointer, dx: UnsafeMutableRawPointer?, dRouting: UnsafeMutableRawPointer?,
    saved: CallerMemory?, in context: ContextPointer
  ) throws(Fault) {
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
  private let parts: CallParts
  private let dy: TokensIn
  private let dx: TokensOut?
  private let dWeights: UnsafeMutablePointer<Float>  // [T,K]
  private let compute: ExpertsBackward

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, dy: UnsafeRawPointer,
    dx: UnsafeMutableRawPointer?, prepared: PreparedGroups, saves: Bool, _ context: ContextPointer
  ) {
    parts = CallParts(&arena, call, c, size, tensors, x: x, prepared: prepared, differentiated: true, context)
    self.dy = TokensIn(&arena, c, context: context, dy, tokens: call.tokens)
    self.dx = dx.map { TokensOut(&arena, c, context: context, $0, tokens: call.tokens) }
    dWeights = arena.take(Float.self, call.tokens, call.topK)
    compute = ExpertsBackward(
      &arena, parts.work, context: context, dy: self.dy.floats, keeps: saves, dWeights: dWeights, oneExpert: nil,
      groups: GroupRange(0..<1))
  }

  @inline(never) func run(
    _ call: ExpertsCall, _ saved: SavedExperts?, _ dRouting: UnsafeMutableRawPointer?, in context: ContextPointer
  ) throws(Fault) {
    try parts.begin(call, in: context, backward: true)
    try dy.run(in: context)
    dWeights.update(repeating: 0, count: call.pairs)
    if call.overwrites {
      try context.run(
        call.group.experts, ClearGradients(tensors: UnsafePointer(parts.tensors), rows: parts.rows))
    }
    var steps: FusedStep?
    try compute.run(in: context, kept: saved?.kept, needInputGradient: dx != nil, &steps, isOnlyChunk: true)
    if let dx {
      try context.measure(.combine, backward: true) { () throws(Fault) in
        try CombineBackward(
          c: parts.c, kernels: context.kernels, chunk: 0..<call.tokens, dispatch: parts.dispatch,
          dRows: compute.gradients.dRows, dx: dx.floats
        ).run(in: context)
      }
      try dx.run(in: context)
    }
    if let dRouting { call.routingType.fromFloats(dWeights, call.pairs, dRouting, 0, context.kernels) }
    parts.tensors.pointee.finish(parts.rows, context.kernels)
  }
}
