import CShims

// The experts' gradients through our own kernels. Four steps, each shared out between threads:
//   1. da = dy W_down; with it the routing weights' gradient; through the activation to dup and dgate;
//   2. the routing weights' gradients summed up;
//   3. dx of every row = dgate W_gate + dup W_up;
//   4. dW_gate, dW_up = dgate^T x, dup^T x;  dW_down = (w dy)^T a;  biases.
// The gradient of a routing weight is <dy, out> = <W_down^T dy, a> + <dy, b_down>, and W_down^T dy is needed anyway, so
// the experts' outputs are neither kept nor computed again.

struct TiledBackward {
  let c: Configuration
  let dWeights: UnsafeMutablePointer<Float>  // [T,K] gradient of the routing weights
  let dRows: UnsafeMutablePointer<Float>  // [T*K, padded H] each row's gradient of x
  private let inner: TiledInnerGradient
  private let slopes: SlopeSums
  private let input: TiledInputGradient
  private let weights: TiledWeightGradient

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, tape: TapeContents
  ) {
    self.c = c
    dWeights = arena.take(Float.self, tape.routing.tokens, c.topK)
    dRows = arena.take(Float.self, tape.dispatch.pairs, padded(c.hidden))
    inner = TiledInnerGradient(&arena, c, context: context, dy: dy, parameters: parameters, tape: tape)
    slopes = SlopeSums(
      c: c, kernels: context.kernels, dy: dy, parameters: parameters, routing: tape.routing, dispatch: tape.dispatch,
      slopes: inner.slopes, dWeights: dWeights)
    input = TiledInputGradient(
      &arena, c, context: context, parameters: parameters, dispatch: tape.dispatch, inner: inner, dRows: dRows)
    weights = TiledWeightGradient(
      &arena, c, context: context, x: x, dy: dy, parameters: parameters, tape: tape, inner: inner)
  }

  func run(in context: ContextPointer, needInputGradient: Bool) throws(Fault) {
    try inner.run(in: context)
    try slopes.run(in: context)
    if needInputGradient { try input.run(in: context) }
    try weights.run(in: context)
  }
}

/// Step 1.
struct TiledInnerGradient: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let dy: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let routing: Routing
  let dispatch: Dispatch
  let dropout: Dropout?
  let kept: Preactivations
  let work: WorkList
  let activations: UnsafeMutablePointer<Float>  // [T*K, padded I], tiled
  let dUp: UnsafeMutablePointer<Float>  // the same
  let dGate: UnsafeMutablePointer<Float>?  // the same
  let slopes: UnsafeMutablePointer<Float>  // [T*K, chunks of I] <da, a>, chunk by chunk
  let gatheredRows: Int
  let lanes: UnsafeMutablePointer<Float>
  let floatsPerLane: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, dy: UnsafePointer<Float>, parameters: Parameters,
    tape: TapeContents
  ) {
    self.c = c
    kernels = context.kernels
    self.dy = dy
    self.parameters = parameters
    routing = tape.routing
    dispatch = tape.dispatch
    dropout = tape.dropout
    kept = tape.preactivations
    let (pairs, width) = (dispatch.pairs, padded(c.intermediate))
    work = WorkList(
      &arena, c, context: context, pairs: pairs, chunks: chunks(of: c.intermediate), tilesPerPiece: gatheredTiles)
    activations = arena.take(Float.self, pairs, width)
    dUp = arena.take(Float.self, pairs, width)
    dGate = c.gated ? arena.take(Float.self, pairs, width) : nil
    slopes = arena.take(Float.self, pairs, chunks(of: c.intermediate))
    gatheredRows = rows(ofTiles: gatheredTiles, in: dispatch, c, kernels)
    floatsPerLane = gatheredRows * padded(c.hidden) + panelsSize + chunkWidth
    lanes = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: piece.expert) { parameters.data($0) }
    let gathered = lanes + lane.pointee.index * floatsPerLane  // [rows, padded H] dy, tiled
    let packed = gathered + gatheredRows * padded(h)
    let zero = packed + panelsSize
    start(zero, with: nil, 0)

    piece.gather(piece.range, h, of: dy, xRow: h, into: gathered, topK: c.topK, kernels)
    func columns(_ chunk: Int) -> Int { min(chunkWidth, i - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel {
      WeightPanel(
        w.downWeight + chunk * chunkWidth, rowStride: i, transposed: false, columns: columns(chunk))
    }
    let products = PanelProducts(kernels: kernels, tiles: piece.tiles, range: piece.range, depth: h, packed: packed)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound + $0 < piece.chunks.upperBound ? panel(run.upperBound + $0) : nil },
        a: { UnsafePointer(gathered + ($0.lowerBound - piece.first) * padded(h)) }, start: { _ in UnsafePointer(zero) },
        c: { dUp + piece.place(run.lowerBound + $0, $1, width: padded(i)) }, cStride: chunkWidth)
      for chunk in run {
        for tile in piece.range {
          let rows = piece.tiles.rows(tile)
          differentiate(
            at: piece.place(chunk, rows, width: padded(i)), row: piece.row(rows), count: rows.count, chunk: chunk,
            columns: columns(chunk))
        }
      }
    }
  }

  /// From da = dy W_down to dup and dgate, for one chunk of one tile.
  private func differentiate(at place: Int, row: Int, count: Int, chunk: Int, columns: Int) {
    let pairs = dispatch.pairOfRow + row
    let a = activations + place
    let da = dUp + place
    let width = Int64(chunkWidth)
    let pre = Preactivations(gate: kept.gate.map { $0 + place }, up: kept.up + place)
    pre.activate(
      a, rows: count, width: chunkWidth, from: chunk * chunkWidth, count: columns, pairs: pairs, c, dropout, kernels)
    for r in 0..<count {
      let da = da + r * chunkWidth
      slopes[(row + r) * chunks(of: c.intermediate) + chunk] = kernels.pointee.dot(width, da, a + r * chunkWidth)
      // From here on with the routing weight: the gradient of this expert's own output, and what follows from it.
      kernels.pointee.scale(width, routing.weights[Int(pairs[r])], da, da)
      dropout?.apply(da, pair: Int(pairs[r]), from: chunk * chunkWidth, count: columns)
    }
    if let gate = pre.gate {
      kernels.pointee.activate_gated_backward(
        c.activation, Int64(count) * width, gate, pre.up, da, dGate! + place, da)
    } else {
      kernels.pointee.activate_backward(c.activation, Int64(count) * width, pre.up, da)
    }
  }
}

