import CShims

extension ExpertsCall {
  /// y [T,H] and rows [T,K,H], which are what experts put out before it is weighted; either may be nil. `saved`: where
  /// what backward wants goes.
  public func forward(
    _ x: UnsafeRawPointer, y: UnsafeMutableRawPointer?, rows: UnsafeMutableRawPointer?, saved: CallerMemory?,
    in context: ContextPointer
  ) throws(Fault) {
    if let spread { return try forward(x, y: y, rows: rows, saved: saved, over: spread, in: context) }
    try withConfiguration { (c) throws(Fault) in
      let size = chunk()
      let packed = try packed(c, differentiated: saved != nil, in: context)
      let kept = try saved.map { (memory) throws(Fault) in
        try SavedExperts(self, c, size, lent: memory, in: context)
      }
      try requireWithinLimit(c, size, saves: saved != nil, in: context)
      var tensors = CallTensors(self)
      try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
        func layout(_ arena: inout Arena) -> ForwardOfCall {
          ForwardOfCall(
            &arena, self, c, size, tensors, x: x, y: y, rows: rows, prepared: packed, saves: saved != nil, context)
        }
        try context.withScratch(layout) { (stages) throws(Fault) in try stages.run(self, kept, in: context) }
      }
    }
  }

  /// The packed weights of the call; none where it has none.
  func packed(
    _ c: Configuration, differentiated: Bool, in context: ContextPointer
  ) throws(Fault) -> PreparedGroups {
    guard let prepared else { return PreparedGroups(c) }
    if !prepared.pointee.form.isRead(in: context) {
      throw .badState(
        "prepared: the products of this context are not libmoe's own (MOE_MATMUL_NATIVE) and do not read packed weights: pass NULL"
      )
    }
    let groups = prepared.groups(c)
    if differentiated && !isFrozen, let form = groups.changedValues {
      throw .badState(
        "prepared: weights packed as \(form.constant) in place of \(group.weights.format.constant) are for forward alone; save nothing, or prepare their own type"
      )
    }
    return groups
  }
}

/// Made of more than ten parameters: the arena measures by them, and each is kept by the stage alone that it is for.
struct ForwardOfCall {
  private let ends: ForwardEnds
  private let compute: ExpertsForward

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, y: UnsafeMutableRawPointer?,
    rows: UnsafeMutableRawPointer?, prepared: PreparedGroups, saves: Bool, _ context: ContextPointer
  ) {
    ends = ForwardEnds(
      &arena, call, c, size, tensors, x: x, y: y, rows: rows, prepared: prepared, saves: saves, context)
    compute = ExpertsForward(
      &arena, ends.parts.work, context: context, offload: nil, keeps: saves, groups: GroupRange(0..<1))
  }

  @inline(never) func run(_ call: ExpertsCall, _ saved: SavedExperts?, in context: ContextPointer) throws(Fault) {
    try ends.parts.begin(call, in: context, backward: false)
    try compute.run(in: context, kept: saved?.kept)
    try ends.combine(compute.outputs, in: context)
    saved?.seal(ends.parts.rows, call.group)
  }
}

/// Where a forward's tokens are, before and after their experts. Its parameters are those of ForwardOfCall.
struct ForwardEnds {
  let parts: CallParts
  private let y: TokensOut?
  private let rows: UnsafeMutableRawPointer?
  private let type: ElementType

  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, y: UnsafeMutableRawPointer?,
    rows: UnsafeMutableRawPointer?, prepared: PreparedGroups, saves: Bool, _ context: ContextPointer
  ) {
    parts = CallParts(
      &arena, call, c, size, tensors, x: x, prepared: prepared, runs: saves ? .ofForward : .none, context)
    self.y = y.map { TokensOut(&arena, c, context: context, $0, tokens: call.tokens) }
    self.rows = rows
    type = call.tokenType
  }

  /// `outputs` [rows, padded H]: what the experts put out for each row.
  func combine(_ outputs: UnsafePointer<Float>, in context: ContextPointer) throws(Fault) {
    try context.measure(.combine) { () throws(Fault) in
      if let rows {
        try RowsOut(parts: parts, type: type, outputs: outputs, rows: rows, kernels: context.kernels).run(in: context)
      }
      guard let y else { return }
      try CombineForward(
        c: parts.c, kernels: context.kernels, routing: parts.routing, chunk: 0..<parts.routing.tokens,
        dispatch: parts.dispatch, outputs: outputs, bias: nil, y: y.floats
      ).run(in: context)
    }
    try y?.run(in: context)
  }
}

/// What experts put out, by token and choice.
private struct RowsOut: Job {
  let parts: CallParts
  let type: ElementType
  let outputs: UnsafePointer<Float>  // [rows, padded H]
  let rows: UnsafeMutableRawPointer  // [T,K,H]
  let kernels: UnsafePointer<moei_kernels>

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: parts.routing.tokens), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, slots) = (parts.c.hidden, parts.routing.slots)
    for t in MoE.rows(ofBlock: block, in: parts.routing.tokens) {
      for pair in t * slots..<(t + 1) * slots {
        let row = parts.dispatch.rowOfPair[pair]
        if row == Dispatch.noRow {
          (rows + type.bytes(pair * h)).initializeMemory(as: UInt8.self, repeating: 0, count: type.bytes(h))
        } else {
          type.fromFloats(outputs + Int(row) * padded(h), h, rows, pair * h, kernels)
        }
      }
    }
  }
}
