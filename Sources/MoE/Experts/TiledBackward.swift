import CShims

// The experts' gradients through our own kernels. Four steps, each shared out between threads:
//   1. da = dy W_down; with it the routing weights' gradient; through the activation to dup and dgate;
//   2. the routing weights' gradients summed up (or, where weights multiply what experts read, made from step 3);
//   3. dx of every row = dgate W_gate + dup W_up;
//   4. dW_gate, dW_up = dgate^T x, dup^T x;  dW_down = (w dy)^T a;  biases.
// Of linear experts a is x, and da, times the routing weight, is dx: there is no third step.
// The gradient of a routing weight is <dy, out> = <W_down^T dy, a> + <dy, b_down>, and W_down^T dy is needed anyway, so
// the experts' outputs are neither kept nor computed again.

struct TiledBackward<P: Precision> {
  /// [1] In scratch: on a small stack what the steps read is dear, and so is each copy of it.
  private let steps: UnsafeMutablePointer<TiledSteps<P>>

  @inline(never) init(
    _ arena: inout Arena, _ work: GroupWork, kept: Preactivations<P.Element>, _ gradients: GroupGradients
  ) {
    steps = arena.take(TiledSteps<P>.self, 1)
    let made = TiledSteps<P>(&arena, work, kept: kept, gradients)
    if !arena.isMeasuring { steps.initialize(to: made) }
  }

  func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    let (c, wantsGradients) = (steps.pointee.inner.c, steps.pointee.inner.source.wantsGradients)
    if wantsGradients && !c.weightOnInput {
      try runFirst(in: context)
      return try runLater(in: context, findsInput: needInputGradient && !c.linear)
    }
    try runInputs(in: context, needInputGradient: needInputGradient)
    if wantsGradients { try runWeights(in: context, again: false) }
  }

  /// Step 1.
  @inline(never) private func runFirst(in context: ContextPointer) throws(Fault) {
    try context.measure(.down, backward: true, steps.pointee.inner.work.downWork) { () throws(Fault) in
      try steps.pointee.inner.run(in: context)
    }
  }

  /// Steps 2 to 4, each of which waits for the first one alone.
  @inline(never) private func runLater(in context: ContextPointer, findsInput: Bool) throws(Fault) {
    let (gateUp, down) = (steps.pointee.inner.work.gateUpWork, steps.pointee.inner.work.downWork)
    try context.measureExperts(backward: true, gateUp: findsInput ? gateUp.twice : gateUp, down: down) {
      () throws(Fault) in
      let later = LaterSteps(UnsafePointer(steps), findsInput: findsInput)
      try context.run(later.items, later)
    }
  }

  /// Steps 1 to 3.
  @inline(never) func runInputs(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    let c = steps.pointee.inner.c
    try runFirst(in: context)
    try context.measure(.gateUp, backward: true, steps.pointee.inner.work.gateUpWork) { () throws(Fault) in
      if !c.weightOnInput { try steps.pointee.slopes.run(in: context) }
      if (needInputGradient || c.weightOnInput) && !c.linear { try steps.pointee.input.run(in: context) }
      if c.weightOnInput { try steps.pointee.slopesOfInputs.run(in: context) }
    }
  }

  /// Step 4, where `again` with the first one before it, whose results are gone.
  @inline(never) func runWeights(in context: ContextPointer, again: Bool) throws(Fault) {
    if again { try runFirst(in: context) }
    let (gateUp, down) = (steps.pointee.inner.work.gateUpWork, steps.pointee.inner.work.downWork)
    try context.measureExperts(backward: true, gateUp: gateUp, down: down) { () throws(Fault) in
      try steps.pointee.weights.run(in: context)
    }
  }
}

/// What the steps of one run of experts read and write.
private struct TiledSteps<P: Precision> {
  let inner: TiledInnerGradient<P>
  let slopes: SlopeSums
  let input: TiledInputGradient<P>
  let weights: TiledWeightGradient<P>

  init(_ arena: inout Arena, _ work: GroupWork, kept: Preactivations<P.Element>, _ gradients: GroupGradients) {
    inner = TiledInnerGradient(&arena, work, kept: kept, gradients)
    slopes = SlopeSums(work: work, gradients: gradients, slopes: inner.slopes)
    input = TiledInputGradient(&arena, inner)
    weights = TiledWeightGradient(&arena, inner)
  }

  var slopesOfInputs: InputWeightGradient { InputWeightGradient(work: inner.work, gradients: inner.gradients) }
}

