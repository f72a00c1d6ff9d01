import CMoE
import MoE

@implementation @_cdecl("moe_pooled_balance_loss")
public func moe_pooled_balance_loss(
  _ n_layers: Int64, _ n_experts: Int64, _ tokens_per_expert: UnsafePointer<Int64>?, _ n_valid: UnsafePointer<Int64>?,
  _ mean_probability: UnsafePointer<Float>?, _ loss: UnsafeMutablePointer<Float>?,
  _ d_mean_probability: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    try pool(
      n_layers, 1, n_experts, tokens_per_expert, "tokens_per_expert", n_valid, mean_probability, loss,
      d_mean_probability)
  }
}

@implementation @_cdecl("moe_pooled_sequence_loss")
public func moe_pooled_sequence_loss(
  _ n_layers: Int64, _ n_sequences: Int64, _ n_experts: Int64, _ counts: UnsafePointer<Int64>?,
  _ n_valid: UnsafePointer<Int64>?, _ mean_probability: UnsafePointer<Float>?, _ loss: UnsafeMutablePointer<Float>?,
  _ d_mean_probability: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    try pool(
      n_layers, n_sequences, n_experts, counts, "counts", n_valid, mean_probability, loss, d_mean_probability)
  }
}

private func pool(
  _ n_layers: Int64, _ n_sequences: Int64, _ n_experts: Int64, _ counts: UnsafePointer<Int64>?,
  _ countsName: StaticString, _ n_valid: UnsafePointer<Int64>?, _ mean_probability: UnsafePointer<Float>?,
  _ loss: UnsafeMutablePointer<Float>?, _ d_mean_probability: UnsafeMutablePointer<Float>?
) throws(Fault) {
  try require(Int(n_layers), "n_layers", from: 0, to: Int(Int32.max))
  try require(Int(n_sequences), "n_sequences", from: 1, to: Int(Int32.max))
  try require(Int(n_experts), "n_experts", from: 1, to: Int(Int32.max))
  let (sequences, experts) = (Int(n_sequences), Int(n_experts))
  let rows = Int(n_layers) * sequences  // below 2^62
  let elements = try product(rows, experts, "n_layers * n_sequences * n_experts")
  _ = try product(8, elements, "the size of n_layers * n_sequences * n_experts counts")
  var operands = Operands()
  let counts = try operands.reads(counts, elements, countsName)
  let valid = try operands.reads(n_valid, rows, "n_valid")
  let probability = try operands.reads(mean_probability, elements, "mean_probability")
  let loss = try operands.writes(loss, 1, "loss")
  let gradient = try operands.writes(optional: d_mean_probability, elements, "d_mean_probability")
  try requireCounts(counts, elements, countsName)
  try requireCounts(valid, rows, "n_valid")
  for i in 0..<elements where !probability[i].isFinite {
    throw .invalid("mean_probability[\(i)] = \(Double(probability[i])) is not finite")
  }
  let pooled = PooledBalance(
    layers: Int(n_layers), sequences: sequences, experts: experts, counts: counts, valid: valid,
    probability: probability)
  loss.pointee = pooled.loss(gradient: gradient)
}

private func requireCounts(_ counts: UnsafePointer<Int64>, _ count: Int, _ name: StaticString) throws(Fault) {
  for i in 0..<count where counts[i] < 0 { throw .invalid("\(name)[\(i)] = \(Int(counts[i])) is negative") }
}

@implementation @_cdecl("moe_layer_set_loss_coefficient")
public func moe_layer_set_loss_coefficient(_ layer: OpaquePointer?, _ term: Int32, _ coefficient: Float) -> moe_status {
  attempt { () throws(Fault) in
    let layer = try handle(layer, "layer", as: Layer.self)
    let count = layer.pointee.configuration.lossCount
    if term < 0 || Int(term) >= count {
      throw .invalid("term = \(Int(term)) is none of the layer's n_losses = \(count) losses")
    }
    try require(Double(coefficient), "coefficient", atLeast: 0)
    layer.pointee.setLossCoefficient(Int(term), to: coefficient)
  }
}
