import CShims

// The experts' networks through the seam of row-major products: OpenBLAS, or the plain reference. An expert's rows are
// gathered block by block; experts are shared out between threads.

/// rows[i] = source[tokens[i]], times weights[i] where they are given, for `count` rows of H features.
private func gather(
  _ source: UnsafePointer<Float>, _ tokens: UnsafePointer<Int32>, weights: UnsafePointer<Float>?, count: Int,
  _ c: ExpertGroup, into rows: UnsafeMutablePointer<Float>, stride: Int, _ kernels: UnsafePointer<moei_kernels>
) {
  for row in 0..<count {
    let from = source + Int(tokens[row]) * c.hidden
    if let weights {
      kernels.pointee.scale(Int64(c.hidden), weights[row], from, rows + row * stride)
    } else {
      (rows + row * stride).update(from: from, count: c.hidden)
    }
  }
}

/// The bias in every row, or zero: what the products then add to.
private func start(
  _ rows: UnsafeMutablePointer<Float>, count: Int, width: Int, stride: Int, with bias: UnsafePointer<Float>?
) {
  for row in 0..<count {
    if let bias {
      (rows + row * stride).update(from: bias, count: width)
    } else {
      (rows + row * stride).update(repeating: 0, count: width)
    }
  }
}

/// Runs one expert per item.
struct PlainForward: Job {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let matmul: Matmul
  let x: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let dispatch: GroupRows
  let dropout: Dropout?
  /// On the tape, for all rows; or scratch for one block per lane, when there will be no backward.
  let kept: Preactivations<Float>?
  let passing: Preactivations<Float>?
  let numbers: PlainNumbers
  let gathered: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H]
  let activations: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let outputs: UnsafeMutablePointer<Float>?  // [rows, padded H]; nil where pre-activations alone are wanted

  init(
    _ arena: inout Arena, _ c: ExpertGroup, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    dispatch: GroupRows, dropout: Dropout?, kept: Preactivations<Float>?, outputs: UnsafeMutablePointer<Float>?
  ) {
    self.c = c
    kernels = context.kernels
    matmul = context.matmul
    self.x = x
    self.parameters = parameters
    self.dispatch = dispatch
    self.dropout = dropout
    self.kept = kept
    let rows = context.lanes * rowsPerBlock
    numbers = PlainNumbers(&arena, c, context: context, parameters: parameters)
    passing = kept == nil ? Preactivations(&arena, c, rows: rows, width: c.intermediate) : nil
    gathered = arena.take(Float.self, rows, c.hidden)
    activations = arena.take(Float.self, rows, c.intermediate)
    self.outputs = outputs
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.measureExperts(backward: false, gateUp: c.gateUpWork(dispatch), down: c.downWork(dispatch)) {
      () throws(Fault) in try context.run(dispatch.experts.count, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = dispatch.experts.lowerBound + item
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: expert, parameters)  // of which the biases
    let index = lane.pointee.index
    let mine = dispatch.rows(ofExpert: expert)
    let x = gathered + lane.pointee.index * rowsPerBlock * h  // [n,H]
    let a = c.linear ? x : activations + lane.pointee.index * rowsPerBlock * i  // [n,I]
    for block in 0..<blocks(of: mine.count) {
      if lane.pointee.shouldStop() { return }
      let range = rows(ofBlock: block, in: mine.count)
      let (first, n) = (mine.lowerBound + range.lowerBound, range.count)
      let (pairs, tokens) = (dispatch.pairs(from: first), dispatch.tokens(from: first))
      let pre = kept?.from(row: first - dispatch.first, c) ?? passing!.from(row: lane.pointee.index * rowsPerBlock, c)
      let onInput = c.weightOnInput ? dispatch.weights(from: first) : nil
      gather(self.x, tokens, weights: onInput, count: n, c, into: x, stride: h, kernels)
      numbers.round(x, n * h)
      if let gate = pre.gate {
        start(gate, count: n, width: i, stride: i, with: w.gateBias)
        matmul.addABt(n, i, h, x, lda: h, numbers.matrix(.gateWeight, expert, index), ldb: h, gate, ldc: i)
        numbers.round(gate, n * i)
      }
      if !c.linear {
        start(pre.up, count: n, width: i, stride: i, with: w.upBias)
        matmul.addABt(n, i, h, x, lda: h, numbers.matrix(.upWeight, expert, index), ldb: h, pre.up, ldc: i)
        numbers.round(pre.up, n * i)
        pre.activate(a, rows: n, width: i, from: 0, count: i, pairs: pairs, c, dropout, kernels)
        numbers.round(a, n * i)
      }
      guard let out = outputs.map({ $0 + first * padded(h) }) else { continue }  // [n, padded H]
      start(out, count: n, width: h, stride: padded(h), with: w.downBias)
      matmul.addABt(n, h, i, a, lda: i, numbers.matrix(.downWeight, expert, index), ldb: i, out, ldc: padded(h))
    }
  }
}

