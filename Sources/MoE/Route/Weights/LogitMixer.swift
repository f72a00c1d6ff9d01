/// Weights that are made from all logits of a token, and not from those of its choices alone.
enum LogitMixer {
  case sparse(SparseMixer)
  case groups(GroupSoftmax)

  init?(_ arena: inout Arena, _ c: Configuration, context: ContextPointer) {
    switch c.choice.weights {
    case .sparseMixer: self = .sparse(SparseMixer(&arena, c, context: context))
    case .groupSoftmax: self = .groups(GroupSoftmax(&arena, c, context: context))
    case .scores, .topKSoftmax, .topKSigmoid, .equal: return nil
    }
  }

  /// v [k] from all logits z [E].
  func fill(
    _ v: UnsafeMutablePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int, _ lane: Int
  ) {
    switch self {
    case .sparse(let mixer): mixer.fill(v, z, indices, k, lane)
    case .groups(let mixer): mixer.fill(v, z, indices, k, lane)
    }
  }

  /// dz [E] += the gradient through v.
  func backward(
    _ dv: UnsafePointer<Float>, _ z: UnsafePointer<Float>, _ indices: UnsafePointer<Int32>, _ k: Int,
    addTo dz: UnsafeMutablePointer<Float>, _ lane: Int
  ) {
    switch self {
    case .sparse(let mixer): mixer.backward(dv, z, indices, k, addTo: dz, lane)
    case .groups(let mixer): mixer.backward(dv, z, indices, k, addTo: dz, lane)
    }
  }
}
