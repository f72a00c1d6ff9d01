import CShims

/// What the weights of a token's chosen experts are made from: their scores, or a softmax or sigmoid over their logits.
/// (LogitMixer.swift has those that look at other experts too.)
struct ChosenValues {
  let choice: TokenChoice
  let kernels: UnsafePointer<moei_kernels>

  /// Of which numbers the chosen ones are wanted: the logits z [E] of a token or its probabilities p [E].
  func source(logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>) -> UnsafePointer<Float> {
    passThroughSoftmax ? p : z
  }

  /// v [K] from the chosen numbers of the source.
  func fill(_ v: UnsafeMutablePointer<Float>, _ chosen: UnsafePointer<Float>, _ k: Int) {
    switch (choice.weights, choice.score) {
    case (.topKSoftmax, _):
      var unused: (lse: Float, entropy: Float) = (0, 0)
      kernels.pointee.softmax(Int64(k), chosen, v, &unused.lse, &unused.entropy)
    case (.topKSigmoid, _), (.scores, .sigmoid): kernels.pointee.sigmoid(Int64(k), chosen, v)
    case (.scores, .sqrtSoftplus): kernels.pointee.sqrt_softplus(Int64(k), chosen, v)
    case (.scores, .identity), (.scores, .softmax): v.update(from: chosen, count: k)
    case (.equal, _), (.sparseMixer, _), (.groupSoftmax, _): v.update(repeating: 1, count: k)
    }
  }

  // MARK: backward

  /// Whether the gradient goes through the softmax over all experts.
  var passThroughSoftmax: Bool { choice.weights == .scores && choice.score == .softmax }

  /// dv becomes the gradient of the chosen logits, where it does not pass through the softmax over all.
  func differentiate(
    _ dv: UnsafeMutablePointer<Float>, v: UnsafePointer<Float>, logits: UnsafePointer<Float>, _ k: Int
  ) {
    switch (choice.weights, choice.score) {
    case (.topKSoftmax, _):
      var mean: Float = 0
      for slot in 0..<k { mean += dv[slot] * v[slot] }
      for slot in 0..<k { dv[slot] = v[slot] * (dv[slot] - mean) }
    case (.topKSigmoid, _), (.scores, .sigmoid):
      for slot in 0..<k { dv[slot] *= v[slot] * (1 - v[slot]) }
    case (.scores, .sqrtSoftplus):
      // d sqrt(softplus z) / dz = sigmoid(z) / (2 sqrt(softplus z)), which goes to 0 with z to minus infinity
      for slot in 0..<k {
        var s: Float = 0
        kernels.pointee.sigmoid(1, logits + slot, &s)
        dv[slot] = v[slot] == 0 ? 0 : dv[slot] * s / (2 * v[slot])
      }
    case (.equal, _): dv.update(repeating: 0, count: k)
    case (.scores, .identity), (.scores, .softmax), (.sparseMixer, _), (.groupSoftmax, _): break
    }
  }
}
