import CMoE
import Foundation

/// The layer as moe.h defines it, in float64: one token, one expert, one number at a time.
struct Oracle {
  let config: moe_layer_config
  var parameters: [String: [Double]]
  var x: [Double]  // [T,H]

  struct Result {
    var y: [Double] = []  // [T,H]
    var choices: [[Int]] = []  // [T][K], best first
    var weights: [Double] = []  // [T,K]
    var balanceLoss = 0.0
    var zLoss = 0.0
    var entropy = 0.0
  }

  init(_ layer: Layer, x: [Float]) throws {
    config = layer.config
    self.x = x.map(Double.init)
    parameters = [:]
    for tensor in try layer.tensors() { parameters[String(cString: tensor.name)] = tensor.values.map(Double.init) }
  }

  /// - Parameter choices: Routing to replay; nil decides it from the logits.
  func run(choices replayed: [[Int]]? = nil) -> Result {
    let (hidden, experts) = (Int(config.hidden_size), Int(config.n_experts))
    let tokens = x.count / hidden
    var result = Result()
    var counts = [Double](repeating: 0, count: experts)
    var probabilitySums = [Double](repeating: 0, count: experts)

    for t in 0..<tokens {
      let token = Array(x[t * hidden..<(t + 1) * hidden])
      let logits = affine("router", 0, of: 1, token)  // [E]
      let logSum = log(logits.reduce(0) { $0 + exp($1) })
      let p = logits.map { exp($0 - logSum) }  // [E]
      let chosen = replayed?[t] ?? best(logits)  // [K]
      let weights = routeWeights(p, chosen)  // [K]

      var y = [Double](repeating: 0, count: hidden)
      for (e, w) in zip(chosen, weights) {
        let output = expert(e, token)
        for h in 0..<hidden { y[h] += w * output[h] }
        counts[e] += 1
      }
      for e in 0..<experts { probabilitySums[e] += p[e] }
      result.y += y
      result.choices.append(chosen)
      result.weights += weights
      result.zLoss += logSum * logSum / Double(tokens)
      result.entropy -= p.reduce(0) { $0 + ($1 > 0 ? $1 * log($1) : 0) } / Double(tokens)
    }
    for e in 0..<experts {
      result.balanceLoss += Double(experts) * (counts[e] / Double(tokens)) * (probabilitySums[e] / Double(tokens))
    }
    return result
  }

  /// L = <dy, y> + dAuxLoss * aux_loss, with the routing replayed.
  func objective(dy: [Float], dAuxLoss: Double, choices: [[Int]]) -> Double {
    let result = run(choices: choices)
    let auxLoss = Double(config.balance_coef) * result.balanceLoss + Double(config.z_coef) * result.zLoss
    return zip(dy, result.y).reduce(dAuxLoss * auxLoss) { $0 + Double($1.0) * $1.1 }
  }

  /// The K largest, the lowest index first among equals.
  private func best(_ logits: [Double]) -> [Int] {
    let order = logits.indices.sorted { (-logits[$0], $0) < (-logits[$1], $1) }
    return Array(order.prefix(Int(config.top_k)))
  }

  /// Softmax over the K chosen logits is the same as dividing the chosen probabilities by their sum.
  private func routeWeights(_ p: [Double], _ chosen: [Int]) -> [Double] {
    let asTheyAre =
      config.router_weights == MOE_ROUTER_WEIGHTS_SCORES.int32 && config.router_normalize == MOE_NORMALIZE_NONE.int32
    let sum = asTheyAre ? 1 : chosen.reduce(0) { $0 + p[$1] }
    return chosen.map { p[$0] / sum }
  }

  private func expert(_ e: Int, _ token: [Double]) -> [Double] {
    let experts = Int(config.n_experts)
    if config.expert_kind == MOE_EXPERT_LINEAR.int32 { return affine("experts", e, of: experts, token) }
    let up = affine("experts.up", e, of: experts, token)  // [I]
    let inner =
      config.expert_kind == MOE_EXPERT_GATED.int32
      ? zip(affine("experts.gate", e, of: experts, token), up).map { gate, up in
        activation(min(gate, limit)) * (max(min(up, limit), -limit) + Double(config.glu_offset))
      }
      : up.map(activation)
    return affine("experts.down", e, of: experts, inner)  // [H]
  }

  /// W v + b with block `block` of a stack of `blocks` matrices; b where the layer has one.
  private func affine(_ name: String, _ block: Int, of blocks: Int, _ v: [Double]) -> [Double] {
    let weight = parameters[name + ".weight"]!
    let bias = parameters[name + ".bias"]
    let rows = weight.count / blocks / v.count
    return (block * rows..<(block + 1) * rows).map { row in
      var sum = bias?[row] ?? 0
      for column in v.indices { sum += weight[row * v.count + column] * v[column] }
      return sum
    }
  }

  private var limit: Double { config.glu_limit == 0 ? .infinity : Double(config.glu_limit) }

  private func activation(_ v: Double) -> Double {
    switch config.activation {
    case MOE_ACTIVATION_GELU.int32: v * (1 + erf(v / 2.0.squareRoot())) / 2
    case MOE_ACTIVATION_GELU_TANH.int32: v * (1 + tanh((2 / Double.pi).squareRoot() * (v + 0.044715 * v * v * v))) / 2
    case MOE_ACTIVATION_SILU.int32: v / (1 + exp(-v * (config.glu_alpha == 0 ? 1 : Double(config.glu_alpha))))
    case MOE_ACTIVATION_RELU.int32: max(v, 0)
    case MOE_ACTIVATION_RELU2.int32: max(v, 0) * max(v, 0)
    default: v / (1 + exp(-1.702 * v))
    }
  }
}
