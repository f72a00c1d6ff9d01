import CMoE
import MoE

@implementation @_cdecl("moe_sample")
public func moe_sample(
  _ context: OpaquePointer?, _ logits: UnsafePointer<Float>?, _ vocabulary_size: Int64,
  _ sampling: UnsafePointer<moe_sampling>?, _ draw: UInt64, _ token: UnsafeMutablePointer<Int32>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try require(Int(vocabulary_size), "vocabulary_size", from: 1, to: Int(Int32.max))
    var operands = Operands()
    let logits = try operands.reads(logits, Int(vocabulary_size), "logits")
    let wanted = try operands.copies(sampling, "sampling")
    let token = try operands.writes(token, 1, "token")
    let history = try wanted.history(vocabulary: Int(vocabulary_size), &operands)
    token.pointee = try Sampling(wanted).token(
      logits, Int(vocabulary_size), draw: draw, after: TokenHistory(history), in: context)
  }
}

extension Sampling {
  /// Of fields that have been checked each by itself.
  init(_ wanted: moe_sampling) throws(Fault) {
    let penalty = wanted.repetition_penalty == 0 ? 1 : Float(wanted.repetition_penalty)
    if !penalty.isNormal {
      throw .invalid(
        "sampling.repetition_penalty = \(wanted.repetition_penalty) is beyond the numbers of float32: usual are 1 to 1.5"
      )
    }
    self.init(
      temperature: wanted.temperature, topK: Int(wanted.top_k), topP: wanted.top_p, minP: wanted.min_p,
      penalty: penalty, seed: wanted.seed)
  }
}

extension moe_sampling {
  /// The tokens that are penalised, each of the vocabulary.
  func history(vocabulary: Int, _ operands: inout Operands) throws(Fault) -> UnsafeBufferPointer<Int32> {
    let count = Int(n_history)
    let tokens = try operands.reads(history, count, "sampling.history")
    try requireTokens(tokens, count, "sampling.history", vocabulary: vocabulary)
    return UnsafeBufferPointer(start: tokens, count: count)
  }
}
