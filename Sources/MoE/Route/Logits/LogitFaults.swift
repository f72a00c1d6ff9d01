import CShims

// What in the gates no logit can come from. It is looked for when a logit has come out wrong, so that a parameter's numbers
// are not blamed on the token.

extension Logits {
  func fault() -> Fault? {
    gate?.fault("router.weight", "router.bias", matmul.kernels)
      ?? coarseGate?.fault("router.coarse.weight", "router.coarse.bias", matmul.kernels)
      ?? noiseGate?.fault("router.noise.weight", "", matmul.kernels)
  }
}

extension Gate {
  fileprivate func fault(
    _ weightName: StaticString, _ biasName: StaticString, _ kernels: UnsafePointer<moei_kernels>
  ) -> Fault? {
    let place = Int(kernels.pointee.first_not_finite(Int64(outputs * hidden), weight))
    if place < outputs * hidden {
      return Fault(
        .notFinite,
        "\(weightName)[\(place / hidden)][\(place % hidden)] is NaN or plus infinity: set it to a number, or load it again"
      )
    }
    guard let bias else { return nil }
    let output = Int(kernels.pointee.first_not_finite(Int64(outputs), bias))
    if output == outputs { return nil }
    return Fault(.notFinite, "\(biasName)[\(output)] is NaN or plus infinity: set it to a number, or load it again")
  }
}