/// Steps 2 to 4, shared out at once, so that threads wait for each other but once.
private struct LaterSteps<P: Precision>: Job {
  let steps: UnsafePointer<TiledSteps<P>>
  // How many items each of them has. The last ones are the smallest.
  private let slopes: Int
  private let inputs: Int
  private let weights: Int

  init(_ steps: UnsafePointer<TiledSteps<P>>, findsInput: Bool) {
    self.steps = steps
    let dispatch = steps.pointee.inner.dispatch
    slopes = dispatch.experts.count
    inputs = findsInput ? steps.pointee.input.list.fill(dispatch) : 0
    weights = steps.pointee.weights.list.fill(dispatch)
  }

  var items: Int { slopes + inputs + weights }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    if item < slopes {
      runSlopes(item, lane)
    } else if item < slopes + inputs {
      runInput(item - slopes, lane)
    } else {
      runWeights(item - slopes - inputs, lane)
    }
  }

  // Each has a frame of its own, which the others' would add to.
  @inline(never) private func runSlopes(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    steps.pointee.slopes.run(item, lane)
  }
  @inline(never) private func runInput(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    steps.pointee.input.run(item, lane)
  }
  @inline(never) private func runWeights(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    steps.pointee.weights.run(item, lane)
  }
}

/// Step 1.
struct TiledInnerGradient<P: Precision>: GroupBackwardJob {
  let work: GroupWork
  let gradients: GroupGradients  // whose dRows are written here for linear experts
  let kept: Preactivations<P.Element>
  let list: WorkList
  // [rows, padded I], tiled for products of features, and for sums over tokens; the same array in float32. All of them from the
  // group's first row on.
  let dUp: UnsafeMutablePointer<P.Element>
  let dUpTokens: UnsafeMutablePointer<P.Element>
  let dGate: UnsafeMutablePointer<P.Element>?
  let dGateTokens: UnsafeMutablePointer<P.Element>?
  let activations: UnsafeMutablePointer<P.Element>  // for sums over tokens
  let slopes: UnsafeMutablePointer<Float>  // [rows, chunks of I] <da, a>, chunk by chunk
  // Scratch of each thread.
  let gatheredRows: Int
  let gathered: UnsafeMutablePointer<P.Element>  // [lanes, gatheredRows, padded H] dy, tiled
  let packed: UnsafeMutablePointer<P.Element>  // [lanes, pieceSize]
  let threadRows: UnsafeMutablePointer<Float>  // [lanes, panelsAtOnce, gatheredRows, 32] da, tiled
  let chunk: UnsafeMutablePointer<Float>  // [lanes, tile height, 32]: what dropout multiplies by, or rows of x
  let zeros: UnsafeMutablePointer<Float>  // [lanes, 32] what da starts from

