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

  /// Some columns of z [tokens, outputs], all of them where none are said.
  func forward(
    _ tokens: Range<Int>, columns: Range<Int>? = nil, into z: UnsafeMutablePointer<Float>, _ matmul: Matmul,
    _ scratch: UnsafeMutablePointer<Float>
  ) {
    let columns = columns ?? 0..<outputs
    let (first, count) = (columns.lowerBound, columns.count)
    for row in 0..<tokens.count {
      let own = z + row * outputs + first
      if let bias { own.update(from: bias + first, count: count) } else { own.update(repeating: 0, count: count) }
    }
    matmul.addABt(
      tokens.count, count, hidden, input + tokens.lowerBound * hidden, lda: hidden, weight + first * hidden,
      ldb: hidden, z + first, ldc: outputs, scratch)
  }

  // MARK: backward

  /// Whether all weights are finite; false, too, where only their sum is none.
  func isFinite(_ kernels: UnsafePointer<moei_kernels>) -> Bool {
    kernels.pointee.sum(Int64(outputs * hidden), weight).isFinite
  }

  /// dr[t] += dz[t] W for some tokens; dz [T, outputs], dr [T,H]
  func addInputGradient(
    _ tokens: Range<Int>, _ dz: UnsafePointer<Float>, to dr: UnsafeMutablePointer<Float>, _ matmul: Matmul,
    _ scratch: UnsafeMutablePointer<Float>
  ) {
    if !isFinite(matmul.kernels) { return addInputGradientOfSome(tokens, dz, to: dr, matmul.kernels) }
    matmul.addAB(
      tokens.count, hidden, outputs, dz + tokens.lowerBound * outputs, lda: outputs, weight, ldb: hidden,
      dr + tokens.lowerBound * hidden, ldc: hidden, scratch)
  }

  /// dr[t] by the chains of `addInputGradient`, but without the logits whose gradient is 0: a weight of minus infinity, which
  /// makes a logit that and its gradient 0, adds nothing.
  private func addInputGradientOfSome(
    _ tokens: Range<Int>, _ dz: UnsafePointer<Float>, to dr: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    for t in tokens {
      for e in 0..<outputs where dz[t * outputs + e] != 0 {
        kernels.pointee.add_scaled(Int64(hidden), dz[t * outputs + e], weight + e * hidden, dr + t * hidden)
      }
    }
  }
}

/// Of a block of tokens that has all threads to itself, 32 of the outputs for each item.
struct GateOutputs: Job {
  let gate: Gate
  let tokens: Range<Int>
  let z: UnsafeMutablePointer<Float>  // [tokens, outputs]
  let logits: Logits  // whose scratch is used

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = item * chunkWidth..<min((item + 1) * chunkWidth, gate.outputs)
    gate.forward(tokens, columns: columns, into: z, logits.matmul, logits.scratch(lane.pointee.index))
  }
}

/// dW += dz^T r, tokens in ascending order, some features of r for each item;  db += the sum of dz. What is frozen is left out.
struct GateGradient: Job {
  let gate: Gate
  let routing: Routing
  let dz: UnsafePointer<Float>  // [T, outputs]
  let logits: Logits  // whose scratch is used

  private var kernels: UnsafePointer<moei_kernels> { logits.matmul.kernels }

  static var width: Int { 256 }

  func run(_ part: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, e) = (gate.hidden, gate.outputs)
    let column = part * Self.width
    for block in 0..<blocks(of: routing.tokens) {
      let tokens = rows(ofBlock: block, in: routing.tokens)
      let columns = column..<min(h, column + Self.width)
      if let weight = gate.weightGrad {
        if isFinite(tokens, columns) {
          add(tokens, columns, to: weight, lane.pointee.index)
        } else {
          // 0 times what padding has would be no number.
          for t in tokens where routing.isRouted(t) { add(t..<t + 1, columns, to: weight, lane.pointee.index) }
        }
      }
      if let bias = gate.biasGrad, part == 0 {
        for t in tokens { kernels.pointee.add(Int64(e), dz + t * e, bias) }
      }
    }
  }

  private func add(
    _ tokens: Range<Int>, _ columns: Range<Int>, to weight: UnsafeMutablePointer<Float>, _ lane: Int
  ) {
    let (h, e) = (gate.hidden, gate.outputs)
    logits.matmul.addAtB(
      e, columns.count, tokens.count, dz + tokens.lowerBound * e, lda: e,
      gate.input + tokens.lowerBound * h + columns.lowerBound, ldb: h, weight + columns.lowerBound, ldc: h,
      logits.scratch(lane))
  }

  /// Whether what the gate read of padding is; false, too, where only its sum is none.
  private func isFinite(_ tokens: Range<Int>, _ columns: Range<Int>) -> Bool {
    for t in tokens where !routing.isValid(t) {
      let row = gate.input + t * gate.hidden + columns.lowerBound
      if !kernels.pointee.sum(Int64(columns.count), row).isFinite { return false }
    }
    return true
  }
}