// MARK: backward

/// Differentiates one expert per item. The gradient of a routing weight is <dy, out> = <W_down^T dy, a> + <dy, b_down>,
/// and W_down^T dy is needed anyway, so the experts' outputs are neither kept nor computed again.
struct PlainBackward: Job {
  let c: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  let matmul: Matmul
  let x: UnsafePointer<Float>  // [T,H]
  let dy: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let dispatch: GroupRows
  let dropout: Dropout?
  let kept: Preactivations<Float>
  let numbers: PlainNumbers
  let gathered: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H]
  let activations: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let dInner: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let dGate: UnsafeMutablePointer<Float>?  // [lanes, rowsPerBlock, I]
  let dOutputs: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H] rows of dy
  let gradients: RowGradients
  let inputWeights: InputWeightGradient
  let passing: UnsafeMutablePointer<Float>?  // of one expert; nil where the parameters have memory for all
  // Either half may be left out.
  private var findsInputs = true  // gradients of the routing weights and of x
  private var addsWeights = true  // those of matrices and biases

  init(
    _ arena: inout Arena, _ c: ExpertGroup, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, dispatch: GroupRows, dropout: Dropout?,
    kept: Preactivations<Float>, gradients: RowGradients, passing: UnsafeMutablePointer<Float>?
  ) {
    self.c = c
    kernels = context.kernels
    matmul = context.matmul
    self.x = x
    self.dy = dy
    self.parameters = parameters
    self.dispatch = dispatch
    self.dropout = dropout
    self.gradients = gradients
    self.passing = passing
    inputWeights = InputWeightGradient(
      c: c, kernels: context.kernels, x: x, dispatch: dispatch, gradients: gradients)
    self.kept = kept
    numbers = PlainNumbers(&arena, c, context: context, parameters: parameters)
    let rows = context.lanes * rowsPerBlock
    gathered = arena.take(Float.self, rows, c.hidden)
    activations = arena.take(Float.self, rows, c.intermediate)
    dInner = arena.take(Float.self, rows, c.intermediate)
    dGate = c.gated ? arena.take(Float.self, rows, c.intermediate) : nil
    dOutputs = arena.take(Float.self, rows, c.hidden)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.measureExperts(
      backward: true, gateUp: ofHalves(c.gateUpWork(dispatch)), down: ofHalves(c.downWork(dispatch))
    ) { () throws(Fault) in
      try context.run(dispatch.experts.count, self)
      if c.weightOnInput && findsInputs { try inputWeights.run(in: context) }
    }
  }

  private func ofHalves(_ work: Work) -> Work { findsInputs && addsWeights ? work.twice : work }

  func runInputs(in context: ContextPointer) throws(Fault) {
    var half = self
    half.addsWeights = false
    try half.run(in: context)
  }

  func runWeights(in context: ContextPointer) throws(Fault) {
    var half = self
    half.findsInputs = false
    try half.run(in: context)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = dispatch.experts.lowerBound + item
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: expert, parameters)  // of which the biases
    let grad =
      !addsWeights
      ? nil : passing.map { ExpertTensors(passing: $0, c) } ?? ExpertTensors(gradientsIn: parameters, c, expert: expert)
    let mine = dispatch.rows(ofExpert: expert)
    let index = lane.pointee.index
    let x = gathered + index * rowsPerBlock * h  // [n,H]
    let a = c.linear ? x : activations + index * rowsPerBlock * i  // [n,I]
    let da = dInner + index * rowsPerBlock * i  // [n,I]
    for block in 0..<blocks(of: mine.count) {
      if lane.pointee.shouldStop() { return }
      let range = rows(ofBlock: block, in: mine.count)
      let (first, n) = (mine.lowerBound + range.lowerBound, range.count)
      let (pairs, tokens) = (dispatch.pairs(from: first), dispatch.tokens(from: first))
      let weights = dispatch.weights(from: first)
      let pre = kept.from(row: first - dispatch.first, c)
      let rows = dOutputs + index * rowsPerBlock * h  // [n,H]
      let dx = gradients.dRows + first * padded(h)  // [n, padded H]

      gather(self.x, tokens, weights: c.weightOnInput ? weights : nil, count: n, c, into: x, stride: h, kernels)
      numbers.round(x, n * h)
      gather(dy, tokens, weights: nil, count: n, c, into: rows, stride: h, kernels)
      numbers.round(rows, n * h)
      if !c.linear {
        pre.activate(a, rows: n, width: i, from: 0, count: i, pairs: pairs, c, dropout, kernels)
        numbers.round(a, n * i)
      }

      // da = dy W_down, still without the routing weight, whose gradient it gives.
      da.update(repeating: 0, count: n * i)
      matmul.addAB(n, i, h, rows, lda: h, numbers.matrix(.downWeight, expert, index), ldb: i, da, ldc: i)
      for row in 0..<n {
        let (pair, dy) = (Int(pairs[row]), dy + Int(tokens[row]) * h)
        if !c.weightOnInput {
          if findsInputs {
            var slope = kernels.pointee.dot(Int64(i), da + row * i, a + row * i)
            if let bias = w.downBias { slope += kernels.pointee.dot(Int64(h), dy, bias) }
            gradients.dWeights[pair] = slope
          }
          // From here on with the weight: the gradient of this expert's own output, and what follows from it.
          kernels.pointee.scale(Int64(h), weights[row], dy, rows + row * h)
          kernels.pointee.scale(Int64(i), weights[row], da + row * i, da + row * i)
        }
        if let dropout { dropout.apply(da + row * i, pair: pair, from: 0, count: i) }
      }
      numbers.round(rows, n * h)
      if let grad {
        matmul.addAtB(h, i, n, rows, lda: h, a, ldb: i, grad.downWeight, ldc: i)
        if let bias = grad.downBias { addRows(rows, count: n, width: h, to: bias) }
      }

      if c.linear {
        if !findsInputs { continue }
        for row in 0..<n { (dx + row * padded(h)).update(from: da + row * h, count: h) }
        continue
      }
      // Through the activation. da becomes the gradient of the up projection.
      if findsInputs { start(dx, count: n, width: h, stride: padded(h), with: nil) }
      if let gate = pre.gate {
        let dGate = dGate! + index * rowsPerBlock * i  // [n,I]
        kernels.pointee.activate_gated_backward(c.activation, Int64(n * i), gate, pre.up, da, dGate, da)
        numbers.round(dGate, n * i)
        if let grad {
          matmul.addAtB(i, h, n, dGate, lda: i, x, ldb: h, grad.gateWeight!, ldc: h)
          if let bias = grad.gateBias { addRows(dGate, count: n, width: i, to: bias) }
        }
        if findsInputs {
          matmul.addAB(n, h, i, dGate, lda: i, numbers.matrix(.gateWeight, expert, index), ldb: h, dx, ldc: padded(h))
        }
      } else {
        kernels.pointee.activate_backward(c.activation, Int64(n * i), pre.up, da)
      }
      numbers.round(da, n * i)
      if let grad {
        matmul.addAtB(i, h, n, da, lda: i, x, ldb: h, grad.upWeight, ldc: h)
        if let bias = grad.upBias { addRows(da, count: n, width: i, to: bias) }
      }
      if findsInputs {
        matmul.addAB(n, h, i, da, lda: i, numbers.matrix(.upWeight, expert, index), ldb: h, dx, ldc: padded(h))
      }
    }
  }

  /// A bias's gradient: its rows added up in ascending order.
  private func addRows(
    _ rows: UnsafePointer<Float>, count: Int, width: Int, to sum: UnsafeMutablePointer<Float>
  ) {
    for row in 0..<count { kernels.pointee.add(Int64(width), rows + row * width, sum) }
  }
}
