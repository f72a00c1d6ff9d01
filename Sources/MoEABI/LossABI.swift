import CMoE
import MoE

@implementation @_cdecl("moe_backward_options_init")
public func moe_backward_options_init(_ options: UnsafeMutablePointer<moe_backward_options>?, _ struct_size: Int) {
  initialise(options, struct_size, moe_backward_options())
}

@implementation @_cdecl("moe_pooled_balance_loss")
public func moe_pooled_balance_loss(
  _ n_layers: Int64, _ n_experts: Int64, _ tokens_per_expert: UnsafePointer<Int64>?, _ n_valid: UnsafePointer<Int64>?,
  _ mean_probability: UnsafePointer<Float>?, _ loss: UnsafeMutablePointer<Float>?,
  _ d_mean_probability: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    try require(Int(n_layers), "n_layers", from: 0, to: Int(Int32.max))
    try require(Int(n_experts), "n_experts", from: 1, to: Int(Int32.max))
    let (layers, experts) = (Int(n_layers), Int(n_experts))
    let elements = layers * experts  // below 2^62; its bytes may be too many
    _ = try product(8, elements, "the size of n_layers * n_experts counts")
    let counts = try array(tokens_per_expert, count: elements, "tokens_per_expert")
    let valid = try array(n_valid, count: layers, "n_valid")
    let probability = try array(mean_probability, count: elements, "mean_probability")
    let loss = try required(loss, "loss")
    let gradient = try optional(d_mean_probability, "d_mean_probability")
    try requireCounts(counts, elements, "tokens_per_expert")
    try requireCounts(valid, layers, "n_valid")
    for i in 0..<elements where !probability[i].isFinite {
      throw .invalid("mean_probability[\(i)] = \(Double(probability[i])) is not finite")
    }
    var operands = Operands()
    try operands.reads(counts, elements, "tokens_per_expert")
    try operands.reads(valid, layers, "n_valid")
    try operands.reads(probability, elements, "mean_probability")
    try operands.writes(loss, 1, "loss")
    try operands.writes(gradient, elements, "d_mean_probability")
    let pooled = PooledBalance(
      layers: layers, experts: experts, counts: counts, valid: valid, probability: probability)
    loss.pointee = pooled.loss(gradient: gradient)
  }
}

private func requireCounts(_ counts: UnsafePointer<Int64>, _ count: Int, _ name: StaticString) throws(Fault) {
  for i in 0..<count where counts[i] < 0 { throw .invalid("\(name)[\(i)] = \(Int(counts[i])) is negative") }
}
