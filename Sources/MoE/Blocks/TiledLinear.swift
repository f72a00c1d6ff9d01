import CShims

// Products with one matrix through our own kernels. Tokens go block by block: all threads together put a block's rows
// into tiles, then share out the panels of the matrix, so scratch is bounded by the number of threads.

/// Rows one block has at most.
private func rowsAtOnce(_ tokens: Int, context: ContextPointer) -> Int {
  min(tokens, context.lanes * gatheredTiles * Int(context.kernels.pointee.tile_height))
}

/// The tokens in blocks, each cut into tiles.
private func forEachBlock<P: Precision>(
  _: P.Type, of tokens: Int, context: ContextPointer, _ body: (Int, Tiles) throws(Fault) -> Void
) throws(Fault) {
  let most = rowsAtOnce(tokens, context: context)
  for first in stride(from: 0, to: tokens, by: max(1, most)) {
    let height = Int(context.kernels.pointee.tile_height)
    try body(first, Tiles(rows: min(most, tokens - first), maxHeight: height, unit: P.unit))
  }
}

/// y = x W^T + b
struct TiledLinear<P: Precision> {
  let shape: LinearShape
  let x: UnsafeMutablePointer<P.Element>  // [rows of a block, padded inputs], tiled
  let space: PanelSpace<P>

  init(_ arena: inout Arena, _ shape: LinearShape, context: ContextPointer) {
    self.shape = shape
    x = arena.take(P.Element.self, rowsAtOnce(shape.tokens, context: context), padded(shape.inputs))
    space = PanelSpace(&arena, context: context)
  }

  func forward(
    _ tokens: Int, _ x: StridedRows, _ weight: UnsafeRawPointer, _ bias: UnsafePointer<Float>?, _ y: StridedTargets,
    in context: ContextPointer
  ) throws(Fault) {
    try forEachBlock(P.self, of: tokens, context: context) { (first, tiles) throws(Fault) in
      try TileRows<P>(
        kernels: context.kernels, tiles: tiles, rows: x.start + first * x.stride, stride: x.stride,
        width: shape.inputs, features: self.x
      ).run(in: context)
      try TiledProduct<P>(
        context: context, space: space, tiles: tiles, a: self.x, depth: shape.inputs,
        panels: LinearPanels(
          shape.panels, StoredMatrix(weight, shape.weights, rowStride: shape.inputs), transposed: true), bias: bias,
        c: StridedTargets(y.start + first * y.stride, stride: y.stride), columns: shape.outputs
      ).run(in: context)
    }
  }
}

/// What a thread multiplies with.
struct PanelSpace<P: Precision> {
  private let packed: UnsafeMutablePointer<P.Element>  // [lanes, pieceSize]
  private let starts: UnsafeMutablePointer<Float>  // [lanes, panelsAtOnce, 32]

  init(_ arena: inout Arena, context: ContextPointer) {
    packed = arena.take(P.Element.self, context.lanes, P.pieceSize)
    starts = arena.take(Float.self, context.lanes * panelsAtOnce, chunkWidth)
  }

  func packed(_ lane: Int) -> UnsafeMutablePointer<P.Element> { packed + lane * P.pieceSize }
  func starts(_ lane: Int) -> UnsafeMutablePointer<Float> { starts + lane * panelsAtOnce * chunkWidth }
}

/// Rows put into tiles: [tile][chunk][row][32], and for sums over tokens in groups of P.unit rows.
private struct TileRows<P: Precision>: Job {
  let kernels: UnsafePointer<moei_kernels>
  let tiles: Tiles
  let rows: UnsafePointer<Float>
  let stride: Int
  let width: Int
  var features: UnsafeMutablePointer<P.Element>?
  var tokens: UnsafeMutablePointer<P.Element>?

  private static var tilesPerItem: Int { 4 }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run((tiles.count + Self.tilesPerItem - 1) / Self.tilesPerItem, self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for tile in item * Self.tilesPerItem..<min((item + 1) * Self.tilesPerItem, tiles.count) {
      let range = tiles.rows(tile)
      let (from, place) = (rows + range.lowerBound * stride, range.lowerBound * padded(width))
      if let features {
        P.gather(range.count, width, nil, from, xRow: stride, weights: nil, into: features + place, kernels)
      }
      if let tokens {
        P.gatherTokens(range.count, width, nil, from, xRow: stride, weights: nil, into: tokens + place, kernels)
      }
    }
  }
}

