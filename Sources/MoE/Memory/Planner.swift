/// Memory of a call, in bytes, before anything is allocated.
public struct MemoryPlan {
  public let tokens: Int  // T
  public let forwardScratch: Int
  public let backwardScratch: Int  // 0 without a tape
  public let tape: Int
  public let chunkTokens: Int
  public let keepsActivations: Bool

  /// What exists at once at most.
  public let total: Int

  init(_ plan: Plan, forward: Int, backward: Int, tape: Int, keepsActivations: Bool) throws(Fault) {
    try self.init(
      tokens: plan.tokens, chunkTokens: plan.chunk.tokens, forward: forward, backward: backward, tape: tape,
      keepsActivations: keepsActivations)
  }

  /// Without chunks all tokens are computed at once.
  init(
    tokens: Int, chunkTokens: Int? = nil, forward: Int, backward: Int, tape: Int, keepsActivations: Bool
  ) throws(Fault) {
    let (total, overflow) = tape.addingReportingOverflow(max(forward, backward))
    if overflow { throw .outOfMemory(bytes: .max) }
    (self.tokens, self.chunkTokens) = (tokens, chunkTokens ?? tokens)
    (forwardScratch, backwardScratch, self.tape, self.total) = (forward, backward, tape, total)
    self.keepsActivations = keepsActivations
  }

  /// Of calls of two layers that are alike but for their sizes: what is enough for either.
  func covering(_ other: MemoryPlan) throws(Fault) -> MemoryPlan {
    try MemoryPlan(
      tokens: tokens, chunkTokens: chunkTokens, forward: max(forwardScratch, other.forwardScratch),
      backward: max(backwardScratch, other.backwardScratch), tape: max(tape, other.tape),
      keepsActivations: keepsActivations)
  }
}

extension Layer {
  /// The memory that a forward will take, and a backward after it.
  public func memoryPlan(_ call: Call, taped: Bool) throws(Fault) -> MemoryPlan {
    try memory(try plan(call, taped: taped), call, taped: taped)
  }

  /// The fastest way that keeps to the limit: everything kept and all tokens at once; then in chunks; then, where these
  /// would be small, with activations computed again.
  func plan(_ call: Call, taped: Bool) throws(Fault) -> Plan {
    let c = configuration
    let asked = call.chunkTokens.map { blocks(of: $0) * rowsPerBlock }
    let whole = min(max(call.tokens, 1), asked ?? .max)
    guard let limit = call.limit ?? context.memoryLimit else {
      let lean = call.tapePolicy == .lean
      return Plan(c, call, policy: lean ? .lean : .full, chunkTokens: asked ?? (lean ? Self.leanChunk : whole))
    }
    var best: Plan?
    var least = Int.max
    // Without a tape there is nothing to keep, and no policy.
    if !taped || call.tapePolicy != .lean {
      best = try fewestChunks(.full, of: whole, limit, call, taped: taped, &least)
    }
    if taped && call.tapePolicy != .full && (best?.chunk.tokens ?? 0) < min(whole, Self.smallChunk) {
      best = try fewestChunks(.lean, of: whole, limit, call, taped: taped, &least) ?? best
    }
    if let best { return best }
    throw .invalid("memory_limit = \(limit) bytes, but \(call.tokens) tokens need at least \(least)")
  }

  /// Chunks that activations are computed again for, where no limit says how large they may be.
  static var leanChunk: Int { 4096 }
  /// Below this experts get too few tokens at once to be fast.
  private static var smallChunk: Int { 2048 }

  /// The fewest chunks, of so many tokens at most, with which a call keeps to the limit, as even as whole blocks let them be. More chunks do not
  /// always need less, so every number of them is tried. Lowers `least` to what the smallest of them need.
  private func fewestChunks(
    _ policy: Plan.TapePolicy, of largest: Int, _ limit: Int, _ call: Call, taped: Bool, _ least: inout Int
  ) throws(Fault) -> Plan? {
    let all = max(blocks(of: call.tokens), 1)
    var size = min(all, blocks(of: largest))  // blocks of a chunk
    while true {
      let plan = Plan(configuration, call, policy: policy, chunkTokens: size * rowsPerBlock)
      let needed = try bytes(plan, call, taped: taped)
      if needed <= limit { return plan }
      least = min(least, needed)
      if size == 1 { return nil }
      let chunks = (all + size - 2) / (size - 1)  // that smaller ones make
      size = (all + chunks - 1) / chunks
    }
  }

  /// What a call that is divided in this way takes; the largest number where no address space holds it.
  private func bytes(_ plan: Plan, _ call: Call, taped: Bool) throws(Fault) -> Int {
    do throws(Fault) {
      return try memory(plan, call, taped: taped).total
    } catch {
      if error.kind == .outOfMemory { return .max }
      throw error
    }
  }

  /// The memory of a call that is divided in this way.
  @inline(never) func memory(_ plan: Plan, _ call: Call, taped: Bool) throws(Fault) -> MemoryPlan {
    let c = configuration
    let nowhere = UnsafeMutableRawPointer(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    var (tape, backward) = (Arena(), Arena())
    var contents: TapeContents?
    if taped {
      contents = TapeContents(
        &tape, c, call, plan, context: context, activeExperts: c.activeExperts(call, parameters),
        frozen: prepared.frozenForms)
    }
    let forward = try Arena.bytes { forwardStages(&$0, nowhere, call, plan, y: nowhere, taped: contents) }
    if let contents, call.tokens > 0 || ranks != nil {
      backward.skip(
        try Arena.bytes {
          backwardStages(&$0, contents, plan, x: nowhere, dy: nowhere, dx: nowhere, BackwardCall())
        })
    } else if contents != nil && !c.keepsExpertGradients {
      _ = FusedScratch(&backward, c)
    }
    return try MemoryPlan(
      plan, forward: forward, backward: try backward.total(), tape: try tape.total(),
      keepsActivations: taped && plan.policy == .full)
  }
}
