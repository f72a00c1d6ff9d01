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
      query: try operands.reads(query, call.ofQueries(call.queryStride), "query"),
      key: try operands.reads(key, call.ofKeys(call.keyStride), "key"),
      value: try operands.reads(value, call.ofKeys(call.valueStride), "value"),
      output: try operands.writes(output, call.ofQueries(call.outputStride), "output"))
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
    let (ofQueries, ofOutput) = (call.ofQueries(call.queryStride), call.ofQueries(call.outputStride))
    let (ofKeys, ofValues) = (call.ofKeys(call.keyStride), call.ofKeys(call.valueStride))
    let arrays = AttentionArrays(
      query: try operands.reads(query, ofQueries, "query"), key: try operands.reads(key, ofKeys, "key"),
      value: try operands.reads(value, ofValues, "value"),
      output: UnsafeMutablePointer(mutating: try operands.reads(output, ofOutput, "output")))
    let log_sums = try operands.reads(log_sums, call.sums, "log_sums")
    try AttentionBackward.run(
      call,
      AttentionGradients(
        arrays, logSums: log_sums, doutput: try operands.reads(given.doutput, ofOutput, "doutput"),
        dquery: try operands.writes(given.dquery, ofQueries, "dquery"),
        dkey: try operands.writes(given.dkey, ofKeys, "dkey"),
        dvalue: try operands.writes(given.dvalue, ofValues, "dvalue")), in: context)
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
      headSize: Int(config.head_size))
    let (queryWidth, keyWidth) = (heads * headSize, keyHeads * headSize)
    queryStride = try rowStride(config.query_stride, "query_stride", queryWidth)
    keyStride = try rowStride(config.key_stride, "key_stride", keyWidth)
    valueStride = try rowStride(config.value_stride, "value_stride", keyWidth)
    outputStride = try rowStride(config.output_stride, "output_stride", queryWidth)
    try requireFloat(config.scale, "scale")
    if config.scale != 0 { scale = Float(config.scale) }
    (dropout, seed, step) = (config.dropout, config.seed, config.step)
    // Of the arrays, and of what is counted over them.
    _ = try product(try product(sequences, queries, "B * S"), 4 * heads, "the size of log_sums")
    let pairs = try product(4 * queries, keys, "the size of added_mask") / 4
    masks.causal = config.causal == 1
    masks.mask = try operands.reads(optional: config.mask, pairs, "mask")
    masks.added = try operands.reads(optional: config.added_mask, pairs, "added_mask")
    masks.valid = try operands.reads(optional: config.valid_mask, sequences * keys, "valid_mask")
  }

  fileprivate func ofQueries(_ stride: Int) -> Operands.Rows {
    Operands.Rows(count: sequences * queries, width: heads * headSize, stride: stride)
  }
  fileprivate func ofKeys(_ stride: Int) -> Operands.Rows {
    Operands.Rows(count: sequences * keys, width: keyHeads * headSize, stride: stride)
  }
  fileprivate var sums: Int { sequences * heads * queries }
}

/// Floats from one token to the next; 0 is `width`, all that a token has.
func rowStride(_ given: Int64, _ name: StaticString, _ width: Int) throws(Fault) -> Int {
  if given == 0 { return width }
  if given < Int64(width) { throw .invalid("\(name) = \(Int(given)) is below the \(width) floats of a token") }
  return Int(given)
}
