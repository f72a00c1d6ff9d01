/// What a training call changes in its layer beside gradients: running statistics, and how far warm-up is. Written once
/// nothing can fail any more; in a model that is after its last layer, and until then `measured` waits in the model's scratch.
extension Layer {
  /// `measured` [2,H]: mean and unbiased variance of what the gate read, where that is normalised.
  func note(_ call: Call, measured: UnsafePointer<Float>) {
    guard call.training else { return }
    let c = configuration
    if let norm = c.exploration.batchNorm {
      noteRunning(norm.momentum, call.valid(in: 0..<call.tokens), mean: measured, variance: measured + c.hidden)
    }
    if c.warmup != nil { parameters.data(.activeExperts)![0] = Float(c.activeExperts(call, parameters)) }
  }

  private func noteRunning(
    _ momentum: Float, _ valid: Int, mean: UnsafePointer<Float>, variance: UnsafePointer<Float>
  ) {
    if valid == 0 { return }
    let (runningMean, runningVariance) = (parameters.data(.runningMean)!, parameters.data(.runningVariance)!)
    for f in 0..<configuration.hidden {
      runningMean[f] += momentum * (mean[f] - runningMean[f])
      // One token has no unbiased variance.
      if valid > 1 { runningVariance[f] += momentum * (variance[f] - runningVariance[f]) }
    }
  }
}
