import CMoE
import MoE

extension Call {
  /// What the caller brings to a forward beside x, checked against the layer, and its scratch.
  init(
    _ options: UnsafePointer<moe_forward_options>?, tokens: Int, _ c: Configuration, _ operands: inout Operands
  ) throws(Fault) {
    try self.init(planning: options, tokens: tokens, c, &operands)
    if c.router.readsTokenIds && tokenIds == nil && givenIndices == nil && tokens > 0 {
      throw .invalid("options.token_ids is NULL, but router = MOE_ROUTER_HASH")
    }
    if c.router.needsChoices && (givenIndices == nil || givenWeights == nil) && tokens > 0 {
      throw .invalid("options.expert_indices and expert_weights are needed: router = MOE_ROUTER_EXTERNAL")
    }
    try requireFinite(given.noise, tokens, c.experts, "options.noise")
    try requireFinite(given.jitter, tokens, c.hidden, "options.jitter")
    try requireFinite(given.second, tokens, 1, "options.second")
    if c.exploration.noise != .none && training && tokens > Int(UInt32.max) / c.experts {
      throw .invalid("n_tokens = \(tokens) times n_experts = \(c.experts) exceeds 2^32 numbers of noise")
    }
  }

  /// A call that is planned and not made: what it needs may be missing.
  init(
    planning options: UnsafePointer<moe_forward_options>?, tokens: Int, _ c: Configuration,
    _ operands: inout Operands
  ) throws(Fault) {
    self.init(tokens: tokens)
    if options != nil {
      let options = try operands.copies(options, "options")
      training = options.training == 1
      step = options.step
      validMask = try mask(options.valid_mask, "options.valid_mask", &operands)
      lossMask = try mask(options.loss_mask, "options.loss_mask", &operands)
      try takeNumbers(options, c, &operands)
      try takeTokenIds(options, c, &operands)
      try takeSequences(options, c, &operands)
      try takeChoice(options, c, &operands)
      try takeMemory(options, &operands)
    }
  }

  private mutating func takeMemory(_ options: moe_forward_options, _ operands: inout Operands) throws(Fault) {
    limit = MoEABI.limit(options.memory_limit)
    if options.chunk_tokens > 0 { chunkTokens = Int(options.chunk_tokens) }
    tapePolicy = Plan.TapePolicy(rawValue: options.tape_policy)
    scratch = try lent(options.scratch, options.scratch_size, "options.scratch")
    try operands.writes(scratch, "options.scratch")
  }

  private func mask(
    _ mask: UnsafePointer<UInt8>?, _ name: StaticString, _ operands: inout Operands
  ) throws(Fault) -> UnsafePointer<UInt8>? {
    guard let mask = try operands.reads(optional: mask, tokens, name), tokens > 0 else { return nil }
    try requireBits(mask, tokens, name)
    return mask
  }

  /// The caller's numbers in place of drawn ones.
  private mutating func takeNumbers(
    _ options: moe_forward_options, _ c: Configuration, _ operands: inout Operands
  ) throws(Fault) {
    func take(
      _ numbers: UnsafePointer<Float>?, _ width: Int, _ name: StaticString, _ missing: StaticString?
    ) throws(Fault) -> UnsafePointer<Float>? {
      guard numbers != nil else { return nil }
      if let missing { throw .invalid("\(name) is not NULL, but \(missing)") }
      if !training { throw .invalid("\(name) is not NULL, but training = 0, where nothing is drawn") }
      return tokens == 0 ? nil : try operands.reads(numbers, tokens * width, name)
    }
    given.noise = try take(
      options.noise, c.experts, "options.noise", c.hasGate ? nil : "the router has no gate and so no logits")
    given.jitter = try take(
      options.jitter, c.hidden, "options.jitter", c.exploration.jitter > 0 ? nil : "the layer's jitter = 0")
    given.second = try take(
      options.second, 1, "options.second", c.exploration.randomSecond ? nil : "the layer's random_second = 0")
  }