  init(_ arena: inout Arena, _ work: GroupWork, kept: Preactivations<P.Element>, _ gradients: GroupGradients) {
    self.work = work
    self.gradients = gradients
    self.kept = kept
    let (c, lanes, most) = (work.c, work.lanes, work.dispatch.most)
    list = WorkList(&arena, work, unit: P.unit, chunks: chunks(of: c.intermediate), tilesPerPiece: gatheredTiles)
    let (rows, width) = (ExpertPiece.places(most, experts: c.experts, unit: P.unit), padded(c.intermediate))
    let before = work.dispatch.placesBefore(unit: P.unit) * width
    func take() -> UnsafeMutablePointer<P.Element> { arena.take(P.Element.self, rows, width) - before }
    dUp = take()
    dUpTokens = P.unit == 1 ? dUp : take()
    dGate = c.gated ? take() : nil
    dGateTokens = P.unit == 1 || !c.gated ? dGate : take()
    activations = take()
    let parts = chunks(of: c.intermediate)
    slopes = arena.take(Float.self, most, parts) - work.dispatch.rowsBefore * parts
    gatheredRows = work.rows(ofTiles: gatheredTiles)
    gathered = arena.take(P.Element.self, lanes * gatheredRows, padded(c.hidden))
    packed = arena.take(P.Element.self, lanes, P.pieceSize)
    // In float32 everything is computed in the arrays themselves.
    let beside = P.unit == 1 ? 0 : lanes * chunkWidth
    threadRows = arena.take(Float.self, beside * panelsAtOnce, gatheredRows)
    chunk = arena.take(Float.self, lanes * Int(work.kernels.pointee.tile_height), chunkWidth)
    zeros = arena.take(Float.self, lanes, chunkWidth)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(list.fill(dispatch), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = list.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = source.tensors(c, expert: piece.expert)
    let thread = lane.pointee.index
    let gathered = gathered + thread * gatheredRows * padded(h)
    let threadRows = threadRows + thread * panelsAtOnce * gatheredRows * chunkWidth
    let zero = zeros + thread * chunkWidth
    fillStart(zero, with: nil, 0)

    piece.gather(P.self, piece.range, h, of: dy, xRow: h, weighted: false, into: gathered, kernels)
    func columns(_ chunk: Int) -> Int { min(chunkWidth, i - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel<P> {
      if let across = work.across(P.self, .down, piece.expert, chunk) { return across }
      return WeightPanel(w.downWeight.from(column: chunk * chunkWidth), transposed: false, columns: columns(chunk))
    }
    let products = PanelProducts<P>(
      kernels: kernels, tiles: piece.tiles, range: piece.range, depth: h, packed: packed + thread * P.pieceSize)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      func place(_ chunk: Int, _ rows: Range<Int>) -> Int { piece.place(chunk, rows, width: padded(i)) }
      /// Where da is computed, for chunk number `index` of this run.
      func result(_ index: Int, _ rows: Range<Int>) -> UnsafeMutablePointer<Float> {
        P.workplace(
          dUp + place(run.lowerBound + index, rows),
          or: threadRows + (index * gatheredRows + rows.lowerBound - piece.first) * chunkWidth)
      }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound < piece.chunks.upperBound ? panel(run.upperBound) : nil },
        a: { UnsafePointer(gathered + ($0.lowerBound - piece.first) * padded(h)) }, start: { _ in UnsafePointer(zero) },
        c: result, cStride: chunkWidth)
      for chunk in run {
        for tile in piece.range {
          let rows = piece.tiles.rows(tile)
          let (da, tokens) = (
            result(chunk - run.lowerBound, rows), piece.placeOfTokens(P.self, chunk, rows, width: padded(i))
          )
          if c.linear {
            passOn(da, tokensAt: tokens, piece, rows, chunk, columns(chunk), thread)
          } else {
            differentiate(da, at: place(chunk, rows), tokensAt: tokens, piece, rows, chunk, columns(chunk), thread)
          }
        }
      }
    }
  }

  /// From da = dy W_down to dup and dgate, for one chunk of one tile.
  private func differentiate(
    _ da: UnsafeMutablePointer<Float>, at place: Int, tokensAt tokens: Int, _ piece: ExpertPiece, _ rows: Range<Int>,
    _ chunk: Int, _ columns: Int, _ thread: Int
  ) {
    let pairs = piece.pairs(rows)
    let factors = dropout.map { dropout in
      let factors = scratch(thread)
      factors.update(repeating: 1, count: rows.count * chunkWidth)
      for r in 0..<rows.count {
        dropout.apply(factors + r * chunkWidth, pair: Int(pairs[r]), from: chunk * chunkWidth, count: columns)
      }
      return UnsafePointer(factors)
    }
    P.innerGradient(
      moei_inner_gradient(
        rows: Int64(rows.count), activation: c.activation, gate: kept.gate.map { UnsafeRawPointer($0 + place) },
        up: kept.up + place, da: da, weights: c.weightOnInput ? nil : piece.weights(rows), kept: factors,
        slopes: slopes(piece, rows, chunk), slopes_stride: Int64(chunks(of: c.intermediate)),
        a: activations + tokens, dgate: dGate.map { UnsafeMutableRawPointer($0 + place) },
        dgate_tokens: dGateTokens.map { UnsafeMutableRawPointer($0 + tokens) }, dup: dUp + place,
        dup_tokens: dUpTokens + tokens), kernels)
  }

  /// Linear experts: their activations are x, whose gradient da is.
  private func passOn(
    _ da: UnsafeMutablePointer<Float>, tokensAt tokens: Int, _ piece: ExpertPiece, _ rows: Range<Int>, _ chunk: Int,
    _ columns: Int, _ thread: Int
  ) {
    let (weights, slopes) = (piece.weights(rows), slopes(piece, rows, chunk))
    let a = P.workplace(activations + tokens, or: scratch(thread))
    kernels.pointee.gather(
      Int64(rows.count), Int64(columns), piece.tokens(rows), x + chunk * chunkWidth, Int64(c.hidden),
      c.weightOnInput ? weights : nil, a)
    P.round(rows.count * chunkWidth, a, by: activations + tokens, kernels)
    P.storeTokens(rows.count, a, into: activations + tokens, kernels)
    for r in 0..<rows.count {
      let da = da + r * chunkWidth
      slopes[r * chunks(of: c.intermediate)] = kernels.pointee.dot(Int64(chunkWidth), da, a + r * chunkWidth)
      // From here on with the routing weight: the gradient of this expert's own output.
      if !c.weightOnInput { kernels.pointee.scale(Int64(chunkWidth), weights[r], da, da) }
      (dRows + (piece.row(rows) + r) * padded(c.hidden) + chunk * chunkWidth).update(from: da, count: chunkWidth)
    }
  }

