import CMoE
import MoE

@implementation @_cdecl("moe_attention_config_init")
public func moe_attention_config_init(_ config: UnsafeMutablePointer<moe_attention_config>?, _ struct_size: Int) {
  initialise(config, struct_size, moe_attention_config())
}

@implementation @_cdecl("moe_attention_forward")
public func moe_attention_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_attention_config>?, _ query: UnsafePointer<Float>?,
  _ key: UnsafePointer<Float>?, _ value: UnsafePointer<Float>?, _ output: UnsafeMutablePointer<Float>?,
  _ log_sums: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let call = try attentionCall(try read(config, "config"))
    let query = try Tokens(query, "query", call.ofQueries(call.queryStride))
    let key = try Tokens(key, "key", call.ofKeys(call.keyStride))
    let value = try Tokens(value, "value", call.ofKeys(call.valueStride))
    let output = try Tokens(output, "output", call.ofQueries(call.outputStride))
    let log_sums = try optional(log_sums, "log_sums")
    var operands = Operands()
    try operands.reads(config, 1, "config")
    try operands.reads(call.masks, call.sequences)
    try operands.reads(query)
    try operands.reads(key)
    try operands.reads(value)
    try operands.writes(output)
    try operands.writes(log_sums, call.sums, "log_sums")
    let arrays = AttentionArrays(query: query.start, key: key.start, value: value.start, output: output.start)
    try AttentionForward.run(call, arrays, logSums: log_sums, in: context)
  }
}

@implementation @_cdecl("moe_attention_backward")
public func moe_attention_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_attention_config>?, _ query: UnsafePointer<Float>?,
  _ key: UnsafePointer<Float>?, _ value: UnsafePointer<Float>?, _ output: UnsafePointer<Float>?,
  _ log_sums: UnsafePointer<Float>?, _ doutput: UnsafePointer<Float>?, _ dquery: UnsafeMutablePointer<Float>?,
  _ dkey: UnsafeMutablePointer<Float>?, _ dvalue: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let call = try attentionCall(try read(config, "config"))
    let query = try Tokens(query, "query", call.ofQueries(call.queryStride))
    let key = try Tokens(key, "key", call.ofKeys(call.keyStride))
    let value = try Tokens(value, "value", call.ofKeys(call.valueStride))
    let output = try Tokens(output, "output", call.ofQueries(call.outputStride))
    let doutput = try Tokens(doutput, "doutput", call.ofQueries(call.outputStride))
    let log_sums = try required(log_sums, "log_sums")
    let dquery = try Tokens(dquery, "dquery", call.ofQueries(call.queryStride))
    let dkey = try Tokens(dkey, "dkey", call.ofKeys(call.keyStride))
    let dvalue = try Tokens(dvalue, "dvalue", call.ofKeys(call.valueStride))
    var operands = Operands()
    try operands.reads(config, 1, "config")
    try operands.reads(call.masks, call.sequences)
    try operands.reads(query)
    try operands.reads(key)
    try operands.reads(value)
    try operands.reads(output)
    try operands.reads(doutput)
    try operands.reads(log_sums, call.sums, "log_sums")
    try operands.writes(dquery)
    try operands.writes(dkey)
    try operands.writes(dvalue)
    let arrays = AttentionArrays(query: query.start, key: key.start, value: value.start, output: output.start)
    let gradients = AttentionGradients(
      arrays, logSums: log_sums, doutput: doutput.start, dquery: dquery.start, dkey: dkey.start, dvalue: dvalue.start)
    try AttentionBackward.run(call, gradients, in: context)
  }
}

@implementation @_cdecl("moe_rotate")
public func moe_rotate(
  _ context: OpaquePointer?, _ x: UnsafeMutablePointer<Float>?, _ n_tokens: Int64, _ n_heads: Int64,
  _ head_size: Int64, _ stride: Int64, _ positions: UnsafePointer<Int64>?, _ sequence_length: Int64,
  _ first_position: Int64, _ theta: Double, _ inverse: Int32
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try require(Int(n_tokens), "n_tokens", from: 0, to: mostTokens)
    try require(Int(n_heads), "n_heads", from: 1, to: mostHeads)
    try require(Int(head_size), "head_size", from: 2, to: mostHeadSize)
    if head_size % 2 != 0 { throw .invalid("head_size = \(Int(head_size)) is odd") }
    let (tokens, width) = (Int(n_tokens), Int(n_heads * head_size))
    let stride = try stride == 0 ? width : rowStride(Int(stride), "stride", width)
    let bytes = try product(4, try product(stride, tokens, "the size of x"), "the size of x")
    let x = try array(x, count: tokens, "x")
    let positions = try optional(UnsafeMutablePointer(mutating: positions), "positions")
    let lastPosition = Int(Int32.max)
    var operands = Operands()
    try operands.reads(UnsafePointer(positions), tokens, "positions")
    try operands.writes(x, bytes: UInt(bytes), "x")
    if let positions {
      for t in 0..<tokens where positions[t] < 0 || positions[t] > lastPosition {
        throw .invalid("positions[\(t)] = \(Int(positions[t])) is not in 0 ... \(lastPosition)")
      }
    } else {
      try require(Int(sequence_length), "sequence_length", from: 1, to: lastPosition)
      try require(Int(first_position), "first_position", from: 0, to: lastPosition)
      // The last one that some token has.
      let last = Int(first_position) + min(Int(sequence_length), max(1, tokens)) - 1
      if last > lastPosition {
        throw .invalid(
          "first_position = \(Int(first_position)) leads to position \(last), which exceeds \(lastPosition)")
      }
    }
    try require(theta, "theta", atLeast: 1)
    let rotary = Rotary(
      heads: Int(n_heads), headSize: Int(head_size), stride: stride, positions: UnsafePointer(positions),
      sequenceLength: Int(sequence_length), firstPosition: Int(first_position),
      inverse: try flag(inverse, "inverse"))
    try rotary.run(x, tokens: tokens, theta: theta, in: context)
  }
}

