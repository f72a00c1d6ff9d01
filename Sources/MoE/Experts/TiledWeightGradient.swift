import CShims

/// Step 4 of TiledBackward.swift: a few chunks of features of x and dy for each piece, for all rows of an expert.
struct TiledWeightGradient<P: Precision>: GroupBackwardJob {
  let inner: TiledInnerGradient<P>
  let list: WorkList
  // Scratch of each thread: rows of x, and of dy times the routing weights, tiled for sums over tokens.
  let xs: UnsafeMutablePointer<P.Element>
  let dys: UnsafeMutablePointer<P.Element>
  let elementsPerLane: Int
  /// Blocks of sums that cannot wait in the gradient: one, or all of a piece where rows come in several parts. One more is the room
  /// for the places that a step wants.
  private let blocks: UnsafeMutablePointer<Float>  // [lanes, blocksPerLane, 32, 64]
  private let blocksPerLane: Int

  private static var chunksPerPiece: Int { 4 }
  /// Tiles that are gathered at once. Between them the sums wait in the gradient's own memory.
  private static var tilesAtOnce: Int { 32 }
  private static var matrices: Int { 3 }

  var work: GroupWork { inner.work }
  var gradients: GroupGradients { inner.gradients }

  init(_ arena: inout Arena, _ inner: TiledInnerGradient<P>) {
    self.inner = inner
    let work = inner.work
    list = WorkList(
      &arena, work, unit: P.unit, chunks: chunks(of: work.c.hidden), chunksPerPiece: Self.chunksPerPiece)
    let rows = P.filledUp(work.rows(ofTiles: Self.tilesAtOnce))
    elementsPerLane = rows * Self.chunksPerPiece * chunkWidth
    xs = arena.take(P.Element.self, work.lanes, elementsPerLane)
    dys = arena.take(P.Element.self, work.lanes, elementsPerLane)
    let inOnePart =
      work.dispatch.most <= Self.tilesAtOnce * (Int(work.kernels.pointee.tile_height) / P.unit * P.unit)
    let needed = inOnePart ? 1 : Self.chunksPerPiece * Self.pairs(chunks(of: work.c.intermediate)) * Self.matrices
    blocksPerLane = inner.gradients.waitElsewhere(work) ? needed + 1 : 0
    blocks = arena.take(Float.self, work.lanes * blocksPerLane, GradientBlock<P>.size)
  }

