import CShims

// The experts' networks through our own kernels, in two steps: the inner activations of all rows, then the outputs.
// Rows of inner activations lie as the kernels want them (Matmul/Tiles.swift), so that the first step's results are the
// second one's input. Weights are packed panel by panel, where they are used.
// In bfloat16 every array of tokens is rounded where it is stored; what is computed from it is what was stored.

struct TiledForward<P: Precision> {
  private let inner: TiledInner<P>
  private let output: TiledOutput<P>?

  /// `outputs`: nil where the first step alone is wanted.
  init(
    _ arena: inout Arena, _ work: GroupWork, kept: Preactivations<P.Element>?, outputs: UnsafeMutablePointer<Float>?
  ) {
    let inner = TiledInner<P>(&arena, work, kept: kept)
    self.inner = inner
    output = outputs.map { TiledOutput<P>(&arena, work, activations: inner.activations, outputs: $0) }
  }

  func run(in context: ContextPointer) throws(Fault) {
    try inner.work.noteRows(in: context)
    try context.measure(.gateUp, inner.work.gateUpWork) { () throws(Fault) in try inner.run(in: context, alone: false) }
    guard let output else { return }
    try inner.noteActivations(in: context)
    try context.measure(.down, output.work.downWork) { () throws(Fault) in try output.run(in: context) }
  }

  /// The first step alone, which a backward without pre-activations takes again.
  @inline(never) func runInner(in context: ContextPointer) throws(Fault) {
    try context.measure(.gateUp, backward: true, inner.work.gateUpWork) { () throws(Fault) in
      try inner.run(in: context, alone: true)
    }
  }
}

/// Tiles whose inputs a thread gathers at once: enough that packing a panel of weights pays.
let gatheredTiles = 32
/// Packed panels that a single tile multiplies before its activations: first gates, then ups. Each lie side by side in memory, and one
/// long stream is read 3 % faster than two by turns.
private let panelsInARow = 64

/// The first step: gather, up and gate products, activation.
struct TiledInner<P: Precision>: GroupJob {
  let work: GroupWork
  let list: WorkList
  /// Where pre-activations go that a backward reads: on the tape, or in its scratch; nil where none are kept.
  let kept: Preactivations<P.Element>?
  let activations: UnsafeMutablePointer<P.Element>  // [rows, padded I], tiled; from the group's first row on
  /// nil where each expert makes of a token what it reads.
  private let once: TokensOnce<P>?
  // Scratch of each thread.
  let gatheredRows: Int
  let gathered: UnsafeMutablePointer<P.Element>  // [lanes, gatheredRows, padded H], tiled
  let packed: UnsafeMutablePointer<P.Element>  // [lanes, pieceSize]
  private let panels: Int  // that a thread has at once
  let starts: UnsafeMutablePointer<Float>  // [lanes, panels, 32]
  private let unkeptRows: Int
  let unkept: UnsafeMutablePointer<Float>  // [lanes, unkeptRows, 32] pre-activations: of each panel, tiled

  init(_ arena: inout Arena, _ work: GroupWork, kept: Preactivations<P.Element>?) {
    self.work = work
    self.kept = kept
    let (c, lanes, most) = (work.c, work.lanes, work.dispatch.most)
    list = WorkList(&arena, work, unit: P.unit, chunks: chunks(of: c.intermediate), tilesPerPiece: gatheredTiles)
    let width = padded(c.intermediate)
    let taken = arena.take(P.Element.self, ExpertPiece.places(most, experts: c.experts, unit: P.unit), width)
    activations = taken - work.dispatch.placesBefore(unit: P.unit) * width
    once = P.gathersOnce && !c.linear && !c.weightOnInput ? TokensOnce(&arena, work) : nil
    gatheredRows = work.rows(ofTiles: gatheredTiles)
    gathered = arena.take(P.Element.self, lanes * gatheredRows, padded(c.hidden))
    packed = arena.take(P.Element.self, lanes, P.pieceSize)
    panels = work.prepared == nil ? panelsAtOnce : panelsInARow
    starts = arena.take(Float.self, lanes * panels, chunkWidth)
    unkeptRows = max(panelsAtOnce * gatheredRows, panels * work.rows(ofTiles: 1))
    unkept = arena.take(Float.self, lanes * unkeptRows, chunkWidth)
  }

