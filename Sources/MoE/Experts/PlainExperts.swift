import CShims

// The experts' networks through the seam of row-major products: OpenBLAS, or the plain reference. An expert's rows are
// gathered block by block; experts are shared out between threads.

/// rows[i] = source[tokens[i]], times weights[i] where they are given, for `count` rows of H features.
private func gather(
  _ source: UnsafePointer<Float>, _ tokens: UnsafePointer<Int32>, weights: UnsafePointer<Float>?, count: Int,
  _ work: GroupWork, into rows: UnsafeMutablePointer<Float>
) {
  let h = work.c.hidden
  for row in 0..<count {
    let from = source + Int(tokens[row]) * h
    if let weights {
      work.kernels.pointee.scale(Int64(h), weights[row], from, rows + row * h)
    } else {
      (rows + row * h).update(from: from, count: h)
    }
  }
}

/// The bias in every row, or zero: what the products then add to.
private func fillRows(
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
struct PlainForward: PlainJob {
  let work: GroupWork
  /// Where pre-activations go that a backward reads: on the tape, or in its scratch; nil where none are kept.
  let kept: Preactivations<Float>?
  let unkept: Preactivations<Float>?  // [lanes, rowsPerBlock, I] in its place
  let floats: UnsafeMutablePointer<Float>?
  let gathered: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H]
  let activations: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let outputs: UnsafeMutablePointer<Float>?  // [rows, padded H]; nil where pre-activations alone are wanted

  init(
    _ arena: inout Arena, _ work: GroupWork, kept: Preactivations<Float>?, outputs: UnsafeMutablePointer<Float>?
  ) {
    self.work = work
    self.kept = kept
    self.outputs = outputs
    let (c, rows) = (work.c, work.lanes * rowsPerBlock)
    floats = work.floats(&arena)
    unkept = kept == nil ? Preactivations(&arena, c, rows: rows, width: c.intermediate) : nil
    gathered = arena.take(Float.self, rows, c.hidden)
    activations = arena.take(Float.self, rows, c.intermediate)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try work.requireCurrentWeights()
    try work.noteRows(in: context)
    if let squares = work.squares?.down { work.count(in: squares) }
    // Without outputs it is a backward that takes the first step again.
    let isAgain = outputs == nil
    try context.measureExperts(
      backward: isAgain, gateUp: work.gateUpWork, down: isAgain ? Work() : work.downWork
    ) { () throws(Fault) in try context.run(dispatch.experts.count, self) }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = dispatch.experts.lowerBound + item
    let (h, i) = (c.hidden, c.intermediate)
    let w = source.tensors(c, expert: expert)
    let index = lane.pointee.index
    let mine = dispatch.rows(ofExpert: expert)
    let x = gathered + index * rowsPerBlock * h  // [n,H]
    let a = c.linear ? x : activations + index * rowsPerBlock * i  // [n,I]
    for block in 0..<blocks(of: mine.count) {
      if lane.pointee.shouldStop() { return }
      let range = rows(ofBlock: block, in: mine.count)
      let (first, n) = (mine.lowerBound + range.lowerBound, range.count)
      let (pairs, tokens) = (dispatch.pairs(from: first), dispatch.tokens(from: first))
      let pre = kept?.from(row: first - dispatch.first, c) ?? unkept!.from(row: index * rowsPerBlock, c)
      gather(self.x, tokens, weights: c.weightOnInput ? dispatch.weights(from: first) : nil, count: n, work, into: x)
      round(x, n * h)
      if let gate = pre.gate {
        fillRows(gate, count: n, width: i, stride: i, with: w.gateBias)
        let weight = matrix(.gate, w, expert: expert, index)
        matmul.addABt(n, i, h, x, lda: h, weight.start, ldb: weight.stride, gate, ldc: i)
        round(gate, n * i)
      }
      if !c.linear {
        fillRows(pre.up, count: n, width: i, stride: i, with: w.upBias)
        let weight = matrix(.up, w, expert: expert, index)
        matmul.addABt(n, i, h, x, lda: h, weight.start, ldb: weight.stride, pre.up, ldc: i)
        round(pre.up, n * i)
        pre.activate(a, rows: n, width: i, from: 0, count: i, pairs: pairs, work)
        round(a, n * i)
      }
      if let squares = work.squares?.down {
        for row in 0..<n { squares.add(a + row * i, to: expert, 0..<i) }
        if let sums = squares.product(expert) { matmul.addAtB(i, i, n, a, lda: i, a, ldb: i, sums, ldc: i) }
      }
      guard let out = outputs.map({ $0 + first * padded(h) }) else { continue }  // [n, padded H]
      fillRows(out, count: n, width: h, stride: padded(h), with: w.downBias)
      let weight = matrix(.down, w, expert: expert, index)
      matmul.addABt(n, h, i, a, lda: i, weight.start, ldb: weight.stride, out, ldc: padded(h))
    }
  }
}

