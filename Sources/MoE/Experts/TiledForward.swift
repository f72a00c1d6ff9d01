import CShims

// The experts' networks through our own kernels, in two steps: the inner activations of all rows, then the outputs.
// Rows of inner activations lie as the kernels want them (Matmul/Tiles.swift), so that the first step's results are the
// second one's input. Weights are packed panel by panel, where they are used.

/// Tiles whose inputs a thread gathers at once: enough that packing a panel of weights pays.
let gatheredTiles = 16

/// What the chains of one chunk begin with: the bias, or 0; 0 beyond the matrix's edge.
func start(_ chunk: UnsafeMutablePointer<Float>, with bias: UnsafePointer<Float>?, _ columns: Int) {
  chunk.update(repeating: 0, count: chunkWidth)
  if let bias { chunk.update(from: bias, count: columns) }
}

/// The first step: gather, up and gate products, activation.
struct TiledInner: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let x: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let dispatch: Dispatch
  let dropout: Dropout?
  let work: WorkList
  /// On the tape, for all rows; nil when there will be no backward.
  let kept: Preactivations?
  let activations: UnsafeMutablePointer<Float>  // [T*K, padded I], tiled
  let lanes: UnsafeMutablePointer<Float>  // scratch of each thread
  let floatsPerLane: Int

  private var maxHeight: Int { Int(kernels.pointee.tile_height) }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    dispatch: Dispatch, dropout: Dropout?, kept: Preactivations?
  ) {
    self.c = c
    kernels = context.kernels
    self.x = x
    self.parameters = parameters
    self.dispatch = dispatch
    self.dropout = dropout
    self.kept = kept
    work = WorkList(
      &arena, c, context: context, pairs: dispatch.pairs, chunks: chunks(of: c.intermediate),
      tilesPerPiece: gatheredTiles)
    activations = arena.take(Float.self, dispatch.pairs, padded(c.intermediate))
    let rows = gatheredTiles * Int(kernels.pointee.tile_height)
    floatsPerLane = rows * (padded(c.hidden) + 2 * chunkWidth) + 2 * (panelDepth + 1) * chunkWidth
    lanes = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  /// C[m,32] += A B, or from `start` in every row.
  private func product(
    _ m: Int, _ depth: Int, _ a: UnsafePointer<Float>, _ panel: UnsafePointer<Float>, _ start: UnsafePointer<Float>?,
    _ c: UnsafeMutablePointer<Float>
  ) {
    let stride = Int64(chunkWidth)
    kernels.pointee.product(
      Int64(m), stride, Int64(depth), a, panel, start ?? UnsafePointer(c), start == nil ? stride : 0, c, stride)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work[item]
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: Int(piece.expert)) { parameters.data($0) }
    let mine = dispatch.rows(ofExpert: Int(piece.expert))
    let tiles = Tiles(rows: mine.count, maxHeight: maxHeight)
    let first = tiles.start(piece.tiles.lowerBound)

    // This thread's scratch.
    let gathered = lanes + lane.pointee.index * floatsPerLane  // [rows, padded H], tiled
    let gatePanel = gathered + gatheredTiles * maxHeight * padded(h)
    let upPanel = gatePanel + panelDepth * chunkWidth
    let gateStart = upPanel + panelDepth * chunkWidth  // [32]
    let upStart = gateStart + chunkWidth  // [32]
    let gates = upStart + chunkWidth  // [rows, 32], tiled
    let ups = gates + gatheredTiles * maxHeight * chunkWidth

    for tile in piece.tiles {
      let rows = tiles.rows(tile)
      kernels.pointee.gather(
        Int64(rows.count), Int64(h), dispatch.pairOfRow + mine.lowerBound + rows.lowerBound, Int64(c.topK), x, Int64(h),
        nil, gathered + (rows.lowerBound - first) * padded(h))
    }
    for chunk in piece.chunks {
      if lane.pointee.shouldStop() { return }
      let columns = min(chunkWidth, i - chunk * chunkWidth)
      /// Where this chunk of a tile lies in an array over all rows of all experts.
      func place(_ rows: Range<Int>) -> Int {
        (mine.lowerBound + rows.lowerBound) * padded(i) + chunk * chunkWidth * rows.count
      }
      func gate(_ rows: Range<Int>) -> UnsafeMutablePointer<Float> {
        kept.map { $0.gate! + place(rows) } ?? gates + (rows.lowerBound - first) * chunkWidth
      }
      func up(_ rows: Range<Int>) -> UnsafeMutablePointer<Float> {
        kept.map { $0.up + place(rows) } ?? ups + (rows.lowerBound - first) * chunkWidth
      }

      start(gateStart, with: w.gateBias.map { $0 + chunk * chunkWidth }, columns)
      start(upStart, with: w.upBias.map { $0 + chunk * chunkWidth }, columns)
      for p in stride(from: 0, to: h, by: panelDepth) {
        let depth = min(panelDepth, h - p)
        let weights = chunk * chunkWidth * h + p
        if let gate = w.gateWeight {
          kernels.pointee.pack_transposed(Int64(columns), Int64(depth), gate + weights, Int64(h), gatePanel)
        }
        kernels.pointee.pack_transposed(Int64(columns), Int64(depth), w.upWeight + weights, Int64(h), upPanel)
        for tile in piece.tiles {
          let rows = tiles.rows(tile)
          let a = gathered + (rows.lowerBound - first) * padded(h) + p * rows.count
          if c.gated { product(rows.count, depth, a, gatePanel, p == 0 ? gateStart : nil, gate(rows)) }
          product(rows.count, depth, a, upPanel, p == 0 ? upStart : nil, up(rows))
        }
      }
      for tile in piece.tiles {
        let rows = tiles.rows(tile)
        Preactivations(gate: c.gated ? gate(rows) : nil, up: up(rows)).activate(
          activations + place(rows), rows: rows.count, width: chunkWidth, from: chunk * chunkWidth, count: columns,
          pairs: dispatch.pairOfRow + mine.lowerBound + rows.lowerBound, c, dropout, kernels)
      }
    }
  }
}