  /// So many chunks in pairs, the last of which may be a single one.
  private static func pairs(_ chunks: Int) -> Int { (chunks + 1) / 2 }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(list.fill(dispatch), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let piece = list.piece(item, dispatch)
    let (h, i) = (c.hidden, c.intermediate)
    let grad = gradients.tensors(work, expert: piece.expert)
    let tiles = piece.tiles
    let column = piece.chunks.lowerBound * chunkWidth
    let width = piece.chunks.count * chunkWidth  // of the gathered rows
    let xs = xs + lane.pointee.index * elementsPerLane  // [rows, width]
    let dys = dys + lane.pointee.index * elementsPerLane

    for firstTile in stride(from: 0, to: tiles.count, by: Self.tilesAtOnce) {
      let range = firstTile..<min(firstTile + Self.tilesAtOnce, tiles.count)
      let wide = min(width, h - column)
      func gather(
        _ source: UnsafePointer<Float>, weighted: Bool, into out: UnsafeMutablePointer<P.Element>
      ) {
        piece.gatherTokens(P.self, range, wide, of: source + column, xRow: h, weighted: weighted, into: out, kernels)
      }
      if grad.gateWeight != nil || grad.upWeight != nil { gather(x, weighted: c.weightOnInput, into: xs) }
      if grad.downWeight != nil || grad.downBias != nil { gather(dy, weighted: !c.weightOnInput, into: dys) }
      let part = tiles.part(range)
      // Where these rows' inner arrays begin.
      let inPart = piece.placeOfTokens(P.self, 0, tiles.rows(range), width: padded(i))
      let isWhole = range.count == tiles.count
      let places = blocks + lane.pointee.index * blocksPerLane * GradientBlock<P>.size
      let waiting = places + (blocksPerLane == 0 ? 0 : GradientBlock<P>.size)
      /// Block number `number` of a matrix's in this piece.
      func sums(_ matrix: Int, _ number: Int) -> GradientBlock<P> {
        let block = isWhole ? waiting : waiting + (number * Self.matrices + matrix) * GradientBlock<P>.size
        return GradientBlock(
          tiles: part, begins: range.lowerBound == 0, ends: range.upperBound == tiles.count, block: block,
          wanted: UnsafeMutableRawPointer(places).assumingMemoryBound(to: UnsafeRawPointer.self), kernels: kernels)
      }
      // Two chunks by two, so that what is brought into the cache is used twice: rows of 32 outputs meet two chunks.
      piece.chunks.forEachRun(of: 2) { outer in
        if lane.pointee.shouldStop() { return }
        (0..<chunks(of: i)).forEachRun(of: 2) { pair in
          let (f, j) = (outer.lowerBound * chunkWidth, pair.lowerBound * chunkWidth)
          let ownPair = outer.lowerBound - piece.chunks.lowerBound
          /// dW[row..., f...] += d^T x
          func add(
            _ d: UnsafePointer<P.Element>, to gradient: GradientMatrix, _ matrix: Int, following: NextBlock?
          ) {
            for innerChunk in pair {
              let row = innerChunk * chunkWidth
              let isLast = innerChunk + 1 == pair.upperBound
              sums(matrix, innerChunk * Self.pairs(Self.chunksPerPiece) + ownPair / 2).add(
                min(chunkWidth, i - row), TileChunk(d + inPart, width: padded(i), innerChunk),
                min(outer.count * chunkWidth, h - f), TileChunk(xs, width: width, ownPair), to: gradient, row, f,
                next: isLast ? following : gradient.block(row + chunkWidth, f))
            }
          }
          let (first, up, down) = (grad.gateWeight ?? grad.upWeight, grad.upWeight, grad.downWeight)
          // What comes after this pair: the next one, of the same columns or of the next ones.
          let after =
            pair.upperBound < chunks(of: i)
            ? first?.block(j + 2 * chunkWidth, f) : first?.block(0, f + 2 * chunkWidth)
          let ownDown = down?.block(f, j)
          if let dGate = inner.dGateTokens, let gradient = grad.gateWeight {
            add(dGate, to: gradient, 0, following: up?.block(j, f) ?? ownDown ?? after)
          }
          if !c.linear, let gradient = up { add(inner.dUpTokens, to: gradient, 1, following: ownDown ?? after) }
          if let gradient = down {
            for chunk in outer {
              let (own, row) = (chunk - piece.chunks.lowerBound, chunk * chunkWidth)
              sums(2, own * Self.pairs(chunks(of: i)) + pair.lowerBound / 2).add(
                min(chunkWidth, h - row), TileChunk(dys, width: width, own), min(pair.count * chunkWidth, i - j),
                TileChunk(inner.activations + inPart, width: padded(i), pair.lowerBound), to: gradient, row, j,
                next: chunk + 1 < outer.upperBound
                  ? gradient.block(row + chunkWidth, j) : c.linear ? gradient.block(f, j + 2 * chunkWidth) : after)
            }
          }
        }
      }
      if let bias = grad.downBias {
        for chunk in piece.chunks {
          let f = chunk * chunkWidth
          addRows(
            tiles, range, dys, width, chunk - piece.chunks.lowerBound, to: bias + f, min(chunkWidth, h - f))
        }
      }
      // The inner biases belong to no feature of x: the piece with the first ones does them.
      if column == 0 {
        for innerChunk in 0..<chunks(of: i) {
          let j = innerChunk * chunkWidth
          let columns = min(chunkWidth, i - j)
          if let bias = grad.gateBias {
            addRows(tiles, range, inner.dGateTokens! + inPart, padded(i), innerChunk, to: bias + j, columns)
          }
          if let bias = grad.upBias {
            addRows(tiles, range, inner.dUpTokens + inPart, padded(i), innerChunk, to: bias + j, columns)
          }
        }
      }
    }
  }

  /// A bias's gradient: one chunk of the rows of some tiles, which begin at `source`, added up in ascending order.
  private func addRows(
    _ tiles: Tiles, _ range: Range<Int>, _ source: UnsafePointer<P.Element>, _ width: Int, _ chunk: Int,
    to sum: UnsafeMutablePointer<Float>, _ columns: Int
  ) {
    let first = tiles.start(range.lowerBound)
    for tile in range {
      let rows = tiles.rows(tile)
      let here =
        source + (rows.lowerBound - first) * width + chunk * chunkWidth * P.filledUp(rows.count)
      P.addTokens(rows.count, columns, here, to: sum, kernels)
    }
  }
}