// MARK: backward

/// Differentiates one expert per item. The gradient of a routing weight is <dy, out> = <W_down^T dy, a> + <dy, b_down>,
/// and W_down^T dy is needed anyway, so the experts' outputs are neither kept nor computed again.
struct PlainBackward: GroupBackwardJob, PlainJob {
  let work: GroupWork
  let gradients: GroupGradients
  let kept: Preactivations<Float>
  let floats: UnsafeMutablePointer<Float>?
  let gathered: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H]
  let activations: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let dInner: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, I]
  let dGate: UnsafeMutablePointer<Float>?  // [lanes, rowsPerBlock, I]
  let dOutputs: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, H] rows of dy
  let waiting: UnsafeMutablePointer<Float>?  // [lanes, 3, H, I] sums that cannot wait in the gradient
  // Either half may be left out.
  private var findsInputs = true  // gradients of the routing weights and of x
  private var addsWeights: Bool  // those of matrices and biases

  init(_ arena: inout Arena, _ work: GroupWork, kept: Preactivations<Float>, _ gradients: GroupGradients) {
    self.work = work
    self.gradients = gradients
    self.kept = kept
    addsWeights = work.source.wantsGradients
    let (c, rows) = (work.c, work.lanes * rowsPerBlock)
    floats = work.floats(&arena)
    gathered = arena.take(Float.self, rows, c.hidden)
    activations = arena.take(Float.self, rows, c.intermediate)
    dInner = arena.take(Float.self, rows, c.intermediate)
    dGate = c.gated ? arena.take(Float.self, rows, c.intermediate) : nil
    dOutputs = arena.take(Float.self, rows, c.hidden)
    let waits = work.source.gradientsWaitElsewhere(rowsOnly: true)
    waiting = waits ? arena.take(Float.self, work.lanes * 3 * c.hidden, c.intermediate) : nil
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.measureExperts(backward: true, gateUp: ofHalves(work.gateUpWork), down: ofHalves(work.downWork)) {
      () throws(Fault) in
      try context.run(dispatch.experts.count, self)
      if c.weightOnInput && findsInputs { try InputWeightGradient(work: work, gradients: gradients).run(in: context) }
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
    let wanted = addsWeights ? gradients.tensors(work, expert: expert) : nil
    let mine = dispatch.rows(ofExpert: expert)
    if mine.isEmpty { return }
    let grad = wanted.map { begin($0, lane.pointee.index) }
    defer { if let wanted, let grad { finish(wanted, grad) } }
    for block in 0..<blocks(of: mine.count) {
      if lane.pointee.shouldStop() { return }
      let range = rows(ofBlock: block, in: mine.count)
      differentiate(mine.lowerBound + range.lowerBound, range.count, of: expert, grad, lane.pointee.index)
    }
  }

  /// Where the sums of an expert's gradients are made: in the gradients, or elsewhere until they are complete.
  private func begin(_ wanted: ExpertGradients, _ lane: Int) -> ExpertGradients {
    let (h, i) = (c.hidden, c.intermediate)
    func place(_ gradient: GradientMatrix?, _ number: Int, rows: Int, columns: Int) -> GradientMatrix? {
      guard let gradient else { return nil }
      if gradient.isRowsOfFloats {
        if gradient.overwrites { gradient.clear(rows: rows, columns: columns) }
        return gradient
      }
      let own = GradientMatrix(waiting! + (lane * 3 + number) * h * i, rowStride: columns)
      gradient.begin(own.floats(0, 0), stride: columns, from: 0, 0, rows: rows, columns: columns, kernels)
      return own
    }
    return ExpertGradients(
      gate: place(wanted.gateWeight, 0, rows: i, columns: h), gateBias: wanted.gateBias,
      up: place(wanted.upWeight, 1, rows: i, columns: h), upBias: wanted.upBias,
      down: place(wanted.downWeight, 2, rows: h, columns: i), downBias: wanted.downBias)
  }

  private func finish(_ wanted: ExpertGradients, _ sums: ExpertGradients) {
    func store(_ gradient: GradientMatrix?, _ own: GradientMatrix?, rows: Int, columns: Int) {
      guard let gradient, let own, !gradient.isRowsOfFloats else { return }
      gradient.store(own.floats(0, 0), stride: columns, to: 0, 0, rows: rows, columns: columns, kernels)
    }
    store(wanted.gateWeight, sums.gateWeight, rows: c.intermediate, columns: c.hidden)
    store(wanted.upWeight, sums.upWeight, rows: c.intermediate, columns: c.hidden)
    store(wanted.downWeight, sums.downWeight, rows: c.hidden, columns: c.intermediate)
  }

  /// n rows of an expert, from `first` on.
  private func differentiate(_ first: Int, _ n: Int, of expert: Int, _ grad: ExpertGradients?, _ index: Int) {
    let (h, i) = (c.hidden, c.intermediate)
    let (pairs, tokens) = (dispatch.pairs(from: first), dispatch.tokens(from: first))
    let pre = kept.from(row: first - dispatch.first, c)
    let x = gathered + index * rowsPerBlock * h  // [n,H]
    let a = c.linear ? x : activations + index * rowsPerBlock * i  // [n,I]
    let da = dInner + index * rowsPerBlock * i  // [n,I]
    let rows = dOutputs + index * rowsPerBlock * h  // [n,H]
    let dx = findsInputs ? dRows + first * padded(h) : nil  // [n, padded H]
    let w = source.tensors(c, expert: expert)

    gather(self.x, tokens, weights: c.weightOnInput ? dispatch.weights(from: first) : nil, count: n, work, into: x)
    round(x, n * h)
    gather(dy, tokens, weights: nil, count: n, work, into: rows)
    round(rows, n * h)
    if !c.linear {
      pre.activate(a, rows: n, width: i, from: 0, count: i, pairs: pairs, work)
      round(a, n * i)
    }

    // da = dy W_down, still without the routing weight, whose gradient it gives.
    da.update(repeating: 0, count: n * i)
    let down = matrix(.down, w, expert: expert, index)
    matmul.addAB(n, i, h, rows, lda: h, down.start, ldb: down.stride, da, ldc: i)
    if !c.weightOnInput { weigh(first, n, of: expert, a, da, rows) }
    if let dropout { for row in 0..<n { dropout.apply(da + row * i, pair: Int(pairs[row]), from: 0, count: i) } }
    round(rows, n * h)
    if let grad { addWeightGradient(rows, width: h, times: a, width: i, n, to: grad.downWeight, grad.downBias) }

    if c.linear {
      if let dx { for row in 0..<n { (dx + row * padded(h)).update(from: da + row * h, count: h) } }
      return
    }
    // Through the activation. da becomes the gradient of the up projection.
    if let dx { fillRows(dx, count: n, width: h, stride: padded(h), with: nil) }
    /// dW += d^T x;  dx += d W
    func add(
      _ d: UnsafeMutablePointer<Float>, _ part: PreparedWeights.Matrix, _ weight: GradientMatrix?,
      _ bias: UnsafeMutablePointer<Float>?
    ) {
      round(d, n * i)
      addWeightGradient(d, width: i, times: x, width: h, n, to: weight, bias)
      guard let dx else { return }
      let weight = matrix(part, w, expert: expert, index)
      matmul.addAB(n, h, i, d, lda: i, weight.start, ldb: weight.stride, dx, ldc: padded(h))
    }
    if let gate = pre.gate {
      let dGate = dGate! + index * rowsPerBlock * i  // [n,I]
      kernels.pointee.activate_gated_backward(c.activation, Int64(n * i), gate, pre.up, da, dGate, da)
      add(dGate, .gate, grad?.gateWeight, grad?.gateBias)
    } else {
      kernels.pointee.activate_backward(c.activation, Int64(n * i), pre.up, da)
    }
    add(da, .up, grad?.upWeight, grad?.upBias)
  }

  /// The routing weights' gradients, from da without the weights. Then da and the rows of dy with them: the gradient of
  /// this expert's own output, and what follows from it.
  private func weigh(
    _ first: Int, _ n: Int, of expert: Int, _ a: UnsafePointer<Float>, _ da: UnsafeMutablePointer<Float>,
    _ rows: UnsafeMutablePointer<Float>
  ) {
    let (h, i, weights) = (c.hidden, c.intermediate, dispatch.weights(from: first))
    let (pairs, tokens) = (dispatch.pairs(from: first), dispatch.tokens(from: first))
    let bias = source.downBias(c, expert: expert)
    for row in 0..<n {
      let dy = dy + Int(tokens[row]) * h
      if findsInputs {
        var slope = kernels.pointee.dot(Int64(i), da + row * i, a + row * i)
        if let bias { slope += kernels.pointee.dot(Int64(h), dy, bias) }
        dWeights[Int(pairs[row])] = slope
      }
      kernels.pointee.scale(Int64(h), weights[row], dy, rows + row * h)
      kernels.pointee.scale(Int64(i), weights[row], da + row * i, da + row * i)
    }
  }

  /// dW [width, depth] += d^T x over n rows;  db += the rows of d, in ascending order.
  private func addWeightGradient(
    _ d: UnsafePointer<Float>, width: Int, times x: UnsafePointer<Float>, width depth: Int, _ n: Int,
    to weight: GradientMatrix?, _ bias: UnsafeMutablePointer<Float>?
  ) {
    if let weight {
      matmul.addAtB(width, depth, n, d, lda: width, x, ldb: depth, weight.floats(0, 0), ldc: weight.rowStride)
    }
    guard let bias else { return }
    for row in 0..<n { kernels.pointee.add(Int64(width), d + row * width, bias) }
  }
}