/// Where the panels of W^T, or of W, come from.
private enum LinearPanels {
  case matrix(StoredMatrix, transposed: Bool)
  case packed(PanelMatrixPointer)
  /// Those of W, from the same of W^T.
  case across(PanelMatrixPointer)

  init(_ packed: PanelMatrixPointer?, _ matrix: StoredMatrix, transposed: Bool) {
    self = packed.map { transposed ? .packed($0) : .across($0) } ?? .matrix(matrix, transposed: transposed)
  }

  func panel<P: Precision>(_: P.Type, _ chunk: Int, columns: Int) -> WeightPanel<P> {
    switch self {
    case .packed(let packed): packed.pointee.panel(P.self, chunk)
    case .across(let packed):
      WeightPanel(across: BlockColumns(panels: .matrix(packed), first: chunk * chunkWidth, count: columns))
    case .matrix(let matrix, let transposed):
      WeightPanel(
        matrix.from(chunk * chunkWidth * (transposed ? matrix.rowStride : 1)), transposed: transposed, columns: columns)
    }
  }
}

/// C = bias + A W^T, or C = A W, for the tiles of one block. An item is some tiles times some panels.
private struct TiledProduct<P: Precision>: Job {
  let space: PanelSpace<P>
  let kernels: UnsafePointer<moei_kernels>
  let tiles: Tiles
  let a: UnsafePointer<P.Element>  // [rows, padded depth], tiled
  let depth: Int
  let panels: LinearPanels
  let bias: UnsafePointer<Float>?  // [columns]
  let c: StridedTargets
  let columns: Int
  private let groups: Int  // of tiles
  private let parts: Int  // of panels

  /// So many items for each thread, so that the last ones to finish do so nearly together.
  private static var itemsPerLane: Int { 8 }

  init(
    context: ContextPointer, space: PanelSpace<P>, tiles: Tiles, a: UnsafePointer<P.Element>, depth: Int,
    panels: LinearPanels, bias: UnsafePointer<Float>?, c: StridedTargets, columns: Int
  ) {
    self.space = space
    kernels = context.kernels
    self.tiles = tiles
    self.a = a
    self.depth = depth
    self.panels = panels
    self.bias = bias
    self.c = c
    self.columns = columns
    groups = (tiles.count + gatheredTiles - 1) / gatheredTiles
    let runs = (chunks(of: columns) + panelsAtOnce - 1) / panelsAtOnce
    parts = context.lanes == 1 ? 1 : min(runs, (context.lanes * Self.itemsPerLane + groups - 1) / max(1, groups))
  }

  func run(in context: ContextPointer) throws(Fault) { try context.run(groups * parts, self) }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (group, part) = (item / parts, item % parts)
    let range = tiles.count * group / groups..<tiles.count * (group + 1) / groups
    let runs = (chunks(of: columns) + panelsAtOnce - 1) / panelsAtOnce
    let end = min(chunks(of: columns), runs * (part + 1) / parts * panelsAtOnce)
    let starts = space.starts(lane.pointee.index)
    func width(_ chunk: Int) -> Int { min(chunkWidth, columns - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel<P> { panels.panel(P.self, chunk, columns: width(chunk)) }
    let products = PanelProducts<P>(
      kernels: kernels, tiles: tiles, range: range, depth: depth, packed: space.packed(lane.pointee.index))
    (runs * part / parts * panelsAtOnce..<end).forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      for chunk in run {
        fillStart(
          starts + (chunk - run.lowerBound) * chunkWidth, with: bias.map { $0 + chunk * chunkWidth }, width(chunk))
      }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound < end ? panel(run.upperBound) : nil },
        a: { a + $0.lowerBound * padded(depth) }, start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: { c.start + $1.lowerBound * c.stride + (run.lowerBound + $0) * chunkWidth }, cStride: c.stride,
        columns: { width(run.lowerBound + $0) })
    }
  }
}

// MARK: backward

/// dx = dy W;  dW += dy^T x
struct TiledLinearBackward<P: Precision> {
  let shape: LinearShape
  // A block's rows, tiled for products of features, and for sums over tokens; the same array in float32.
  let dy: UnsafeMutablePointer<P.Element>  // [rows, padded outputs]
  let dyTokens: UnsafeMutablePointer<P.Element>
  let xTokens: UnsafeMutablePointer<P.Element>  // [rows, padded inputs]
  let space: PanelSpace<P>