/// Step 2: <da, a> over the chunks in ascending order, then <dy, b_down>.
struct SlopeSums: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let dy: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let routing: Routing
  let dispatch: Dispatch
  let slopes: UnsafePointer<Float>  // [T*K, chunks of I]
  let dWeights: UnsafeMutablePointer<Float>  // [T,K]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: dispatch.pairs), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let count = chunks(of: c.intermediate)
    for pair in rows(ofBlock: block, in: dispatch.pairs) {
      let mine = slopes + Int(dispatch.rowOfPair[pair]) * count
      var slope: Float = 0
      for chunk in 0..<count { slope += mine[chunk] }
      if let bias = parameters.data(.downBias) {
        slope += kernels.pointee.dot(
          Int64(c.hidden), dy + pair / c.topK * c.hidden, bias + Int(routing.indices[pair]) * c.hidden)
      }
      dWeights[pair] = slope
    }
  }
}

/// Step 3.
struct TiledInputGradient: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let parameters: Parameters
  let dispatch: Dispatch
  let inner: TiledInnerGradient
  let work: WorkList
  let dRows: UnsafeMutablePointer<Float>  // [T*K, padded H]
  let lanes: UnsafeMutablePointer<Float>  // panels, then zeros to start from

  private static var floatsPerLane: Int { panelsSize + chunkWidth }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters, dispatch: Dispatch,
    inner: TiledInnerGradient, dRows: UnsafeMutablePointer<Float>
  ) {
    self.c = c
    kernels = context.kernels
    self.parameters = parameters
    self.dispatch = dispatch
    self.inner = inner
    self.dRows = dRows
    work = WorkList(
      &arena, c, context: context, pairs: dispatch.pairs, chunks: chunks(of: c.hidden), tilesPerPiece: gatheredTiles)
    lanes = arena.take(Float.self, context.lanes, Self.floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: piece.expert) { parameters.data($0) }
    let packed = lanes + lane.pointee.index * Self.floatsPerLane
    let zero = packed + panelsSize
    start(zero, with: nil, 0)
    let products = PanelProducts(kernels: kernels, tiles: piece.tiles, range: piece.range, depth: i, packed: packed)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      func panel(_ matrix: UnsafePointer<Float>, _ chunk: Int) -> WeightPanel {
        WeightPanel(
          matrix + chunk * chunkWidth, rowStride: h, transposed: false,
          columns: min(chunkWidth, h - chunk * chunkWidth))
      }
      func add(
        _ gradient: UnsafePointer<Float>, _ matrix: UnsafePointer<Float>, start: UnsafePointer<Float>?,
        next: (Int) -> WeightPanel?
      ) {
        products.run(
          run.count, { panel(matrix, run.lowerBound + $0) }, next: next,
          a: { gradient + piece.row($0) * padded(i) }, start: { _ in start },
          c: { dRows + piece.row($1) * padded(h) + (run.lowerBound + $0) * chunkWidth },
          cStride: padded(h))
      }
      let first = UnsafePointer(w.gateWeight ?? w.upWeight)
      func afterUp(_ index: Int) -> WeightPanel? {
        run.upperBound + index < piece.chunks.upperBound ? panel(first, run.upperBound + index) : nil
      }
      if let dGate = inner.dGate {
        add(dGate, w.gateWeight!, start: zero, next: { panel(w.upWeight, run.lowerBound + $0) })
      }
      add(inner.dUp, w.upWeight, start: inner.dGate == nil ? UnsafePointer(zero) : nil, next: afterUp)
    }
  }
}

