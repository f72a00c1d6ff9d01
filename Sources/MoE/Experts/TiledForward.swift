import CShims

// The experts' networks through our own kernels, in two steps: the inner activations of all rows, then the outputs.
// Rows of inner activations lie as the kernels want them (Matmul/Tiles.swift), so that the first step's results are the
// second one's input. Weights are packed panel by panel, where they are used.

/// Tiles whose inputs a thread gathers at once: enough that packing a panel of weights pays.
let gatheredTiles = 32

/// Rows of so many tiles, or of one expert, which no token chooses twice.
func rows(ofTiles count: Int, in dispatch: Dispatch, _ c: Configuration, _ kernels: UnsafePointer<moei_kernels>) -> Int
{
  min(count * Int(kernels.pointee.tile_height), dispatch.pairs / c.topK)
}

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
  let prepared: PreparedWeights?
  let dispatch: Dispatch
  let dropout: Dropout?
  let work: WorkList
  /// On the tape, for all rows; nil when there will be no backward.
  let kept: Preactivations?
  let activations: UnsafeMutablePointer<Float>  // [T*K, padded I], tiled
  let gatheredRows: Int
  let lanes: UnsafeMutablePointer<Float>  // scratch of each thread
  let floatsPerLane: Int

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, x: UnsafePointer<Float>, parameters: Parameters,
    prepared: PreparedWeights?, dispatch: Dispatch, dropout: Dropout?, kept: Preactivations?
  ) {
    self.c = c
    self.prepared = prepared
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
    gatheredRows = rows(ofTiles: gatheredTiles, in: dispatch, c, kernels)
    floatsPerLane =
      gatheredRows * (padded(c.hidden) + panelsAtOnce * chunkWidth) + panelsSize + panelsAtOnce * chunkWidth
    lanes = arena.take(Float.self, context.lanes, floatsPerLane)
  }

  func run(in context: ContextPointer) throws(Fault) {
    if let prepared {
      for e in 0..<c.experts where dispatch.count(ofExpert: e) > 0 {
        if prepared.isCurrent(c, expert: e, parameters: parameters) { continue }
        throw .badState("the weights of expert \(e) have changed since moe_layer_prepare; prepare the layer again")
      }
    }
    try context.run(work.fill(dispatch, experts: c.experts), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = work.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: piece.expert) { parameters.data($0) }

    // This thread's scratch.
    let gathered = lanes + lane.pointee.index * floatsPerLane  // [rows, padded H], tiled
    let packed = gathered + gatheredRows * padded(h)
    let starts = packed + panelsSize  // [panelsAtOnce, 32]
    let passing = starts + panelsAtOnce * chunkWidth  // [panelsAtOnce, rows, 32], tiled

    piece.gather(piece.range, h, of: x, xRow: h, into: gathered, topK: c.topK, kernels)
    func columns(_ chunk: Int) -> Int { min(chunkWidth, i - chunk * chunkWidth) }
    /// Gated experts have two panels for each chunk: gate, then up.
    let kinds = c.gated ? 2 : 1
    func panel(_ chunk: Int, _ kind: Int) -> WeightPanel {
      if let prepared {
        let gate = kind == kinds - 1 ? nil : prepared.gatePanel(c, expert: piece.expert, chunk: chunk)
        return gate ?? prepared.upPanel(c, expert: piece.expert, chunk: chunk)
      }
      let matrix = kind == kinds - 1 ? w.upWeight : w.gateWeight!
      return WeightPanel(
        matrix + chunk * chunkWidth * h, rowStride: h, transposed: true, columns: columns(chunk))
    }
    let products = PanelProducts(kernels: kernels, tiles: piece.tiles, range: piece.range, depth: h, packed: packed)
    let chunksAtOnce = panelsAtOnce / kinds

    piece.chunks.forEachRun(of: chunksAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      /// The result of panel number `index` of this run, for one tile.
      func result(_ index: Int, _ rows: Range<Int>) -> UnsafeMutablePointer<Float> {
        let (chunk, kind) = (run.lowerBound + index / kinds, index % kinds)
        guard let kept else {
          return passing + (index * gatheredRows + rows.lowerBound - piece.first) * chunkWidth
        }
        return (kind == kinds - 1 ? kept.up : kept.gate!) + piece.place(chunk, rows, width: padded(i))
      }
      for index in 0..<run.count * kinds {
        let chunk = run.lowerBound + index / kinds
        let bias = index % kinds == kinds - 1 ? w.upBias : w.gateBias
        start(starts + index * chunkWidth, with: bias.map { $0 + chunk * chunkWidth }, columns(chunk))
      }
      products.run(
        run.count * kinds, { panel(run.lowerBound + $0 / kinds, $0 % kinds) },
        next: {
          let chunk = run.upperBound + $0 / kinds
          return chunk < piece.chunks.upperBound ? panel(chunk, $0 % kinds) : nil
        }, a: { UnsafePointer(gathered + ($0.lowerBound - piece.first) * padded(h)) },
        start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: result, cStride: chunkWidth)

      for chunk in run {
        let index = (chunk - run.lowerBound) * kinds
        for tile in piece.range {
          let rows = piece.tiles.rows(tile)
          Preactivations(gate: c.gated ? result(index, rows) : nil, up: result(index + kinds - 1, rows)).activate(
            activations + piece.place(chunk, rows, width: padded(i)), rows: rows.count, width: chunkWidth,
            from: chunk * chunkWidth, count: columns(chunk), pairs: piece.pairs(rows), c, dropout, kernels)
        }
      }
    }
  }
}

/// The second step: the outputs, row after row.
struct TiledOutput: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let parameters: Parameters
  let prepared: PreparedWeights?
  let dispatch: Dispatch
  let work: WorkList
  let activations: UnsafePointer<Float>  // [T*K, padded I], tiled
  let outputs: UnsafeMutablePointer<Float>  // [T*K, padded H]
  let lanes: UnsafeMutablePointer<Float>  // scratch of each thread: panels, then what their rows start from

  private static var floatsPerLane: Int { panelsSize + panelsAtOnce * chunkWidth }

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters,
    prepared: PreparedWeights?, dispatch: Dispatch, activations: UnsafePointer<Float>
  ) {
    self.c = c
    self.prepared = prepared
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
    let piece = work.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = ExpertTensors(c, expert: piece.expert) { parameters.data($0) }
    let packed = lanes + lane.pointee.index * Self.floatsPerLane
    let starts = packed + panelsSize  // [panelsAtOnce, 32]
    func columns(_ chunk: Int) -> Int { min(chunkWidth, h - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel {
      if let prepared { return prepared.downPanel(c, expert: piece.expert, chunk: chunk) }
      return WeightPanel(
        w.downWeight + chunk * chunkWidth * i, rowStride: i, transposed: true, columns: columns(chunk))
    }
    let products = PanelProducts(kernels: kernels, tiles: piece.tiles, range: piece.range, depth: i, packed: packed)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      for chunk in run {
        start(
          starts + (chunk - run.lowerBound) * chunkWidth, with: w.downBias.map { $0 + chunk * chunkWidth },
          columns(chunk))
      }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound + $0 < piece.chunks.upperBound ? panel(run.upperBound + $0) : nil },
        a: { activations + piece.row($0) * padded(i) },
        start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: { outputs + piece.row($1) * padded(h) + (run.lowerBound + $0) * chunkWidth },
        cStride: padded(h))
    }
  }
}