/// The second step: the outputs, row after row.
struct TiledOutput: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let parameters: Parameters
  let dispatch: Dispatch
  let work: WorkList
  let activations: UnsafePointer<Float>  // [T*K, padded I], tiled
  let outputs: UnsafeMutablePointer<Float>  // [T*K, padded H]
  let lanes: UnsafeMutablePointer<Float>  // scratch of each thread: a panel, then a row to start from

  private static var floatsPerLane: Int { (panelDepth + 1) * chunkWidth }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters, dispatch: Dispatch,
    activations: UnsafePointer<Float>
  ) {
    self.c = c
    kernels = context.kernels
    self.parameters = parameters
    self.dispatch = dispatch
    self.activations = activations
    work = WorkList(
      &arena, c, context: context, pairs: dispatch.pairs, chunks: chunks(of: c.hidden), tilesPerPiece: gatheredTiles)
    outputs = arena.take(Float.self, dispatch.pairs, padded(c.hidden))
    lanes = arena.take(Float.self, context.lanes, Self.floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work[item]
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: Int(piece.expert)) { parameters.data($0) }
    let mine = dispatch.rows(ofExpert: Int(piece.expert))
    let tiles = Tiles(rows: mine.count, maxHeight: Int(kernels.pointee.tile_height))
    let panel = lanes + lane.pointee.index * Self.floatsPerLane
    let bias = panel + panelDepth * chunkWidth
    for chunk in piece.chunks {
      if lane.pointee.shouldStop() { return }
      let column = chunk * chunkWidth
      let columns = min(chunkWidth, h - column)
      start(bias, with: w.downBias.map { $0 + column }, columns)
      for p in stride(from: 0, to: i, by: panelDepth) {
        let depth = min(panelDepth, i - p)
        kernels.pointee.pack_transposed(Int64(columns), Int64(depth), w.downWeight + column * i + p, Int64(i), panel)
        for tile in piece.tiles {
          let rows = tiles.rows(tile)
          let first = mine.lowerBound + rows.lowerBound
          let out = outputs + first * padded(h) + column
          kernels.pointee.product(
            Int64(rows.count), Int64(chunkWidth), Int64(depth), activations + first * padded(i) + p * rows.count, panel,
            p == 0 ? bias : out, p == 0 ? 0 : Int64(padded(h)), out, Int64(padded(h)))
        }
      }
    }
  }
}
