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
    let rule = Sampling(
      temperature: wanted.temperature, topK: Int(wanted.top_k), topP: wanted.top_p, seed: wanted.seed)
    token.pointee = try rule.token(logits, Int(vocabulary_size), draw: draw, in: context)
  }
}