  /// `alone`: between two runs of a group others use the scratch.
  func run(in context: ContextPointer, alone: Bool) throws(Fault) {
    try work.requireCurrentWeights()
    let pieces = list.fill(dispatch)
    try once?.make(work, pieces: pieces, forAllRuns: !alone, in: context)
    if c.linear { try context.run(pieces, LinearInner(inner: self)) } else { try context.run(pieces, self) }
    if P.finishesRows { try context.run(dispatch.experts.count, FinishedRows(inner: self)) }
  }

  private func gather(_ piece: ExpertPiece, into out: UnsafeMutablePointer<P.Element>) {
    if let once, piece.copy(piece.range, c.hidden, of: once, into: out) { return }
    piece.gather(
      P.self, piece.range, c.hidden, of: x, xRow: c.hidden, weighted: c.weightOnInput, into: out, kernels)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = list.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = source.tensors(c, expert: piece.expert)

    // This thread's scratch.
    let thread = lane.pointee.index
    let gathered = gathered + thread * gatheredRows * padded(h)
    let starts = starts + thread * panels * chunkWidth
    let unkept = unkept + thread * unkeptRows * chunkWidth

    gather(piece, into: gathered)
    let place = source.place(ofExpert: piece.expert)
    func columns(_ chunk: Int) -> Int { min(chunkWidth, i - chunk * chunkWidth) }
    /// Gated experts have two panels for each chunk: gate, then up.
    let kinds = c.gated ? 2 : 1
    let ready = prepared.map { (gate: $0.panels(c.gated ? .gate : .up, c, place), up: $0.panels(.up, c, place)) }
    func panel(_ chunk: Int, _ kind: Int) -> WeightPanel<P> {
      if let ready { return (kind == kinds - 1 ? ready.up : ready.gate).panel(P.self, chunk) }
      let matrix = kind == kinds - 1 ? w.upWeight : w.gateWeight!
      return WeightPanel(matrix.from(row: chunk * chunkWidth), transposed: true, columns: columns(chunk))
    }
    let products = PanelProducts<P>(
      kernels: kernels, tiles: piece.tiles, range: piece.range, depth: h, packed: packed + thread * P.pieceSize)
    let readsOn = prepared != nil && piece.range.count == 1
    let rowsApart = readsOn ? piece.tiles.rows(piece.range.lowerBound).count : gatheredRows
    piece.chunks.forEachRun(of: (readsOn ? panels : panelsAtOnce) / kinds) { run in
      if lane.pointee.shouldStop() { return }
      // Gates come first, then ups.
      func chunk(_ index: Int) -> Int { run.lowerBound + index % run.count }
      func kind(_ index: Int) -> Int { index / run.count }
      /// Where the result of panel number `index` of this run is kept, for one tile.
      func kept(_ index: Int, _ rows: Range<Int>) -> UnsafeMutablePointer<P.Element>? {
        guard let kept = self.kept else { return nil }
        return (kind(index) == kinds - 1 ? kept.up : kept.gate!) + piece.place(chunk(index), rows, width: padded(i))
      }
      /// Where it is computed.
      func result(_ index: Int, _ rows: Range<Int>) -> UnsafeMutablePointer<Float> {
        let unkept = unkept + (index * rowsApart + rows.lowerBound - piece.first) * chunkWidth
        return kept(index, rows).map { P.workplace($0, or: unkept) } ?? unkept
      }
      for index in 0..<run.count * kinds {
        let chunk = chunk(index)
        let bias = kind(index) == kinds - 1 ? w.upBias : w.gateBias
        fillStart(starts + index * chunkWidth, with: bias.map { $0 + chunk * chunkWidth }, columns(chunk))
      }
      products.run(
        run.count * kinds, { panel(chunk($0), kind($0)) },
        next: { run.upperBound < piece.chunks.upperBound ? panel(run.upperBound, 0) : nil },
        a: { UnsafePointer(gathered + ($0.lowerBound - piece.first) * padded(h)) },
        start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: result, cStride: chunkWidth)

      for chunk in run {
        let gate = chunk - run.lowerBound
        let up = gate + (kinds - 1) * run.count
        for tile in piece.range {
          let rows = piece.tiles.rows(tile)
          let n = rows.count * chunkWidth
          let a = activations + piece.place(chunk, rows, width: padded(i))
          let before = Preactivations(
            gate: c.gated ? result(gate, rows) : nil, up: result(up, rows))
          if let values = before.gate { P.round(n, values, by: kept(gate, rows) ?? a, kernels) }
          P.round(n, before.up, by: kept(up, rows) ?? a, kernels)
          let after = P.workplace(a, or: before.up)
          before.activate(
            after, rows: rows.count, width: chunkWidth, from: chunk * chunkWidth, count: columns(chunk),
            pairs: piece.pairs(rows), work)
          // The outputs' products read what an odd number of columns is filled up with: weights of 0 times an infinite x.
          for column in columns(chunk)..<P.filledUp(columns(chunk)) {
            for row in 0..<rows.count { after[row * chunkWidth + column] = 0 }
          }
          P.store(n, after, into: a, kernels)
        }
      }
    }
  }
}