  init(_ arena: inout Arena, _ shape: LinearShape, context: ContextPointer) {
    self.shape = shape
    let rows = P.filledUp(rowsAtOnce(shape.tokens, context: context))
    dy = arena.take(P.Element.self, rows, padded(shape.outputs))
    dyTokens = P.unit == 1 ? dy : arena.take(P.Element.self, rows, padded(shape.outputs))
    xTokens = arena.take(P.Element.self, rows, padded(shape.inputs))
    space = PanelSpace(&arena, context: context)
  }

  func run(
    _ tokens: Int, _ x: StridedRows, _ weight: UnsafeRawPointer, _ dy: StridedRows, _ dx: StridedTargets?,
    _ dWeight: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    try forEachBlock(P.self, of: tokens, context: context) { (first, tiles) throws(Fault) in
      func tile(
        _ rows: StridedRows, _ width: Int, features: UnsafeMutablePointer<P.Element>? = nil,
        tokens: UnsafeMutablePointer<P.Element>? = nil
      ) throws(Fault) {
        try TileRows<P>(
          kernels: context.kernels, tiles: tiles, rows: rows.start + first * rows.stride, stride: rows.stride,
          width: width, features: features, tokens: tokens
        ).run(in: context)
      }
      if let dx {
        try tile(
          dy, shape.outputs, features: self.dy, tokens: dWeight != nil && dyTokens != self.dy ? dyTokens : nil)
        try TiledProduct<P>(
          context: context, space: space, tiles: tiles, a: self.dy, depth: shape.outputs,
          panels: LinearPanels(
            shape.panels, StoredMatrix(weight, shape.weights, rowStride: shape.inputs), transposed: false), bias: nil,
          c: StridedTargets(dx.start + first * dx.stride, stride: dx.stride), columns: shape.inputs
        ).run(in: context)
      }
      if let dWeight {
        if dx == nil { try tile(dy, shape.outputs, tokens: dyTokens) }
        try tile(x, shape.inputs, tokens: xTokens)
        try TiledWeightSums<P>(
          kernels: context.kernels, tiles: tiles, dy: dyTokens, x: xTokens, dWeight: dWeight, inputs: shape.inputs,
          outputs: shape.outputs
        ).run(in: context)
      }
    }
  }
}

/// dW += dy^T x over the tokens of one block, ascending. An item is a rectangle of dW.
private struct TiledWeightSums<P: Precision>: Job {
  let kernels: UnsafePointer<moei_kernels>
  let tiles: Tiles
  let dy: UnsafePointer<P.Element>  // [rows, padded outputs], tiled
  let x: UnsafePointer<P.Element>  // [rows, padded inputs], tiled
  let dWeight: UnsafeMutablePointer<Float>  // [outputs, inputs]
  let inputs: Int
  let outputs: Int

  /// Chunks of 32 an item has.
  private static var down: Int { 8 }
  private static var across: Int { 4 }

  private var itemsAcross: Int { (chunks(of: inputs) + Self.across - 1) / Self.across }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run((chunks(of: outputs) + Self.down - 1) / Self.down * itemsAcross, self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (top, left) = (item / itemsAcross * Self.down, item % itemsAcross * Self.across)
    // Between the tiles that are summed at once the sums wait in the gradient's own memory.
    (0..<tiles.count).forEachRun(of: gatheredTiles) { range in
      let first = tiles.start(range.lowerBound)
      for column in stride(from: left, to: min(left + Self.across, chunks(of: inputs)), by: 2) {
        if lane.pointee.shouldStop() { return }
        let rows = top..<min(top + Self.down, chunks(of: outputs))
        func place(_ row: Int, _ column: Int) -> UnsafeMutablePointer<Float> {
          dWeight + row * chunkWidth * inputs + column * chunkWidth
        }
        for row in rows {
          let (c, isLast) = (place(row, column), row + 1 == rows.upperBound)
          let next = isLast ? place(rows.lowerBound, column + 2) : place(row + 1, column)
          P.productOverTokens(
            min(chunkWidth, outputs - row * chunkWidth), min(2 * chunkWidth, inputs - column * chunkWidth),
            tiles.part(range), TileChunk(dy + first * padded(outputs), width: padded(outputs), row),
            TileChunk(x + first * padded(inputs), width: padded(inputs), column), StridedTargets(c, stride: inputs),
            next: NextBlock(next, stride: inputs), kernels)
        }
      }
    }
  }
}
