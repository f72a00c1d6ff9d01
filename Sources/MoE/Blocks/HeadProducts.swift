import CShims

// Products of each head's rows with its own part of one matrix, all heads at once: the heads of a few tokens are then as much
// work as a matrix is.
//     rows     y = x W_h^T     W_h [outputs, inputs]: rows of the matrix that belong to the head
//     columns  y = x W_h       x has a head's outputs, y its inputs

/// Rows of tokens in which every head has a part.
struct HeadRows<Pointer: Strideable> where Pointer.Stride == Int {
  let start: Pointer  // of the first head
  let token: Int  // floats from one token to the next
  let head: Int  // floats from one head to the next

  init(_ start: Pointer, token: Int, head: Int) { (self.start, self.token, self.head) = (start, token, head) }

  func of(_ head: Int, from token: Int = 0) -> Pointer { start.advanced(by: token * self.token + head * self.head) }
}

typealias HeadSources = HeadRows<UnsafePointer<Float>>
typealias HeadTargets = HeadRows<UnsafeMutablePointer<Float>>

/// The scratch is taken once; any number of runs may follow, one at a time.
struct HeadProducts {
  enum Kind: Int32 {
    case rows
    case columns
  }

  private enum Form {
    case plain(PlainLinear)
    case f32(TiledHeads<F32>)
    case bf16(TiledHeads<BF16>)
  }

  private let kind: Kind
  private let shape: LinearShape  // of one head's part
  private let weight: Parameter
  private let first: Int
  private let rowsPerHead: Int
  private let form: Form

  /// Head h has the rows of `weight` from  first + h * rowsPerHead  on.
  init(
    _ arena: inout Arena, _ kind: Kind, _ weight: Parameter, first: Int, rows: Int, rowsPerHead: Int, tokens: Int,
    context: ContextPointer
  ) {
    (self.kind, self.weight, self.first, self.rowsPerHead) = (kind, weight, first, rowsPerHead)
    let inputs = weight.shape.1
    shape = LinearShape(tokens: tokens, inputs: inputs, outputs: rows, weights: weight.type)
    if !context.packsWeights {
      form = .plain(PlainLinear(&arena, shape, context: context))
      return
    }
    let depth = kind == .rows ? inputs : rows
    switch shape.precision {
    case .f32: form = .f32(TiledHeads(&arena, depth: depth, tokens: tokens, context: context))
    case .bf16: form = .bf16(TiledHeads(&arena, depth: depth, tokens: tokens, context: context))
    }
  }

  /// Heads of the matrix, those of x and y counted from 0.
  func run(_ heads: Range<Int>, x: HeadSources, y: HeadTargets, in context: ContextPointer) throws(Fault) {
    let work = Work(
      flops: 2 * heads.count * shape.tokens * shape.inputs * shape.outputs,
      bytes: shape.weights.bytes(heads.count * shape.inputs * shape.outputs)
        + heads.count * shape.tokens * (shape.inputs + shape.outputs) * 4)
    try context.measure(.projection, work) { () throws(Fault) in
      switch form {
      case .plain(let plain): try run(plain, heads, x, y, in: context)
      case .f32(let tiled): try tiled.run(job(heads, x, y, tiled), in: context)
      case .bf16(let tiled): try tiled.run(job(heads, x, y, tiled), in: context)
      }
    }
  }

  private func part(_ head: Int) -> StoredMatrix {
    StoredMatrix(weight.data!, weight.type, rowStride: shape.inputs).from(row: first + head * rowsPerHead)
  }

  private func run(
    _ plain: PlainLinear, _ heads: Range<Int>, _ x: HeadSources, _ y: HeadTargets, in context: ContextPointer
  ) throws(Fault) {
    for (i, head) in heads.enumerated() {
      let weight = part(head).address
      let (from, to) = (StridedRows(x.of(i), stride: x.token), StridedTargets(y.of(i), stride: y.token))
      switch kind {
      case .rows: try plain.forward(shape.tokens, from, weight, nil, to, in: context)
      case .columns: try plain.backward(shape.tokens, from, weight, from, to, nil, in: context)
      }
    }
  }

