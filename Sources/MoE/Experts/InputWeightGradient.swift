import CShims

/// Where routing weights multiply what the experts read: the weight's gradient is <gradient of what was read, x>, and x's
/// gradient the weight's multiple.
struct InputWeightGradient: GroupBackwardJob {
  let work: GroupWork
  let gradients: GroupGradients

  func run(in context: ContextPointer) throws(Fault) { try context.run(dispatch.experts.count, self) }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = dispatch.experts.lowerBound + item
    let rows = dispatch.rows(ofExpert: expert)
    let (pairs, tokens) = (dispatch.pairs(from: rows.lowerBound), dispatch.tokens(from: rows.lowerBound))
    let weights = dispatch.weights(from: rows.lowerBound)
    for r in 0..<rows.count {
      let dRow = dRows + (rows.lowerBound + r) * padded(c.hidden)
      dWeights[Int(pairs[r])] = kernels.pointee.dot(Int64(c.hidden), dRow, x + Int(tokens[r]) * c.hidden)
      kernels.pointee.scale(Int64(c.hidden), weights[r], dRow, dRow)
    }
  }
}