// MARK: the config

private let mostTokens = Int(Int32.max)
private let mostHeads = 1 << 20
private let mostHeadSize = 1 << 20

private func attentionCall(_ config: moe_attention_config) throws(Fault) -> AttentionCall {
  try require(Int(config.n_sequences), "n_sequences", from: 1, to: mostTokens)
  try require(Int(config.n_queries), "n_queries", from: 1, to: mostTokens)
  try require(Int(config.n_keys), "n_keys", from: 0, to: mostTokens)
  try require(Int(config.n_heads), "n_heads", from: 1, to: mostHeads)
  try require(Int(config.n_kv_heads), "n_kv_heads", from: 0, to: Int(config.n_heads))
  try require(Int(config.head_size), "head_size", from: 1, to: mostHeadSize)
  let keyHeads = Int(config.n_kv_heads == 0 ? config.n_heads : config.n_kv_heads)
  if Int(config.n_heads) % keyHeads != 0 {
    throw .invalid("n_kv_heads = \(keyHeads) does not divide n_heads = \(Int(config.n_heads))")
  }
  var call = AttentionCall(
    sequences: Int(config.n_sequences), queries: Int(config.n_queries),
    keys: Int(config.n_keys == 0 ? config.n_queries : config.n_keys), heads: Int(config.n_heads), keyHeads: keyHeads,
    headSize: Int(config.head_size))
  let (queryWidth, keyWidth) = (call.heads * call.headSize, call.keyHeads * call.headSize)
  if config.query_stride != 0 {
    call.queryStride = try rowStride(Int(config.query_stride), "query_stride", queryWidth)
  }
  if config.key_stride != 0 { call.keyStride = try rowStride(Int(config.key_stride), "key_stride", keyWidth) }
  if config.value_stride != 0 { call.valueStride = try rowStride(Int(config.value_stride), "value_stride", keyWidth) }
  if config.output_stride != 0 {
    call.outputStride = try rowStride(Int(config.output_stride), "output_stride", queryWidth)
  }
  if !Float(config.scale).isFinite { throw .invalid("scale = \(config.scale) is not finite") }
  if config.scale != 0 { call.scale = Float(config.scale) }
  try requireShare(Double(config.dropout), "dropout")
  if config.step >> 56 != 0 { throw .invalid("step = \(config.step) is not below 2^56") }
  (call.dropout, call.seed, call.step) = (config.dropout, config.seed, config.step)
  // Of the arrays, and of what is counted over them.
  _ = try product(try product(call.sequences, call.queries, "B * S"), 4 * call.heads, "the size of log_sums")
  _ = try product(4 * call.queries, call.keys, "the size of added_mask")
  call.masks.causal = try flag(config.causal, "causal")
  call.masks.mask = UnsafePointer(try optional(UnsafeMutablePointer(mutating: config.mask), "mask"))
  call.masks.added = UnsafePointer(try optional(UnsafeMutablePointer(mutating: config.added_mask), "added_mask"))
  call.masks.valid = UnsafePointer(try optional(UnsafeMutablePointer(mutating: config.valid_mask), "valid_mask"))
  return call
}

private func rowStride(_ stride: Int, _ name: StaticString, _ width: Int) throws(Fault) -> Int {
  if stride < width { throw .invalid("\(name) = \(stride) is below the \(width) floats of a token") }
  return stride
}

// MARK: the arrays

/// Rows of `width` floats, one for each token, `stride` floats apart.
private struct Tokens {
  let start: UnsafeMutablePointer<Float>
  private let name: StaticString
  private let rows: AttentionCall.Rows
  private let bytes: Int  // from the first row's begin to the last row's end

  init(_ start: UnsafePointer<Float>?, _ name: StaticString, _ rows: AttentionCall.Rows) throws(Fault) {
    self.start = UnsafeMutablePointer(mutating: try required(start, name))
    (self.name, self.rows) = (name, rows)
    let floats = try product(rows.stride, rows.count, name)
    bytes = try product(4, floats, name) - 4 * (rows.stride - rows.width)
  }

  init(_ start: UnsafeMutablePointer<Float>?, _ name: StaticString, _ rows: AttentionCall.Rows) throws(Fault) {
    try self.init(UnsafePointer(start), name, rows)
  }

  func operand(writes: Bool) -> Operand {
    Operand(start, bytes: UInt(bytes), cText(name), writes: writes).inRows(
      of: byteCount(rows.width, 4), stride: byteCount(rows.stride, 4))
  }
}

extension AttentionCall {
  fileprivate typealias Rows = (count: Int, width: Int, stride: Int)

  fileprivate func ofQueries(_ stride: Int) -> Rows { (sequences * queries, heads * headSize, stride) }
  fileprivate func ofKeys(_ stride: Int) -> Rows { (sequences * keys, keyHeads * headSize, stride) }
  fileprivate var sums: Int { sequences * heads * queries }
}

extension Operands {
  fileprivate mutating func reads(_ tokens: Tokens) throws(Fault) { try add(tokens.operand(writes: false)) }
  fileprivate mutating func writes(_ tokens: Tokens) throws(Fault) { try add(tokens.operand(writes: true)) }

  fileprivate mutating func reads(_ masks: AttentionMasks, _ sequences: Int) throws(Fault) {
    let pairs = masks.queries * masks.keys
    try reads(masks.mask, pairs, "mask")
    try reads(masks.added, pairs, "added_mask")
    try reads(masks.valid, sequences * masks.keys, "valid_mask")
  }
}