  /// Of a tile's first row; the next row's is `chunks(of: I)` further on.
  private func slopes(_ piece: ExpertPiece, _ rows: Range<Int>, _ chunk: Int) -> UnsafeMutablePointer<Float> {
    slopes + piece.rowInGroup(rows) * chunks(of: c.intermediate) + chunk
  }

  private func scratch(_ thread: Int) -> UnsafeMutablePointer<Float> {
    chunk + thread * Int(kernels.pointee.tile_height) * chunkWidth
  }
}

/// Step 2: <da, a> over the chunks in ascending order, then <dy, b_down>.
struct SlopeSums: GroupBackwardJob {
  let work: GroupWork
  let gradients: GroupGradients
  let slopes: UnsafePointer<Float>  // [rows, chunks of I]

  func run(in context: ContextPointer) throws(Fault) { try context.run(dispatch.experts.count, self) }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = dispatch.experts.lowerBound + item
    let count = chunks(of: c.intermediate)
    let rows = dispatch.rows(ofExpert: expert)
    let (pairs, tokens) = (dispatch.pairs(from: rows.lowerBound), dispatch.tokens(from: rows.lowerBound))
    let bias = source.downBias(c, expert: expert)
    for r in 0..<rows.count {
      let mine = slopes + (rows.lowerBound - dispatch.first + r) * count
      var slope: Float = 0
      for chunk in 0..<count { slope += mine[chunk] }
      if let bias { slope += kernels.pointee.dot(Int64(c.hidden), dy + Int(tokens[r]) * c.hidden, bias) }
      dWeights[Int(pairs[r])] = slope
    }
  }
}

/// Step 3.
struct TiledInputGradient<P: Precision>: GroupBackwardJob {
  let inner: TiledInnerGradient<P>
  let list: WorkList
  // Scratch of each thread.
  let packed: UnsafeMutablePointer<P.Element>  // [lanes, pieceSize]
  let zeros: UnsafeMutablePointer<Float>  // [lanes, 32]

  var work: GroupWork { inner.work }
  var gradients: GroupGradients { inner.gradients }

  init(_ arena: inout Arena, _ inner: TiledInnerGradient<P>) {
    self.inner = inner
    let work = inner.work
    list = WorkList(&arena, work, unit: P.unit, chunks: chunks(of: work.c.hidden), tilesPerPiece: gatheredTiles)
    packed = arena.take(P.Element.self, work.lanes, P.pieceSize)
    zeros = arena.take(Float.self, work.lanes, chunkWidth)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(list.fill(dispatch), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = list.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = source.tensors(c, expert: piece.expert)
    let zero = zeros + lane.pointee.index * chunkWidth
    fillStart(zero, with: nil, 0)
    let products = PanelProducts<P>(
      kernels: kernels, tiles: piece.tiles, range: piece.range, depth: i,
      packed: packed + lane.pointee.index * P.pieceSize)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      func panel(_ part: PreparedWeights.Matrix, _ chunk: Int) -> WeightPanel<P> {
        if let across = work.across(P.self, part, piece.expert, chunk) { return across }
        let matrix = part == .up ? w.upWeight : w.gateWeight!
        return WeightPanel(
          matrix.from(column: chunk * chunkWidth), transposed: false, columns: min(chunkWidth, h - chunk * chunkWidth))
      }
      func add(
        _ gradient: UnsafePointer<P.Element>, _ part: PreparedWeights.Matrix, start: UnsafePointer<Float>?,
        next: () -> WeightPanel<P>?
      ) {
        products.run(
          run.count, { panel(part, run.lowerBound + $0) }, next: next,
          a: { gradient + piece.place(0, $0, width: padded(i)) }, start: { _ in start },
          c: { dRows + piece.row($1) * padded(h) + (run.lowerBound + $0) * chunkWidth },
          cStride: padded(h))
      }
      let first: PreparedWeights.Matrix = inner.dGate == nil ? .up : .gate
      func afterUp() -> WeightPanel<P>? {
        run.upperBound < piece.chunks.upperBound ? panel(first, run.upperBound) : nil
      }
      if let dGate = inner.dGate {
        add(dGate, .gate, start: zero, next: { panel(.up, run.lowerBound) })
      }
      add(inner.dUp, .up, start: inner.dGate == nil ? UnsafePointer(zero) : nil, next: afterUp)
    }
  }
}
