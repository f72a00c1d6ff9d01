import CMoE
import MoE

@implementation @_cdecl("moe_cross_entropy")
public func moe_cross_entropy(
  _ context: OpaquePointer?, _ x: UnsafePointer<Float>?, _ n_tokens: Int64, _ hidden_size: Int64,
  _ weight: UnsafeRawPointer?, _ weight_dtype: Int32, _ vocabulary_size: Int64, _ targets: UnsafePointer<Int32>?,
  _ ignore_index: Int32, _ label_smoothing: Double, _ d_loss: Double, _ loss: UnsafeMutablePointer<Double>?,
  _ counted: UnsafeMutablePointer<Int64>?, _ token_losses: UnsafeMutablePointer<Float>?,
  _ dx: UnsafeMutablePointer<Float>?, _ dweight: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let ofX = try ArraySize(n_tokens, "n_tokens", hidden_size, "hidden_size")
    let ofWeight = try ArraySize(vocabulary_size, "vocabulary_size", hidden_size, "hidden_size", fewest: 1)
    let type = try elementType(weight_dtype, "weight_dtype")
    let x = try array(x, count: ofX.elements, "x")
    let weight = try array(weight, count: ofWeight.elements, of: type, "weight")
    let targets = try array(targets, count: ofX.rows, "targets")
    for t in 0..<ofX.rows where targets[t] != ignore_index && (targets[t] < 0 || Int(targets[t]) >= ofWeight.rows) {
      throw .invalid(
        "targets[\(t)] = \(Int(targets[t])) is not one of vocabulary_size = \(ofWeight.rows), nor ignore_index = \(Int(ignore_index))"
      )
    }
    guard label_smoothing >= 0 && label_smoothing <= 1 else {
      throw .invalid("label_smoothing = \(label_smoothing) is not in [0, 1]")
    }
    if !Float(d_loss).isFinite { throw .invalid("d_loss = \(d_loss) is not finite") }
    let loss = try required(loss, "loss")
    let counted = try optional(counted, "counted")
    let losses = try optional(token_losses, "token_losses")
    let dx = try optional(dx, "dx")
    let dweight = try optional(dweight, "dweight")
    var operands = Operands()
    try operands.reads(x, ofX.elements, "x")
    try operands.reads(weight, bytes: byteCount(ofWeight.elements, of: type), "weight")
    try operands.reads(targets, ofX.rows, "targets")
    try operands.writes(loss, 1, "loss")
    try operands.writes(counted, 1, "counted")
    try operands.writes(losses, ofX.rows, "token_losses")
    try operands.writes(dx, ofX.elements, "dx")
    try operands.writes(dweight, ofWeight.elements, "dweight")
    let found = try CrossEntropy.call(
      CrossEntropy.Problem(
        x: x, tokens: ofX.rows, hidden: ofX.width, weight: weight, weights: type, vocabulary: ofWeight.rows,
        targets: targets, ignored: ignore_index, smoothing: label_smoothing, dLoss: d_loss),
      CrossEntropy.Targets(tokenLosses: losses, dx: dx, dWeight: dweight), in: context)
    loss.pointee = found.loss
    counted?.pointee = Int64(found.counted)
  }
}
