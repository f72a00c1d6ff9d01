import CShims

// Experts without matrices: identity (out = x), zero (out = 0), constant (out = v, a trained vector) [MoE++ 2024].
// They have rows like all others, so that nothing after them needs to know.

struct FreeForward: GroupJob {
  let work: GroupWork
  let outputs: UnsafeMutablePointer<Float>?  // [rows, padded H]; nil where there is nothing to do

  func run(in context: ContextPointer) throws(Fault) { try context.run(c.experts, self) }

  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    guard let outputs else { return }
    let (rows, h) = (dispatch.rows(ofExpert: expert), c.hidden)
    let (tokens, weights) = (dispatch.tokens(from: rows.lowerBound), dispatch.weights(from: rows.lowerBound))
    for r in 0..<rows.count {
      let out = outputs + (rows.lowerBound + r) * padded(h)
      switch c.kind {
      case .identity: kernels.pointee.scale(Int64(h), c.weightOnInput ? weights[r] : 1, x + Int(tokens[r]) * h, out)
      case .constant: out.update(from: source.constant(c, expert: expert), count: h)
      case .zero: out.update(repeating: 0, count: h)
      case .mlp, .gated, .linear: break  // not free: computed by their products
      }
    }
  }
}

// MARK: backward

struct FreeBackward: GroupBackwardJob {
  let work: GroupWork
  let gradients: GroupGradients

  func run(in context: ContextPointer) throws(Fault) { try context.run(c.experts, self) }

  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (rows, h) = (dispatch.rows(ofExpert: expert), c.hidden)
    let (pairs, tokens) = (dispatch.pairs(from: rows.lowerBound), dispatch.tokens(from: rows.lowerBound))
    let weights = dispatch.weights(from: rows.lowerBound)
    for r in 0..<rows.count {
      let (x, dy) = (x + Int(tokens[r]) * h, dy + Int(tokens[r]) * h)
      let dRow = dRows + (rows.lowerBound + r) * padded(h)
      var slope: Float = 0  // <dy, out>
      switch c.kind {
      case .identity:
        slope = kernels.pointee.dot(Int64(h), dy, x)
        kernels.pointee.scale(Int64(h), weights[r], dy, dRow)
      case .constant:
        // A weight that multiplies what is read has no effect here.
        if !c.weightOnInput {
          slope = kernels.pointee.dot(Int64(h), dy, source.constant(c, expert: expert))
        }
        if let gradient = source.constantGradient(c, expert: expert) {
          kernels.pointee.add_scaled(Int64(h), c.weightOnInput ? 1 : weights[r], dy, gradient)
        }
        dRow.update(repeating: 0, count: h)
      case .zero: dRow.update(repeating: 0, count: h)
      case .mlp, .gated, .linear: break  // not free: computed by their products
      }
      dWeights[Int(pairs[r])] = slope
    }
  }
}