/// Activations once all of a row's are there, expert by expert.
private struct FinishedRows<P: Precision>: Job {
  let inner: TiledInner<P>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let expert = inner.dispatch.experts.lowerBound + item
    let piece = ExpertPiece(ofAll: expert, inner.dispatch, inner.kernels, unit: P.unit)
    let width = inner.c.intermediate
    for tile in piece.range {
      let rows = piece.tiles.rows(tile)
      P.finish(
        rows.count, width, inner.activations + piece.place(0, rows, width: padded(width)), inner.kernels)
    }
  }
}

/// The first step of linear experts: rows of x where the outputs' products read activations.
private struct LinearInner<P: Precision>: Job {
  let inner: TiledInner<P>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = inner.list.piece(item, inner.dispatch)
    let (h, first) = (inner.c.hidden, piece.chunks.lowerBound)
    let columns = min(piece.chunks.count * chunkWidth, h - first * chunkWidth)
    for tile in piece.range {
      let rows = piece.tiles.rows(tile)
      P.gatherPart(
        rows.count, columns, piece.tokens(rows), inner.x + first * chunkWidth, xRow: h,
        weights: inner.c.weightOnInput ? piece.weights(rows) : nil,
        into: inner.activations + piece.place(first, rows, width: padded(h)), inner.kernels)
    }
  }
}

/// The second step: the outputs, row after row.
struct TiledOutput<P: Precision>: GroupJob {
  let work: GroupWork
  let list: WorkList
  let activations: UnsafePointer<P.Element>  // [rows, padded I], tiled
  let outputs: UnsafeMutablePointer<Float>  // [rows, padded H]
  // Scratch of each thread.
  let packed: UnsafeMutablePointer<P.Element>  // [lanes, pieceSize]
  let starts: UnsafeMutablePointer<Float>  // [lanes, panelsAtOnce, 32]

  init(
    _ arena: inout Arena, _ work: GroupWork, activations: UnsafePointer<P.Element>, outputs: UnsafeMutablePointer<Float>
  ) {
    self.work = work
    self.activations = activations
    self.outputs = outputs
    list = WorkList(&arena, work, unit: P.unit, chunks: chunks(of: work.c.hidden), tilesPerPiece: gatheredTiles)
    packed = arena.take(P.Element.self, work.lanes, P.pieceSize)
    starts = arena.take(Float.self, work.lanes * panelsAtOnce, chunkWidth)
  }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(list.fill(dispatch), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = list.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let w = source.tensors(c, expert: piece.expert)
    let starts = starts + lane.pointee.index * panelsAtOnce * chunkWidth
    let ready = prepared?.panels(.down, c, source.place(ofExpert: piece.expert))
    func columns(_ chunk: Int) -> Int { min(chunkWidth, h - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel<P> {
      if let ready { return ready.panel(P.self, chunk) }
      return WeightPanel(w.downWeight.from(row: chunk * chunkWidth), transposed: true, columns: columns(chunk))
    }
    let products = PanelProducts<P>(
      kernels: kernels, tiles: piece.tiles, range: piece.range, depth: i,
      packed: packed + lane.pointee.index * P.pieceSize)
    piece.chunks.forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      for chunk in run {
        fillStart(
          starts + (chunk - run.lowerBound) * chunkWidth, with: w.downBias.map { $0 + chunk * chunkWidth },
          columns(chunk))
      }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound < piece.chunks.upperBound ? panel(run.upperBound) : nil },
        a: { activations + piece.place(0, $0, width: padded(i)) },
        start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: { outputs + piece.row($1) * padded(h) + (run.lowerBound + $0) * chunkWidth },
        cStride: padded(h))
    }
  }
}
