import CMoE
import MoE

@implementation @_cdecl("moe_muon_create")
public func moe_muon_create(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_muon_config>?, _ tensors: UnsafePointer<moe_tensor>?,
  _ count: Int64, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let config = config == nil ? .standard : try read(config, "config")
    let rule = Muon(
      momentum: config.momentum,
      rest: AdamW(
        learningRate: config.learning_rate, beta1: config.beta1, beta2: config.beta2, epsilon: config.epsilon,
        weightDecay: config.weight_decay))
    let state = try OptimizerState(
      config.state_dtype, config.unallocated_state, config.stochastic_rounding, seed: config.seed)
    let list = try TensorList(tensors, count: count)
    var operands = Operands()
    let byAdamW = try operands.reads(optional: config.by_adamw, list.count, "config.by_adamw")
    try requireMatrices(list, byAdamW)
    try create(.muon(rule), context, state, list, out, beside: operands) { index in
      let isMatrix = byAdamW.map { $0[index] == 0 } ?? Muon.isMatrix(list.name(index))
      return isMatrix ? list.matrix(index) : nil
    }
  }
}

private func requireMatrices(_ list: TensorList, _ byAdamW: UnsafePointer<UInt8>?) throws(Fault) {
  guard let byAdamW else { return }
  for index in 0..<list.count {
    if byAdamW[index] > 1 { throw .invalid("by_adamw[\(index)] = \(Int(byAdamW[index])) is neither 0 nor 1") }
    if byAdamW[index] == 0 && list.matrix(index) == nil {
      throw .invalid(
        "by_adamw[\(index)] = 0, but \(list.place(index)) has one dimension: Muon steps matrices; set it to 1")
    }
  }
}