  private mutating func takeTokenIds(
    _ options: moe_forward_options, _ c: Configuration, _ operands: inout Operands
  ) throws(Fault) {
    guard let ids = try operands.reads(optional: options.token_ids, tokens, "options.token_ids"), tokens > 0
    else { return }
    if !c.router.readsTokenIds { throw .invalid("options.token_ids is not NULL, but router is not MOE_ROUTER_HASH") }
    for t in 0..<tokens where ids[t] < 0 || ids[t] >= c.vocabulary {
      if !isValid(t) { continue }  // padding has no id
      throw .invalid("options.token_ids[\(t)] = \(Int(ids[t])) is not one of vocabulary_size = \(c.vocabulary)")
    }
    tokenIds = ids
  }

  private mutating func takeSequences(
    _ options: moe_forward_options, _ c: Configuration, _ operands: inout Operands
  ) throws(Fault) {
    hasSequences = options.sequence_length > 0
    if options.sequence_length > 0 && tokens > 0 {
      sequenceLength = Int(options.sequence_length)
      if tokens % sequenceLength != 0 {
        throw .invalid("options.sequence_length = \(sequenceLength) does not divide n_tokens = \(tokens)")
      }
    }
    guard let counts = try operands.reads(optional: options.global_counts, c.experts, "options.global_counts")
    else { return }
    for e in 0..<c.experts where counts[e] < 0 {
      throw .invalid("options.global_counts[\(e)] = \(Int(counts[e])) is negative")
    }
    globalCounts = counts
  }

  private mutating func takeChoice(
    _ options: moe_forward_options, _ c: Configuration, _ operands: inout Operands
  ) throws(Fault) {
    if let record = options.record { self.record = try handle(record, "options.record", as: RoutingRecord.self) }
    if let replay = options.replay {
      if options.expert_indices != nil { throw .invalid("options.replay and expert_indices: one of them is NULL") }
      let record = try handle(replay, "options.replay", as: RoutingRecord.self).pointee
      guard record.tokens == tokens, record.choices == c.choices, record.experts == c.experts else {
        throw .invalid(
          "options.replay holds \(record.tokens) tokens, \(record.choices) choices and \(record.experts) experts; this call has \(tokens), \(c.choices) and \(c.experts)"
        )
      }
      givenIndices = record.indices
    } else if options.expert_indices != nil && tokens > 0 {
      if !c.router.takesChoices {
        throw .invalid("options.expert_indices is not NULL, but router = MOE_ROUTER_EXPERT_CHOICE: take a replay")
      }
      let indices = try operands.reads(options.expert_indices, tokens * c.choices, "options.expert_indices")
      for pair in 0..<tokens * c.choices where indices[pair] < -1 || indices[pair] >= c.experts {
        throw .invalid(
          "options.expert_indices: \(Int(indices[pair])) of token \(pair / c.choices) is neither -1 nor one of n_experts = \(c.experts)"
        )
      }
      givenIndices = indices
    }
    if options.expert_weights != nil && tokens > 0 {
      if givenIndices == nil { throw .invalid("options.expert_weights is not NULL, but expert_indices is") }
      if !c.router.takesChoices {
        throw .invalid("options.expert_weights is not NULL, but router = MOE_ROUTER_EXPERT_CHOICE")
      }
      let weights = try operands.reads(options.expert_weights, tokens * c.choices, "options.expert_weights")
      for pair in 0..<tokens * c.choices where !weights[pair].isFinite {
        throw Fault(.notFinite, "options.expert_weights: that of token \(pair / c.choices) is not finite")
      }
      givenWeights = weights
    }
  }
}

private func requireFinite(
  _ numbers: UnsafePointer<Float>?, _ tokens: Int, _ width: Int, _ name: StaticString
) throws(Fault) {
  guard let numbers else { return }
  // As many as the layer's own arrays have, which the memory's plan counts; and each is read.
  let count = try product(tokens, width, name)
  for i in 0..<count where !numbers[i].isFinite {
    throw Fault(.notFinite, "\(name): a number of token \(i / width) is not finite")
  }
}

/// Memory of the caller's, or nil.
func lent(_ memory: UnsafeMutableRawPointer?, _ size: Int, _ name: StaticString) throws(Fault) -> CallerMemory? {
  guard let memory else {
    if size != 0 { throw .invalid("\(name) is NULL, but its size is \(size)") }
    return nil
  }
  if Int(bitPattern: memory) % 64 != 0 { throw .invalid("\(name) is not aligned to 64 bytes") }
  return CallerMemory(memory, bytes: Int(clamping: UInt(bitPattern: size)))
}
