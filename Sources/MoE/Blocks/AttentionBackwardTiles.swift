import CShims

/// What a thread holds at a time: a block of keys and a block of queries. What sums over rows read lies as they want it; in float32
/// that is the same array.
struct BackwardTiles<P: AttentionPrecision> {
  let keyPanels: P.Target  // [panel][D / unit][32][unit], of 32 keys
  let valuePanels: P.Target  // [panel][Dv / unit][32][unit]
  let key: P.Target  // [chunk][block / unit][32][unit]
  let query: P.Target  // tiles
  let queryTokens: P.Target
  let doutput: P.Target  // tiles
  let doutputTokens: P.Target
  let scores: UnsafeMutablePointer<Float>  // tiles of S
  let slopes: UnsafeMutablePointer<Float>  // tiles of dP
  let weights: P.Target  // tiles of P, for sums over queries alone
  let dscores: P.Target  // tiles of dS
  let dscoresTokens: P.Target
  let scratch: P.Target  // [32, width] where keys and values are rounded before they are packed
  let logSums: UnsafeMutablePointer<Float>  // [queries]
  let means: UnsafeMutablePointer<Float>  // [queries]
  let firstKeys: UnsafeMutablePointer<Int>  // [queries]
  let bias: UnsafeMutablePointer<Float>  // [height][32]
  let kept: UnsafeMutablePointer<Float>  // [height][32]

  init(_ arena: inout Arena, _ call: AttentionCall) {
    let (keys, queries) = (AttentionCall.keysAtOnce, AttentionCall.queriesAtOnce)
    let apart = P.unit > 1 ? 1 : 0
    keyPanels = arena.take(P.Element.self, keys, call.width)
    valuePanels = arena.take(P.Element.self, keys, call.valueWidth)
    key = arena.take(P.Element.self, keys, call.width)
    query = arena.take(P.Element.self, queries, call.width)
    queryTokens = apart == 1 ? arena.take(P.Element.self, queries, call.width) : query
    doutput = arena.take(P.Element.self, queries, call.valueWidth)
    doutputTokens = apart == 1 ? arena.take(P.Element.self, queries, call.valueWidth) : doutput
    weights = arena.take(P.Element.self, queries, keys)
    scores = P.workplace(weights, or: arena.take(Float.self, apart * queries, keys))
    dscores = arena.take(P.Element.self, queries, keys)
    dscoresTokens = apart == 1 ? arena.take(P.Element.self, queries, keys) : dscores
    slopes = P.workplace(dscores, or: arena.take(Float.self, apart * queries, keys))
    scratch = arena.take(P.Element.self, apart * chunkWidth, max(call.width, call.valueWidth))
    logSums = arena.take(Float.self, queries)
    means = arena.take(Float.self, queries)
    firstKeys = arena.take(Int.self, queries)
    bias = arena.take(Float.self, TileProducts.height, chunkWidth)
    kept = arena.take(Float.self, TileProducts.height, chunkWidth)
  }
}

// MARK: from memory to the tiles

extension BackwardJob {
  /// Puts 0 into rows `stride` floats apart, which are asked for beforehand: the processor does not foresee short pieces.
  func clear(_ rows: Int, _ width: Int, _ first: UnsafeMutablePointer<Float>, stride: Int) {
    let ahead = 16
    products.fetchToWrite(min(ahead, rows), width, first, stride: stride)
    for row in 0..<rows {
      if row + ahead < rows { products.fetchToWrite(1, width, first + (row + ahead) * stride, stride: stride) }
      (first + row * stride).update(repeating: 0, count: width)
    }
  }

  /// What belongs to queries that come next: short pieces, but where they have been rounded.
  func fetch(_ sequence: Int, _ head: Int, _ queries: Range<Int>) {
    let output = call.output(sequence, queries.lowerBound, head)
    if let query = roundedQueries(sequence, head, queries.lowerBound) {
      products.fetch(queries.count, call.headSize, query, stride: call.headSize)
    } else {
      products.fetch(
        queries.count, call.headSize, arrays.arrays.query + call.query(sequence, queries.lowerBound, head),
        stride: call.queryStride)
    }
    products.fetch(queries.count, call.valueSize, arrays.doutput + output, stride: call.outputStride)
    products.fetch(queries.count, call.valueSize, arrays.arrays.output + output, stride: call.outputStride)
  }

  /// Returns whether there are keys that are not finite: in `tiles.key` they count as 0, and `addOddKeys` follows.
  func pack(_ block: KeyBlock, _ tiles: BackwardTiles<P>) -> Bool {
    if let rounded = arrays.rounded {
      packRounded(rounded.pointee, block, tiles)
    } else {
      packFloats(block, tiles)
    }
    var hasOdd = false
    if call.masks.hideAny {
      for (row, key) in block.keys.enumerated() where isOdd(key, block, tiles) {
        P.clearRow(row, of: block.keys.count, tiles.key, call.headSize)
        hasOdd = true
      }
    }
    return hasOdd
  }

