import CShims

/// Scores of all experts divided by their sum, which the losses of Megatron-Core balance:
///
///     q_e = s_e / S      S = (sum over j of s_j) + 1e-20      s = score(z)
///
/// Scores of a softmax are shares already, so they are not made here.
struct ScoreShares {
  private let experts: Int
  private let isSigmoid: Bool  // or else the root of a softplus
  private let scores: ChosenValues  // with all experts chosen
  private let kernels: UnsafePointer<moei_kernels>
  private let ofLanes: UnsafeMutablePointer<Float>  // [lanes,2,E]

  /// nil where no loss asks for them.
  init?(_ arena: inout Arena, _ c: Configuration, context: ContextPointer) {
    guard c.hasScoreShares else { return nil }
    experts = c.experts
    isSigmoid = c.choice.score == .sigmoid
    kernels = context.kernels
    var choice = c.choice
    choice.weights = .scores
    scores = ChosenValues(choice: choice, kernels: context.kernels)
    ofLanes = arena.take(Float.self, 2 * context.lanes, c.experts)
  }

  /// s [E] from z [E]; returns S.
  private func score(_ s: UnsafeMutablePointer<Float>, logits z: UnsafePointer<Float>) -> Double {
    if isSigmoid {
      kernels.pointee.sigmoid(Int64(experts), z, s)
    } else {
      kernels.pointee.sqrt_softplus(Int64(experts), z, s)
    }
    var sum = 1e-20
    for e in 0..<experts { sum += Double(s[e]) }
    return sum
  }

  /// q [E] from z [E]
  func fill(_ q: UnsafeMutablePointer<Float>, logits z: UnsafePointer<Float>) {
    let sum = score(q, logits: z)
    for e in 0..<experts { q[e] = Float(Double(q[e]) / sum) }
  }

  // MARK: backward

  /// dz [E] += the gradient with respect to z, for dq = scale * slopes [E]:
  ///
  ///     ds_e = (dq_e - sum over j of dq_j q_j) / S
  func backward(
    _ slopes: UnsafePointer<Float>, scale: Float, logits z: UnsafePointer<Float>, addTo dz: UnsafeMutablePointer<Float>,
    _ lane: Int
  ) {
    let s = ofLanes + 2 * lane * experts
    let ds = s + experts
    let sum = score(s, logits: z)
    var mean = 0.0
    for e in 0..<experts { mean += Double(slopes[e]) * Double(s[e]) / sum }
    for e in 0..<experts { ds[e] = Float(Double(scale) * (Double(slopes[e]) - mean) / sum) }
    scores.differentiate(ds, v: s, logits: z, experts)
    for e in 0..<experts { dz[e] += ds[e] }
  }
}
