import CShims

/// A linear map from what it reads to logits:  z = r W^T + b.
struct Gate {
  let outputs: Int
  let hidden: Int
  let input: UnsafePointer<Float>  // r [T,H]
  let weight: UnsafePointer<Float>  // W [outputs,H]
  let bias: UnsafePointer<Float>?  // b [outputs]
  let weightGrad: UnsafeMutablePointer<Float>?
  let biasGrad: UnsafeMutablePointer<Float>?

  /// nil where the layer has no such gate.
  init?(_ parameters: Parameters, _ weight: Parameters.Role, _ bias: Parameters.Role?, input: UnsafePointer<Float>) {
    guard let parameter = parameters[weight] else { return nil }
    (outputs, hidden) = (parameter.shape.0, parameter.shape.1)
    self.input = input
    self.weight = UnsafePointer(parameters.data(weight)!)
    self.bias = bias.flatMap { parameters.data($0) }.map { UnsafePointer($0) }
    weightGrad = parameters.grad(weight)
    biasGrad = bias.flatMap { parameters.grad($0) }
  }

  /// z [tokens, outputs]
  func forward(
    _ tokens: Range<Int>, into z: UnsafeMutablePointer<Float>, _ matmul: Matmul, _ scratch: UnsafeMutablePointer<Float>
  ) {
    for row in 0..<tokens.count {
      let own = z + row * outputs
      if let bias { own.update(from: bias, count: outputs) } else { own.update(repeating: 0, count: outputs) }
    }
    matmul.addABt(
      tokens.count, outputs, hidden, input + tokens.lowerBound * hidden, lda: hidden, weight, ldb: hidden, z,
      ldc: outputs, scratch)
  }

  // MARK: backward

  /// dr[t] += dz[t] W for some tokens; dz [T, outputs], dr [T,H]
  func addInputGradient(
    _ tokens: Range<Int>, _ dz: UnsafePointer<Float>, to dr: UnsafeMutablePointer<Float>, _ matmul: Matmul,
    _ scratch: UnsafeMutablePointer<Float>
  ) {
    matmul.addAB(
      tokens.count, hidden, outputs, dz + tokens.lowerBound * outputs, lda: outputs, weight, ldb: hidden,
      dr + tokens.lowerBound * hidden, ldc: hidden, scratch)
  }
}

/// dW += dz^T r, tokens in ascending order, some features of r for each item;  db += the sum of dz.
struct GateGradient: Job {
  let gate: Gate
  let dz: UnsafePointer<Float>  // [T, outputs]
  let tokens: Int
  let matmul: Matmul
  let kernels: UnsafePointer<moei_kernels>
  let logits: Logits  // whose scratch is used

  static var width: Int { 256 }

  func run(_ part: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, e) = (gate.hidden, gate.outputs)
    let column = part * Self.width
    for block in 0..<blocks(of: tokens) {
      let tokens = rows(ofBlock: block, in: tokens)
      let dz = dz + tokens.lowerBound * e
      matmul.addAtB(
        e, min(Self.width, h - column), tokens.count, dz, lda: e, gate.input + tokens.lowerBound * h + column, ldb: h,
        gate.weightGrad! + column, ldc: h, logits.scratch(lane.pointee.index))
      if let bias = gate.biasGrad, part == 0 {
        for row in 0..<tokens.count { kernels.pointee.add(Int64(e), dz + row * e, bias) }
      }
    }
  }
}
