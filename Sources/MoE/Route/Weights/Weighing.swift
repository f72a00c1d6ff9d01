import CShims

/// From the values v of a token's chosen experts to their weights:  w_k = n_k * scale * expert scale of k,  n = v divided by
/// its sum, by a norm, or by nothing.
struct Weighing {
  private let choice: TokenChoice
  private let expertScale: UnsafePointer<Float>?  // [E]
  private let kernels: UnsafePointer<moei_kernels>

  init(_ c: Configuration, parameters: Parameters, kernels: UnsafePointer<moei_kernels>) {
    choice = c.choice
    self.kernels = kernels
    expertScale = parameters.data(.expertScale).map { UnsafePointer($0) }
  }

  /// False where the divisor is 0 or no number.
  func weigh(
    _ v: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int, into w: UnsafeMutablePointer<Float>
  ) -> Bool {
    let divisor = divisor(v, k)
    if divisor == 0 || divisor.isNaN { return false }
    for slot in 0..<k { w[slot] = v[slot] / divisor * factor(indices[slot]) }
    return true
  }

  private func factor(_ expert: Int32) -> Float { choice.scale * (expertScale?[Int(expert)] ?? 1) }

  /// A softmax over the chosen is normalised by itself.
  private var divides: Bool { choice.weights != .topKSoftmax && choice.normalization != .none }

  private func divisor(_ v: UnsafePointer<Float>, _ k: Int) -> Float {
    if !divides { return 1 }
    let size = size(v, k)
    switch choice.epsilonForm {
    case .added: return size + choice.epsilon
    case .least: return size < choice.epsilon ? choice.epsilon : size
    }
  }

  /// Sum or norm of the values, in slot order.
  private func size(_ v: UnsafePointer<Float>, _ k: Int) -> Float {
    var total: Float = 0
    switch choice.normalization {
    case .none: return 1
    case .sum: for slot in 0..<k { total += v[slot] }
    case .norm1: for slot in 0..<k { total += abs(v[slot]) }
    case .norm2:
      for slot in 0..<k { total += v[slot] * v[slot] }
      total = total.squareRoot()
    case .normP:
      // Relative to the largest, so that no power is too small for a float.
      var largest: Float = 0
      for slot in 0..<k { largest = max(largest, abs(v[slot])) }
      if largest == 0 { return 0 }
      for slot in 0..<k { total += power(abs(v[slot]) / largest, choice.normP) }
      total = largest * power(total, 1 / choice.normP)
    }
    return total
  }

  private func power(_ v: Float, _ exponent: Float) -> Float {
    var (v, result) = (v, Float(0))
    kernels.pointee.power(1, exponent, &v, &result)
    return result
  }

  // MARK: backward

  /// dv from dw, which may be the same memory; `share` gets the gradient of each chosen expert's scale.
  /// With D the divisor and g_k = dw_k * factor_k:  dv_k = (g_k - (sum over j of g_j n_j) dD/dv_k) / D.
  func backward(
    _ v: UnsafePointer<Float>, _ dw: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int,
    into dv: UnsafeMutablePointer<Float>, share: (Int, Float) -> Void
  ) {
    let (size, divisor) = (size(v, k), divisor(v, k))
    var mean: Float = 0
    for slot in 0..<k {
      let n = v[slot] / divisor
      share(slot, dw[slot] * n * choice.scale)
      dv[slot] = dw[slot] * factor(indices[slot])
      mean += dv[slot] * n
    }
    let constant = !divides || (choice.epsilonForm == .least && size < choice.epsilon)
    for slot in 0..<k {
      let slope: Float
      switch choice.normalization {
      case .none: slope = 0
      case .sum: slope = 1
      case .norm1: slope = v[slot] < 0 ? -1 : v[slot] > 0 ? 1 : 0
      case .norm2: slope = size == 0 ? 0 : v[slot] / size
      case .normP:
        let share = size == 0 ? 0 : power(abs(v[slot]) / size, choice.normP - 1)
        slope = v[slot] < 0 ? -share : share
      }
      dv[slot] = (constant ? dv[slot] : dv[slot] - mean * slope) / divisor
    }
  }
}

/// d expert scale += each expert's share, tokens in ascending order.
func addExpertScaleGradient(
  _ dFactors: UnsafePointer<Float>, _ routing: Routing, to grad: UnsafeMutablePointer<Float>
) {
  for t in 0..<routing.tokens {
    for pair in t * routing.slots..<t * routing.slots + routing.choices where routing.indices[pair].isExpert {
      grad[Int(routing.indices[pair])] += dFactors[pair]
    }
  }
}