  private func job<P: Precision>(
    _ heads: Range<Int>, _ x: HeadSources, _ y: HeadTargets, _ tiled: TiledHeads<P>
  ) -> HeadJob<P> {
    HeadJob(
      tiled: tiled, matrix: part(heads.lowerBound), elementsPerHead: rowsPerHead * shape.inputs, heads: heads.count,
      transposed: kind == .rows, tokens: shape.tokens, columns: kind == .rows ? shape.outputs : shape.inputs, x: x, y: y
    )
  }
}

/// By our own kernels: an item is some tokens of one head.
struct TiledHeads<P: Precision> {
  let kernels: UnsafePointer<moei_kernels>
  let depth: Int
  let rowsAtOnce: Int
  let space: PanelSpace<P>
  private let rows: UnsafeMutablePointer<P.Element>  // [lanes, rowsAtOnce, padded depth], tiled

  /// Tiles of an item: enough for the packing of weights not to weigh.
  private static var tilesAtOnce: Int { 8 }

  init(_ arena: inout Arena, depth: Int, tokens: Int, context: ContextPointer) {
    kernels = context.kernels
    self.depth = depth
    rowsAtOnce = min(tokens, Self.tilesAtOnce * Int(kernels.pointee.tile_height))
    rows = arena.take(P.Element.self, context.lanes * rowsAtOnce, padded(depth))
    space = PanelSpace(&arena, context: context)
  }

  func rows(_ lane: Int) -> UnsafeMutablePointer<P.Element> { rows + lane * rowsAtOnce * padded(depth) }

  func run(_ job: HeadJob<P>, in context: ContextPointer) throws(Fault) {
    let blocks = (job.tokens + rowsAtOnce - 1) / max(1, rowsAtOnce)
    try context.run(blocks * job.heads, job)
  }
}

struct HeadJob<P: Precision>: Job {
  let tiled: TiledHeads<P>
  let matrix: StoredMatrix  // the first head's part
  let elementsPerHead: Int
  let heads: Int
  let transposed: Bool
  let tokens: Int
  let columns: Int
  let x: HeadSources
  let y: HeadTargets

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (block, head) = item.quotientAndRemainder(dividingBy: heads)
    let (first, depth, kernels) = (block * tiled.rowsAtOnce, tiled.depth, tiled.kernels)
    let tiles = Tiles(
      rows: min(tiled.rowsAtOnce, tokens - first), maxHeight: Int(kernels.pointee.tile_height), unit: P.unit)
    let (a, from, to) = (tiled.rows(lane.pointee.index), x.of(head, from: first), y.of(head, from: first))
    for tile in 0..<tiles.count {
      let rows = tiles.rows(tile)
      P.gather(
        rows.count, depth, nil, from + rows.lowerBound * x.token, xRow: x.token, weights: nil,
        into: a + rows.lowerBound * padded(depth), kernels)
    }
    let matrix = matrix.from(head * elementsPerHead)
    let starts = tiled.space.starts(lane.pointee.index)
    starts.update(repeating: 0, count: panelsAtOnce * chunkWidth)
    func width(_ chunk: Int) -> Int { min(chunkWidth, columns - chunk * chunkWidth) }
    func panel(_ chunk: Int) -> WeightPanel<P> {
      WeightPanel(
        matrix.from(chunk * chunkWidth * (transposed ? matrix.rowStride : 1)), transposed: transposed,
        columns: width(chunk))
    }
    let products = PanelProducts<P>(
      kernels: kernels, tiles: tiles, range: 0..<tiles.count, depth: depth,
      packed: tiled.space.packed(lane.pointee.index))
    let end = chunks(of: columns)
    (0..<end).forEachRun(of: panelsAtOnce) { run in
      if lane.pointee.shouldStop() { return }
      products.run(
        run.count, { panel(run.lowerBound + $0) },
        next: { run.upperBound < end ? panel(run.upperBound) : nil },
        a: { UnsafePointer(a) + $0.lowerBound * padded(depth) }, start: { UnsafePointer(starts + $0 * chunkWidth) },
        c: { to + $1.lowerBound * y.token + (run.lowerBound + $0) * chunkWidth }, cStride: y.token,
        columns: { width(run.lowerBound + $0) })
    }
  }
}
