import CMoE
import MoE

@implementation @_cdecl("moe_generate")
public func moe_generate(
  _ model: OpaquePointer?, _ options: UnsafePointer<moe_generation>?, _ prompts: UnsafePointer<Int32>?,
  _ offsets: UnsafePointer<Int64>?, _ n_sequences: Int64, _ tokens: UnsafeMutablePointer<Int32>?,
  _ counts: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try require(Int(n_sequences), "n_sequences", from: 1, to: Int(Int32.max))
    try requireWriter(model)
    var operands = Operands()
    let given = try operands.copies(options, "options")
    let vocabulary = model.pointee.configuration.vocabulary
    let prompts = try Prompts(prompts, offsets, Int(n_sequences), vocabulary: vocabulary, &operands)
    let how = try Generation(given, prompts, vocabulary: vocabulary, &operands)
    try requireFew(prompts.count * how.columns(of: prompts), model, training: false)
    let most = Int(given.max_new_tokens)
    // Before arrays of these sizes are compared with others.
    if given.cache == nil { try requireRoom(model, prompts, most) }
    let all = try product(prompts.count, most, "n_sequences * max_new_tokens")
    _ = try product(all, 4, "the size of tokens")
    _ = try product(prompts.count * vocabulary, 4, "the size of the logits")
    let result = GeneratedTokens(
      tokens: try operands.writes(tokens, all, "tokens"), counts: try operands.writes(counts, prompts.count, "counts"))
    try operands.requireApart(fromParametersOf: model)
    let own = given.cache == nil
    let cache =
      try own
      ? CachePointer.create(for: model, sequences: prompts.count, capacity: capacity(prompts, most))
      : room(given.cache, model, prompts, most)
    defer { if own { cache.free() } }
    try model.pointee.generate(prompts, how, cache: cache, into: result)
  }
}

/// The last token of each sequence is not read.
private func capacity(_ prompts: Prompts, _ most: Int) -> Int { prompts.longest + most - 1 }

/// In a cache of the call's own.
private func requireRoom(_ model: ModelPointer, _ prompts: Prompts, _ most: Int) throws(Fault) {
  let positions = model.pointee.configuration.positions
  if positions > 0 && capacity(prompts, most) > positions {
    throw .invalid(
      "a prompt of \(prompts.longest) tokens and options.max_new_tokens = \(most) exceed max_positions = \(positions)")
  }
  try requireCached(model, sequences: prompts.count, capacity: capacity(prompts, most))
}

/// The caller's cache, if it has room.
private func room(
  _ cache: OpaquePointer?, _ model: ModelPointer, _ prompts: Prompts, _ most: Int
) throws(Fault) -> CachePointer {
  let cache = try handle(cache, "options.cache", as: Cache.self)
  if !model.pointee.owns(cache) { throw .badState("options.cache belongs to another model") }
  try model.pointee.requireSamePrecision(cache)
  let (sequences, free) = (cache.pointee.sequences, cache.pointee.capacity - cache.pointee.length)
  if sequences != prompts.count {
    throw .invalid("n_sequences = \(prompts.count), but options.cache is one of \(sequences)")
  }
  if capacity(prompts, most) > free {
    throw .invalid(
      """
      a prompt of \(prompts.longest) tokens and options.max_new_tokens = \(most) need \(capacity(prompts, most)) places, \
      but options.cache has \(free) behind its \(cache.pointee.length) tokens: make one with a larger max_length
      """)
  }
  return cache
}

extension Prompts {
  fileprivate init(
    _ prompts: UnsafePointer<Int32>?, _ offsets: UnsafePointer<Int64>?, _ count: Int, vocabulary: Int,
    _ operands: inout Operands
  ) throws(Fault) {
    let offsets = try operands.reads(offsets, count + 1, "offsets")
    if offsets[0] != 0 { throw .invalid("offsets[0] = \(Int(offsets[0])) is not 0") }
    for b in 0..<count where offsets[b + 1] <= offsets[b] {
      throw .invalid(
        """
        offsets[\(b + 1)] = \(Int(offsets[b + 1])) is not above offsets[\(b)] = \(Int(offsets[b])): every prompt has one token \
        at least
        """)
    }
    let total = Int(offsets[count])
    try require(total, "the tokens of all prompts", from: 1, to: Int(Int32.max))
    let tokens = try operands.reads(prompts, total, "prompts")
    try requireTokens(tokens, total, "prompts", vocabulary: vocabulary)
    self.init(tokens: tokens, offsets: offsets, count: count)
  }
}

extension Generation {
  /// Of fields that have been checked each by itself.
  fileprivate init(
    _ given: moe_generation, _ prompts: Prompts, vocabulary: Int, _ operands: inout Operands
  ) throws(Fault) {
    var wanted = moe_sampling()
    wanted.top_p = 1
    if given.sampling != nil { wanted = try operands.copies(given.sampling, "sampling") }
    self.init(most: Int(given.max_new_tokens), sampling: try Sampling(wanted))
    history = try wanted.history(vocabulary: vocabulary, &operands)
    seeds = try operands.reads(optional: given.seeds, prompts.count, "options.seeds")
    let ends = try operands.reads(given.eos, Int(given.n_eos), "options.eos")
    try requireTokens(ends, Int(given.n_eos), "options.eos", vocabulary: vocabulary)
    eos = UnsafeBufferPointer(start: ends, count: Int(given.n_eos))
    if given.chunk_tokens > 0 { chunk = Int(given.chunk_tokens) }
    limit = MoEABI.limit(given.memory_limit)
    onToken = given.on_token
    user = given.user
  }
}
