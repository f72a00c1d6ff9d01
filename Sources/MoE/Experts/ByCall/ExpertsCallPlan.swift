// The memory of a call before it is made.

extension ExpertsCall {
  /// Over ranks all of them ask together, and save where one of them does.
  public func memoryPlan(saves: Bool, in context: ContextPointer) throws(Fault) -> MemoryPlan {
    if let spread { return try memoryPlan(saves: saves, over: spread, in: context) }
    var found: MemoryPlan?
    try withConfiguration { (c) throws(Fault) in
      found = try memory(c, chunk(), saves: saves, in: context)
    }
    return found!
  }

  private func memory(
    _ c: Configuration, _ size: ChunkSize, saves: Bool, in context: ContextPointer
  ) throws(Fault) -> MemoryPlan {
    let nowhere = UnsafeMutableRawPointer(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    var tensors = CallTensors(self)
    let packed = isFrozen ? prepared!.groups(c) : PreparedGroups(c)
    var (forward, backward) = (0, 0)
    try withUnsafeMutablePointer(to: &tensors) { (tensors) throws(Fault) in
      forward = try Arena.bytes {
        ForwardOfCall(
          &$0, self, c, size, tensors, x: nowhere, y: nowhere, rows: nil, prepared: packed, saves: saves, context)
      }
      backward = try Arena.bytes {
        BackwardOfCall(
          &$0, self, c, size, tensors, x: nowhere, dy: nowhere, dx: nowhere, prepared: packed, saves: saves, context)
      }
    }
    return try MemoryPlan(
      tokens: tokens, forward: forward, backward: backward,
      tape: saves ? try SavedExperts.bytes(self, c, size, in: context) : 0, keepsActivations: saves)
  }

  /// Such a call is not divided: what is too large for the context's limit is refused.
  func requireWithinLimit(
    _ c: Configuration, _ size: ChunkSize, saves: Bool, in context: ContextPointer
  ) throws(Fault) {
    guard let limit = context.memoryLimit else { return }
    let needed = try memory(c, size, saves: saves, in: context).total
    try require(needed, within: limit)
  }

  func require(_ needed: Int, within limit: Int) throws(Fault) {
    if needed > limit {
      throw .invalid(
        "memory_limit = \(limit) bytes, but n_tokens = \(tokens) need \(needed): make several calls of fewer tokens")
    }
  }
}
