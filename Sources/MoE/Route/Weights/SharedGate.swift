import CShims

/// What shared experts weigh: 1, a sigmoid of a gate of their own (Qwen2), or, in a residual layer, one of two
/// coefficients, the other of which the chosen experts get [DeepSpeed-MoE 2022].
struct SharedGate {
  private let c: Configuration
  private let kernels: UnsafePointer<moei_kernels>
  private let routing: Routing
  let gate: Gate?  // reads x itself

  init(_ work: RouteWork) {
    c = work.c
    kernels = work.kernels
    routing = work.routing
    gate = Gate(work.parameters, .sharedRouterWeight, .sharedRouterBias, input: work.x)
  }

  /// Logits and places of one block, before the chosen experts are weighed.
  func forward(_ tokens: Range<Int>, _ matmul: Matmul, _ scratch: UnsafeMutablePointer<Float>) {
    if c.shared == 0 { return }
    gate?.forward(tokens, into: routing.sharedLogits + tokens.lowerBound * c.sharedGates, matmul, scratch)
    for t in tokens {
      let first = t * routing.slots + routing.choices
      for s in 0..<c.shared {
        routing.indices[first + s] = routing.isValid(t) ? Int32(truncatingIfNeeded: c.experts + s) : .noExpert
        routing.weights[first + s] = routing.isValid(t) ? 1 : 0
      }
      if !routing.isValid(t) { continue }
      let z = routing.sharedLogits + t * c.sharedGates
      switch c.sharedGate {
      case .plain: break
      case .sigmoid: kernels.pointee.sigmoid(Int64(c.shared), z, routing.weights + first)
      case .residual:
        let share = coefficients(z)
        routing.coefficients![t] = share.chosen
        routing.weights[first] = share.shared
      }
    }
  }

  /// softmax of two logits
  private func coefficients(_ z: UnsafePointer<Float>) -> (chosen: Float, shared: Float) {
    var differences = (z[0] - z[1], z[1] - z[0])
    var c: (Float, Float) = (0, 0)
    kernels.pointee.sigmoid(1, &differences.0, &c.0)
    kernels.pointee.sigmoid(1, &differences.1, &c.1)
    return c
  }

  // MARK: backward

  /// dz of token t's gate from dw [slots]; in a residual layer the chosen experts' dw becomes that of their weights
  /// without the coefficient.
  func backward(_ t: Int, _ dw: UnsafeMutablePointer<Float>, into dz: UnsafeMutablePointer<Float>) {
    let weights = routing.weights + t * routing.slots
    switch c.sharedGate {
    case .plain: return
    case .sigmoid:
      for s in 0..<c.shared {
        let w = weights[routing.choices + s]
        dz[s] = dw[routing.choices + s] * w * (1 - w)
      }
    case .residual:
      let share = coefficients(routing.sharedLogits + t * c.sharedGates)
      var dChosen: Float = 0
      for slot in 0..<routing.choices { dChosen += dw[slot] * weights[slot] }
      let d = share.chosen * share.shared * (dChosen - dw[routing.choices])
      (dz[0], dz[1]) = (d, -d)
      for slot in 0..<routing.choices { dw[slot] *= share.chosen }
    }
  }
}