  private func packFloats(_ block: KeyBlock, _ tiles: BackwardTiles<P>) {
    let key = arrays.arrays.key + call.key(block.sequence, block.keys.lowerBound, block.head)
    let value = arrays.arrays.value + call.value(block.sequence, block.keys.lowerBound, block.head)
    products.fetch(block.keys.count, call.headSize, key, stride: call.keyStride)
    products.fetch(block.keys.count, call.valueSize, value, stride: call.valueStride)
    for panel in 0..<block.panels {
      let place = panel * chunkWidth
      products.pack(
        P.self, block.columns(panel), call.headSize, key + place * call.keyStride, stride: call.keyStride,
        into: tiles.keyPanels + place * call.width, tiles.scratch)
      products.pack(
        P.self, block.columns(panel), call.valueSize, value + place * call.valueStride, stride: call.valueStride,
        into: tiles.valuePanels + place * call.valueWidth, tiles.scratch)
    }
    products.gatherTokens(
      P.self, block.keys.count, call.headSize, key, stride: call.keyStride, into: tiles.key)
  }

  private func packRounded(_ rounded: RoundedHeads, _ block: KeyBlock, _ tiles: BackwardTiles<P>) {
    let first = block.sequence * call.keys + block.keys.lowerBound
    let (key, value) = (elements(rounded.key.row(block.head, first)), elements(rounded.value.row(block.head, first)))
    func pack(_ panel: Int, _ rows: P.Source, _ width: Int, into panels: P.Target) {
      let place = panel * chunkWidth
      P.pack(
        block.columns(panel), width, rows + place * width, rowStride: width, transposed: true,
        into: panels + place * padded(width), kernels)
    }
    for panel in 0..<block.panels {
      pack(panel, key, call.headSize, into: tiles.keyPanels)
      pack(panel, value, call.valueSize, into: tiles.valuePanels)
    }
    P.gatherRoundedTokens(
      block.keys.count, call.headSize, key, stride: call.headSize, into: tiles.key, kernels)
  }

  func gather(
    _ head: Int, _ queries: Range<Int>, _ sequence: Int, _ rows: Tiles, _ tiles: BackwardTiles<P>
  ) {
    let output = call.output(sequence, queries.lowerBound, head)
    let query = arrays.arrays.query + call.query(sequence, queries.lowerBound, head)
    let rounded = roundedQueries(sequence, head, queries.lowerBound)
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      let (tile, tokens) = (
        tiles.query + within.lowerBound * call.width, tiles.queryTokens + within.lowerBound * call.width
      )
      if let own = rounded.map({ $0 + within.lowerBound * call.headSize }) {
        P.gatherRounded(within.count, call.headSize, own, stride: call.headSize, into: tile)
        P.gatherRoundedTokens(within.count, call.headSize, own, stride: call.headSize, into: tokens, kernels)
      } else {
        gather(
          within.count, call.headSize, query + within.lowerBound * call.queryStride, stride: call.queryStride,
          into: tile, tokens)
      }
      gather(
        within.count, call.valueSize, arrays.doutput + (output + within.lowerBound * call.outputStride),
        stride: call.outputStride, into: tiles.doutput + within.lowerBound * call.valueWidth,
        tiles.doutputTokens + within.lowerBound * call.valueWidth)
    }
    for i in 0..<queries.count {
      let logSum = arrays.logSums[call.row(sequence, head, queries.lowerBound + i)]
      if logSum == -.infinity {
        // A query that sees nothing: its weights are exp(minus infinity - 0), whatever it is itself.
        (tiles.logSums[i], tiles.means[i]) = (0, 0)
        continue
      }
      tiles.logSums[i] = logSum
      tiles.means[i] = kernels.pointee.dot(
        Int64(call.valueSize), arrays.doutput + (output + i * call.outputStride),
        arrays.arrays.output + (output + i * call.outputStride))
    }
    clearQueries(rows, tiles) {
      arrays.logSums[call.row(sequence, head, queries.lowerBound + $0)] == -.infinity
    }
  }

  /// Rows for products of features and, where that is another array, for sums over them.
  private func gather(
    _ m: Int, _ columns: Int, _ x: UnsafePointer<Float>, stride: Int, into rows: P.Target, _ tokens: P.Target
  ) {
    products.gather(P.self, m, columns, x, stride: stride, into: rows)
    if P.unit > 1 { products.gatherTokens(P.self, m, columns, x, stride: stride, into: tokens) }
  }

  /// A head's queries from one on, where they have been rounded; the next one's row follows.
  private func roundedQueries(_ sequence: Int, _ head: Int, _ first: Int) -> P.Source? {
    arrays.rounded.map { elements($0.pointee.query.row(head, sequence * call.queries + first)) }
  }

  private func elements(_ rows: UnsafePointer<UInt16>) -> P.Source {
    UnsafeRawPointer(rows).assumingMemoryBound(to: P.Element.self)
  }
}