/// Step 4: a few chunks of features of x and dy for each piece, for all rows of an expert.
struct TiledWeightGradient: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let x: UnsafePointer<Float>  // [T,H]
  let dy: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let routing: Routing
  let dispatch: Dispatch
  let inner: TiledInnerGradient
  let work: WorkList
  let lanes: UnsafeMutablePointer<Float>
  let floatsPerLane: Int

  private static var chunksPerPiece: Int { 4 }
  /// Tiles that are gathered at once. Between them the sums wait in the gradient's own memory.
  private static var tilesAtOnce: Int { 32 }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>,
    dy: UnsafePointer<Float>, parameters: Parameters, tape: TapeContents, inner: TiledInnerGradient
  ) {
    self.c = c
    kernels = context.kernels
    self.x = x
    self.dy = dy
    self.parameters = parameters
    routing = tape.routing
    dispatch = tape.dispatch
    self.inner = inner
    work = WorkList(
      &arena, c, context: context, pairs: dispatch.pairs, chunks: chunks(of: c.hidden),
      chunksPerPiece: Self.chunksPerPiece)
    floatsPerLane = 2 * rows(ofTiles: Self.tilesAtOnce, in: dispatch, c, kernels) * Self.chunksPerPiece * chunkWidth
    lanes = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let grad = ExpertTensors(c, expert: piece.expert) { parameters.grad($0) }
    let tiles = piece.tiles
    let column = piece.chunks.lowerBound * chunkWidth
    let width = piece.chunks.count * chunkWidth  // of the gathered rows
    let xs = lanes + lane.pointee.index * floatsPerLane  // [rows, width], tiled
    let dys = xs + floatsPerLane / 2  // the same, times the routing weights

    for firstTile in stride(from: 0, to: tiles.count, by: Self.tilesAtOnce) {
      let range = firstTile..<min(firstTile + Self.tilesAtOnce, tiles.count)
      let wide = min(width, h - column)
      piece.gather(range, wide, of: x + column, xRow: h, into: xs, topK: c.topK, kernels)
      piece.gather(range, wide, of: dy + column, xRow: h, weights: routing.weights, into: dys, topK: c.topK, kernels)
      let part = tiles.part(range)
      let inPart = piece.row(tiles.rows(range)) * padded(i)  // where these rows' inner arrays begin
      for chunk in piece.chunks {
        if lane.pointee.shouldStop() { return }
        let (own, f) = (Int64(chunk - piece.chunks.lowerBound), chunk * chunkWidth)
        let features = min(chunkWidth, h - f)
        for innerChunk in 0..<chunks(of: i) {
          let j = innerChunk * chunkWidth
          let columns = min(chunkWidth, i - j)
          /// dW[j..., f...] += d^T x
          func add(_ d: UnsafePointer<Float>, to gradient: UnsafeMutablePointer<Float>) {
            kernels.pointee.product_over_tokens(
              Int64(columns), Int64(features), part, d + inPart, Int64(padded(i)), Int64(innerChunk), xs, Int64(width),
              own, gradient + j * h + f, Int64(h), gradient + (j + chunkWidth) * h + f)
          }
          if let dGate = inner.dGate { add(dGate, to: grad.gateWeight!) }
          add(inner.dUp, to: grad.upWeight)
          kernels.pointee.product_over_tokens(
            Int64(features), Int64(columns), part, dys, Int64(width), own, inner.activations + inPart,
            Int64(padded(i)), Int64(innerChunk), grad.downWeight + f * i + j, Int64(i),
            grad.downWeight + f * i + j + chunkWidth)
        }
        if let bias = grad.downBias {
          addRows(tiles, range, dys, width, Int(own), to: bias + f, features)
        }
      }
      // The inner biases belong to no feature of x: the piece with the first ones does them.
      if column == 0 {
        for innerChunk in 0..<chunks(of: i) {
          let j = innerChunk * chunkWidth
          let columns = min(chunkWidth, i - j)
          if let bias = grad.gateBias {
            addRows(tiles, range, inner.dGate! + inPart, padded(i), innerChunk, to: bias + j, columns)
          }
          if let bias = grad.upBias {
            addRows(tiles, range, inner.dUp + inPart, padded(i), innerChunk, to: bias + j, columns)
          }
        }
      }
    }
  }

  /// A bias's gradient: one chunk of the rows of some tiles, which begin at `source`, added up in ascending order.
  private func addRows(
    _ tiles: Tiles, _ range: Range<Int>, _ source: UnsafePointer<Float>, _ width: Int, _ chunk: Int,
    to sum: UnsafeMutablePointer<Float>, _ columns: Int
  ) {
    let first = tiles.start(range.lowerBound)
    for tile in range {
      let rows = tiles.rows(tile)
      let here = source + (rows.lowerBound - first) * width + chunk * chunkWidth * rows.count
      for r in 0..<rows.count { kernels.pointee.add(Int64(columns), here + r * chunkWidth, sum) }
    }
  }
}
