import CMoE
import MoE

// Generation: keys and values of the tokens so far.

@implementation @_cdecl("moe_cache_create")
public func moe_cache_create(
  _ model: OpaquePointer?, _ n_sequences: Int64, _ max_length: Int64, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let out = try required(out, "out")
    try requireCached(model, sequences: Int(n_sequences), capacity: Int(max_length))
    out.pointee = OpaquePointer(
      try CachePointer.create(for: model, sequences: Int(n_sequences), capacity: Int(max_length)))
  }
}

func requireWriter(_ model: ModelPointer) throws(Fault) {
  let c = model.pointee.configuration
  if !c.causal || c.vocabulary == 0 { throw .invalid("model: a cache is for causal models with a vocabulary") }
}

/// What a cache of the model may be.
func requireCached(_ model: ModelPointer, sequences: Int, capacity: Int) throws(Fault) {
  try requireWriter(model)
  let (c, most) = (model.pointee.configuration, Int(Int32.max))
  try require(sequences, "n_sequences", from: 1, to: most)
  try require(capacity, "max_length", from: 1, to: c.positions > 0 ? c.positions : most)
  try require(sequences * capacity, "n_sequences * max_length", from: 1, to: most)
}

@implementation @_cdecl("moe_cache_size")
public func moe_cache_size(
  _ cache: OpaquePointer?, _ n_sequences: UnsafeMutablePointer<Int64>?, _ max_length: UnsafeMutablePointer<Int64>?,
  _ length: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let cache = try handle(cache, "cache", as: Cache.self)
    try optional(n_sequences, "n_sequences")?.pointee = Int64(cache.pointee.sequences)
    try optional(max_length, "max_length")?.pointee = Int64(cache.pointee.capacity)
    try optional(length, "length")?.pointee = Int64(cache.pointee.length)
  }
}

@implementation @_cdecl("moe_cache_save")
public func moe_cache_save(_ cache: OpaquePointer?, _ path: UnsafePointer<CChar>?) -> moe_status {
  attempt { () throws(Fault) in
    let cache = try handle(cache, "cache", as: Cache.self)
    try cache.pointee.save(to: try required(path, "path"))
  }
}

@implementation @_cdecl("moe_cache_load")
public func moe_cache_load(
  _ model: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ max_length: Int64,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let path = try required(path, "path")
    let out = try required(out, "out")
    try require(Int(max_length), "max_length", from: 0, to: Int(Int32.max))
    let cache = try CachePointer.load(
      for: model, from: path, capacity: max_length == 0 ? nil : Int(max_length),
      check: { (sequences, capacity) throws(Fault) in
        try requireCached(model, sequences: sequences, capacity: capacity)
      })
    out.pointee = OpaquePointer(cache)
  }
}

@implementation @_cdecl("moe_cache_free")
public func moe_cache_free(_ cache: OpaquePointer?) {
  guard let cache else { return }
  CachePointer(cache).free()
}

@implementation @_cdecl("moe_cache_truncate")
public func moe_cache_truncate(_ cache: OpaquePointer?, _ length: Int64) -> moe_status {
  attempt { () throws(Fault) in
    let cache = try handle(cache, "cache", as: Cache.self)
    if length < 0 || length > cache.pointee.length {
      throw .invalid("length = \(Int(length)) is not from 0 to the \(cache.pointee.length) tokens in the cache")
    }
    cache.truncate(Int(length))
  }
}

@implementation @_cdecl("moe_model_read")
public func moe_model_read(
  _ model: OpaquePointer?, _ cache: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ n: Int64,
  _ logits: UnsafeMutablePointer<Float>?
) -> moe_status {
  moe_model_read_with(model, cache, tokens, n, nil, logits)
}

@implementation @_cdecl("moe_model_read_with")
public func moe_model_read_with(
  _ model: OpaquePointer?, _ cache: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ n: Int64,
  _ options: UnsafePointer<moe_read_options>?, _ logits: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let cache = try handle(cache, "cache", as: Cache.self)
    if !model.pointee.owns(cache) { throw .badState("cache belongs to another model") }
    try model.pointee.requireSamePrecision(cache)
    let (length, capacity) = (cache.pointee.length, cache.pointee.capacity)
    if n < 1 || n > capacity - length {
      throw .invalid("n = \(Int(n)) tokens behind \(length) in a cache with max_length = \(capacity)")
    }
    let (c, count) = (model.pointee.configuration, cache.pointee.sequences * Int(n))
    try requireFew(count, model, training: false)
    _ = try product(cache.pointee.sequences * c.vocabulary, 4, "the size of the logits")
    var operands = Operands()
    let tokens = try operands.reads(tokens, count, "tokens")
    let logits = try operands.writes(logits, cache.pointee.sequences * c.vocabulary, "logits")
    try requireTokens(tokens, count, "tokens", vocabulary: c.vocabulary)
    var input = ModelInput(sequences: cache.pointee.sequences, length: Int(n))
    input.ids = tokens
    if options != nil {
      let given = try operands.copies(options, "options")
      input.validMask = try operands.reads(optional: given.valid_mask, count, "options.valid_mask")
      try input.take(positions: given.positions, c, "options.positions", &operands)
      try requireBits(input.validMask, count, "options.valid_mask")
      try input.requirePositions(c, "options")
    }
    try operands.requireApart(fromParametersOf: model)
    try model.pointee.read(cache, input, logits: logits)
  }
}
