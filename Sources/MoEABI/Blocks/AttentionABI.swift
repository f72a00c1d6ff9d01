import CMoE
import MoE

@implementation @_cdecl("moe_attention_forward")
public func moe_attention_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_attention_config>?, _ query: UnsafePointer<Float>?,
  _ key: UnsafePointer<Float>?, _ value: UnsafePointer<Float>?, _ output: UnsafeMutablePointer<Float>?,
  _ log_sums: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let call = try AttentionCall(try operands.copies(config, "config"), &operands)
    let arrays = AttentionArrays(
      query: try operands.reads(query, call.ofQueries, "query"), key: try operands.reads(key, call.ofKeys, "key"),
      value: try operands.reads(value, call.ofValues, "value"),
      output: try operands.writes(output, call.ofOutputs, "output"))
    let log_sums = try operands.writes(optional: log_sums, call.sums, "log_sums")
    try AttentionForward.run(call, arrays, logSums: log_sums, in: context)
  }
}

@implementation @_cdecl("moe_attention_backward")
public func moe_attention_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_attention_config>?, _ query: UnsafePointer<Float>?,
  _ key: UnsafePointer<Float>?, _ value: UnsafePointer<Float>?, _ output: UnsafePointer<Float>?,
  _ log_sums: UnsafePointer<Float>?, _ gradients: UnsafePointer<moe_attention_gradients>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let call = try AttentionCall(try operands.copies(config, "config"), &operands)
    let given = try operands.copies(gradients, "gradients")
    let arrays = AttentionArrays(
      query: try operands.reads(query, call.ofQueries, "query"), key: try operands.reads(key, call.ofKeys, "key"),
      value: try operands.reads(value, call.ofValues, "value"),
      output: UnsafeMutablePointer(mutating: try operands.reads(output, call.ofOutputs, "output")))
    let log_sums = try operands.reads(log_sums, call.sums, "log_sums")
    try AttentionBackward.run(
      call,
      AttentionGradients(
        arrays, logSums: log_sums, doutput: try operands.reads(given.doutput, call.ofOutputs, "doutput"),
        dquery: try operands.writes(given.dquery, call.ofQueries, "dquery"),
        dkey: try operands.writes(given.dkey, call.ofKeys, "dkey"),
        dvalue: try operands.writes(given.dvalue, call.ofValues, "dvalue"),
        dsinks: try call.dsinks(given.dsinks, &operands)), in: context)
  }
}

extension AttentionCall {
  fileprivate init(_ config: moe_attention_config, _ operands: inout Operands) throws(Fault) {
    try require(Int(config.n_kv_heads), "n_kv_heads", from: 0, to: Int(config.n_heads))
    let keyHeads = Int(config.n_kv_heads == 0 ? config.n_heads : config.n_kv_heads)
    if Int(config.n_heads) % keyHeads != 0 {
      throw .invalid("n_kv_heads = \(keyHeads) does not divide n_heads = \(Int(config.n_heads))")
    }
    self.init(
      sequences: Int(config.n_sequences), queries: Int(config.n_queries),
      keys: Int(config.n_keys == 0 ? config.n_queries : config.n_keys), heads: Int(config.n_heads), keyHeads: keyHeads,
      headSize: Int(config.head_size), valueSize: Int(config.value_size == 0 ? config.head_size : config.value_size))
    queryStride = try rowStride(config.query_stride, "query_stride", heads * headSize)
    keyStride = try rowStride(config.key_stride, "key_stride", keyHeads * headSize)
    valueStride = try rowStride(config.value_stride, "value_stride", keyHeads * valueSize)
    outputStride = try rowStride(config.output_stride, "output_stride", heads * valueSize)
    try requireFloat(config.scale, "scale")
    if config.scale != 0 { scale = Float(config.scale) }
    (masks.window, masks.chunk) = (Int(config.window), Int(config.chunk))
    if config.causal == 0 && masks.window > 0 { throw .earlier("window", masks.window) }
    if config.causal == 0 && masks.chunk > 0 { throw .earlier("chunk", masks.chunk) }
    (dropout, seed, step) = (config.dropout, config.seed, config.step)
    compute(in: try elementType(config.compute_dtype, "compute_dtype", forTokens: true))
    // Of the arrays, and of what is counted over them.
    _ = try product(try product(sequences, queries, "B * S"), 4 * heads, "the size of log_sums")
    let pairs = try product(4 * queries, keys, "the size of added_mask") / 4
    masks.causal = config.causal == 1
    masks.mask = try operands.reads(optional: config.mask, pairs, "mask")
    masks.added = try operands.reads(optional: config.added_mask, pairs, "added_mask")
    masks.valid = try operands.reads(optional: config.valid_mask, sequences * keys, "valid_mask")
    sinks = try operands.reads(optional: config.sinks, heads, "sinks")
  }

  fileprivate func dsinks(
    _ given: UnsafeMutablePointer<Float>?, _ operands: inout Operands
  ) throws(Fault) -> UnsafeMutablePointer<Float>? {
    if given != nil && sinks == nil { throw .invalid("dsinks is given, but config.sinks is NULL") }
    return try operands.writes(optional: given, heads, "dsinks")
  }

  fileprivate var ofQueries: Operands.Rows {
    Operands.Rows(count: sequences * queries, width: heads * headSize, stride: queryStride)
  }
  fileprivate var ofKeys: Operands.Rows {
    Operands.Rows(count: sequences * keys, width: keyHeads * headSize, stride: keyStride)
  }
  fileprivate var ofValues: Operands.Rows {
    Operands.Rows(count: sequences * keys, width: keyHeads * valueSize, stride: valueStride)
  }
  fileprivate var ofOutputs: Operands.Rows {
    Operands.Rows(count: sequences * queries, width: heads * valueSize, stride: outputStride)
  }
  fileprivate var sums: Int { sequences * heads * queries }
}

extension Fault {
  fileprivate static func earlier(_ name: StaticString, _ size: Int) -> Fault {
    .invalid("\(name) = \(size) needs causal = 1: it says which of the earlier keys a query sees")
  }
}

/// Floats from one token to the next; 0 is `width`, all that a token has.
func rowStride(_ given: Int64, _ name: StaticString, _ width: Int) throws(Fault) -> Int {
  if given == 0 { return width }
  if given < Int64(width) { throw .invalid("\(name) = \(Int(given)) is below the \(width) floats of a token") }
  return Int(given)
}
