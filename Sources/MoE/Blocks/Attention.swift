import CShims

/// output = softmax(scale * Q K^T + masks) V, head by head [Attention 2017], without the matrix of weights
/// [FlashAttention 2022]. 32 queries at a time meet one block of keys after the other. Scores lie with keys in rows and
/// queries in columns: maxima and sums then run down the columns, and neither keys nor weights need to be transposed.
/// A few queries, as there are when text is generated, would leave most columns empty: they are the rows of their products,
/// which are the same chains.
public struct AttentionForward {
  private var call: AttentionCall
  private let products: TileProducts
  private let memory: LaneMemory
  private let failed: UnsafeMutablePointer<Int>  // of each lane, the first row of [B,n_heads,S] that failed
  private let panels: Int  // of 32 queries, that one item takes

  /// Keys of a block: part of the numeric contract, as the running sums are scaled from block to block.
  static let block = 128

  /// So few queries are rows.
  fileprivate static let few = 4

  init(_ arena: inout Arena, _ call: AttentionCall, in context: ContextPointer) {
    self.call = call
    products = TileProducts(&arena, context)
    failed = arena.take(Int.self, context.lanes)
    panels = Self.panels(call, lanes: context.lanes)
    var measure = Arena()
    _ = ForwardTiles(&measure, call, panels: panels)
    memory = LaneMemory(&arena, bytes: measure.bytes, context: context)
  }

  /// Attention of another call, with no more queries, in this one's memory.
  func over(_ call: AttentionCall) -> AttentionForward {
    var own = self
    own.call = call
    return own
  }

  /// Many panels share what is gathered of keys and values; few panels share the work out evenly.
  private static func panels(_ call: AttentionCall, lanes: Int) -> Int {
    let needed = chunks(of: call.queries)
    var panels = min(needed, 8)
    while panels > 1 && (needed + panels - 1) / panels * call.sequences * call.heads < 4 * lanes { panels /= 2 }
    return panels
  }

  /// A call with memory of its own. `logSums` [B,n_heads,S] is what the backward wants.
  public static func run(
    _ call: AttentionCall, _ arrays: AttentionArrays, logSums: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({ AttentionForward(&$0, call, in: context) }) { (forward) throws(Fault) in
      try forward.run(arrays, logSums: logSums, in: context)
    }
  }

  func run(
    _ arrays: AttentionArrays, logSums: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    products.initialise()
    failed.update(repeating: Int.max, count: context.lanes)
    let blocks = (chunks(of: call.queries) + panels - 1) / panels
    let job = ForwardJob(
      call: call, arrays: arrays, logSums: logSums, products: products,
      dropout: AttentionDropout(call, context.kernels), memory: memory, failed: failed, panels: panels, blocks: blocks)
    try context.measure(.attention, call.work(products: (head: 1, value: 1))) { () throws(Fault) in
      try context.run(blocks * call.sequences * call.heads, job)
    }
    var first = Int.max
    for lane in 0..<context.lanes { first = min(first, failed[lane]) }
    if first < Int.max {
      let (head, query) = (first / call.queries, first % call.queries)
      throw Fault(
        .notFinite,
        "attention: a score of sequence \(head / call.heads), head \(head % call.heads), query \(query) is not finite")
    }
  }
}

/// Tokens in rows `stride` floats apart, as the call has them.
public struct AttentionArrays {
  let query: UnsafePointer<Float>  // [B,S,n_heads,D]
  let key: UnsafePointer<Float>  // [B,U,n_kv_heads,D]
  let value: UnsafePointer<Float>  // [B,U,n_kv_heads,Dv]
  let output: UnsafeMutablePointer<Float>  // [B,S,n_heads,Dv]

  public init(
    query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>,
    output: UnsafeMutablePointer<Float>
  ) {
    (self.query, self.key, self.value, self.output) = (query, key, value, output)
  }
}

/// What a thread holds at a time.
private struct ForwardTiles {
  let query: UnsafeMutablePointer<Float>  // [panel][D][32], or few rows in chunks
  let output: UnsafeMutablePointer<Float>  // [panel][32][Dv, padded], not yet divided by the totals
  let maximum: UnsafeMutablePointer<Float>  // [panel][32]
  let total: UnsafeMutablePointer<Float>  // [panel][32]
  let key: UnsafeMutablePointer<Float>  // tiles of a block, or [panel][D][32] for few queries
  let value: UnsafeMutablePointer<Float>  // [chunk][block][32]
  let scores: UnsafeMutablePointer<Float>  // [block][32]
  let rows: UnsafeMutablePointer<Float>  // [block / 32][few][32]: scores, and weights, of few queries
  let factor: UnsafeMutablePointer<Float>  // [32]
  let inverse: UnsafeMutablePointer<Float>  // [32]
  let logSums: UnsafeMutablePointer<Float>  // [32]
  let bias: UnsafeMutablePointer<Float>  // [block][32]
  let kept: UnsafeMutablePointer<Float>  // [block][32]
  let keptRows: UnsafeMutablePointer<Float>  // [32][block]

  init(_ arena: inout Arena, _ call: AttentionCall, panels: Int) {
    let block = AttentionForward.block
    query = arena.take(Float.self, panels * call.width, chunkWidth)
    output = arena.take(Float.self, panels * call.valueWidth, chunkWidth)
    maximum = arena.take(Float.self, panels, chunkWidth)
    total = arena.take(Float.self, panels, chunkWidth)
    key = arena.take(Float.self, block, call.width)
    value = arena.take(Float.self, block, call.valueWidth)
    scores = arena.take(Float.self, block, chunkWidth)
    rows = arena.take(Float.self, block, AttentionForward.few)
    factor = arena.take(Float.self, chunkWidth)
    inverse = arena.take(Float.self, chunkWidth)
    logSums = arena.take(Float.self, chunkWidth)
    bias = arena.take(Float.self, block, chunkWidth)
    let dropped = call.dropout > 0 ? block : 0
    kept = arena.take(Float.self, dropped, chunkWidth)
    keptRows = arena.take(Float.self, dropped, chunkWidth)
  }
}

/// One item: some panels of queries of one head.
private struct ForwardJob: Job {
  let call: AttentionCall
  let arrays: AttentionArrays
  let logSums: UnsafeMutablePointer<Float>?
  let products: TileProducts
  let dropout: AttentionDropout?
  let memory: LaneMemory
  let failed: UnsafeMutablePointer<Int>
  let panels: Int
  let blocks: Int

  private var kernels: UnsafePointer<moei_kernels> { products.kernels }
  private var few: Bool { call.queries <= AttentionForward.few }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = memory.arena(lane.pointee.index)
    let tiles = ForwardTiles(&arena, call, panels: panels)
    // The last queries first: where attention is causal they see the most keys.
    let heads = call.sequences * call.heads
    let (sequence, head) = (item % heads / call.heads, item % call.heads)
    let first = (blocks - 1 - item / heads) * panels * chunkWidth
    let queries = first..<min(call.queries, first + panels * chunkWidth)
    if !attend(sequence, head, queries, tiles, lane, clears: false) { return }
    end(sequence, head, queries, tiles, lane.pointee.index)
    if !call.masks.hideAny { return }
    // A weight of 0 is no shield against a value that is not finite. Where some output is none, those of queries that may
    // not have seen what made it so are computed again, one by one.
    for query in queries where !isFinite(sequence, head, query) {
      if !attend(sequence, head, query..<query + 1, tiles, lane, clears: true) { return }
      end(sequence, head, query..<query + 1, tiles, lane.pointee.index)
    }
  }

  /// Some queries over all keys, into the tiles; false where it was stopped. `clears`: the values that the only query does not
  /// see count as 0.
  private func attend(
    _ sequence: Int, _ head: Int, _ queries: Range<Int>, _ tiles: ForwardTiles, _ lane: UnsafeMutablePointer<Lane>,
    clears: Bool
  ) -> Bool {
    begin(sequence, head, queries, tiles)
    let limit = call.masks.limit(queries.upperBound - 1)
    // Dropout is drawn for fours of keys from the first on.
    let first = dropout == nil ? call.masks.firstKey(sequence) : 0
    for start in stride(from: first, to: limit, by: AttentionForward.block) {
      if lane.pointee.shouldStop() { return false }
      let keys = start..<min(limit, start + AttentionForward.block)
      if call.masks.hideAll(sequence, keys) { continue }
      let keyTiles = gather(sequence, head / call.group, keys, tiles)
      if clears { clearHidden(sequence, queries.lowerBound, keys, tiles) }
      forEachPanel(queries) { panel, queries in
        // Of the keys those that some query of the panel sees.
        let seen = min(keys.upperBound, call.masks.limit(queries.upperBound - 1)) - start
        if seen > 0 { attend(sequence, head, panel, queries, start..<start + seen, keyTiles, tiles, room: keys.count) }
      }
    }
    return true
  }

  /// Whether an output is finite; false, too, where only its sum is none.
  private func isFinite(_ sequence: Int, _ head: Int, _ query: Int) -> Bool {
    kernels.pointee.sum(Int64(call.valueSize), arrays.output + call.output(sequence, query, head)).isFinite
  }

  private func clearHidden(_ sequence: Int, _ query: Int, _ keys: Range<Int>, _ tiles: ForwardTiles) {
    for (row, key) in keys.enumerated() where !call.masks.sees(sequence, query, key) {
      for chunk in 0..<chunks(of: call.valueSize) {
        (tiles.value + (chunk * keys.count + row) * chunkWidth).update(repeating: 0, count: chunkWidth)
      }
    }
  }

  private func forEachPanel(_ queries: Range<Int>, _ body: (Int, Range<Int>) -> Void) {
    for panel in 0..<chunks(of: queries.count) {
      let start = queries.lowerBound + panel * chunkWidth
      body(panel, start..<min(queries.upperBound, start + chunkWidth))
    }
  }

  private func begin(_ sequence: Int, _ head: Int, _ queries: Range<Int>, _ tiles: ForwardTiles) {
    forEachPanel(queries) { panel, queries in
      let query = arrays.query + call.query(sequence, queries.lowerBound, head)
      if few {
        kernels.pointee.gather(
          Int64(queries.count), Int64(call.headSize), nil, query, Int64(call.queryStride), nil, tiles.query)
      } else {
        kernels.pointee.pack_transposed(
          Int64(queries.count), Int64(call.headSize), query, Int64(call.queryStride),
          tiles.query + panel * call.width * chunkWidth)
      }
    }
    tiles.output.update(repeating: 0, count: panels * call.valueWidth * chunkWidth)
    tiles.maximum.update(repeating: -.infinity, count: panels * chunkWidth)
    tiles.total.update(repeating: 0, count: panels * chunkWidth)
  }

  private func gather(_ sequence: Int, _ keyHead: Int, _ keys: Range<Int>, _ tiles: ForwardTiles) -> Tiles {
    let keyTiles = Tiles(rows: keys.count, maxHeight: TileProducts.height, unit: 1)
    let key = arrays.key + call.key(sequence, keys.lowerBound, keyHead)
    if few {
      for place in stride(from: 0, to: keys.count, by: chunkWidth) {
        kernels.pointee.pack_transposed(
          Int64(min(chunkWidth, keys.count - place)), Int64(call.headSize), key + place * call.keyStride,
          Int64(call.keyStride), tiles.key + place * call.width)
      }
    } else {
      products.gather(keyTiles, call.headSize, key, stride: call.keyStride, into: tiles.key)
    }
    kernels.pointee.gather(
      Int64(keys.count), Int64(call.valueSize), nil, arrays.value + call.value(sequence, keys.lowerBound, keyHead),
      Int64(call.valueStride), nil, tiles.value)
    return keyTiles
  }

  /// One panel of queries and the first keys of a block, of which `room` have been gathered.
  private func attend(
    _ sequence: Int, _ head: Int, _ panel: Int, _ queries: Range<Int>, _ keys: Range<Int>, _ keyTiles: Tiles,
    _ tiles: ForwardTiles, room: Int
  ) {
    if few {
      scoreRows(queries.count, keys.count, tiles)
    } else {
      scoreColumns(panel, keys.count, keyTiles, tiles)
    }
    let masked = !call.masks.doNothing(sequence, queries, keys)
    if masked {
      call.masks.fill(tiles.bias, sequence, queries, queryStep: 1, keys, keyStep: chunkWidth)
    }
    if let dropout { draw(dropout, sequence, head, queries, keys, tiles) }
    kernels.pointee.attention_weights(
      Int64(keys.count), call.scale, masked ? tiles.bias : nil, dropout == nil ? nil : tiles.kept, tiles.scores,
      tiles.maximum + panel * chunkWidth, tiles.total + panel * chunkWidth, tiles.factor)

    let (output, width) = (tiles.output + panel * call.valueWidth * chunkWidth, call.valueWidth)
    for i in 0..<queries.count where tiles.factor[i] != 1 {
      kernels.pointee.scale(Int64(width), tiles.factor[i], output + i * width, output + i * width)
    }
    if few {
      addRows(queries.count, keys.count, tiles, room: room)
    } else {
      addColumns(queries.count, keys.count, output, tiles, room: room)
    }
  }

  private func scoreColumns(_ panel: Int, _ keys: Int, _ keyTiles: Tiles, _ tiles: ForwardTiles) {
    let query = tiles.query + panel * call.width * chunkWidth
    for tile in 0..<keyTiles.count {
      let rows = keyTiles.rows(tile)
      if rows.lowerBound >= keys { break }
      products.set(
        rows.count, call.headSize, tiles.key + rows.lowerBound * call.width, query,
        tiles.scores + rows.lowerBound * chunkWidth)
    }
  }

  /// output[query, :] += the sum over keys of weight * value
  private func addColumns(
    _ queries: Int, _ keys: Int, _ output: UnsafeMutablePointer<Float>, _ tiles: ForwardTiles, room: Int
  ) {
    let height = moei_tiles(count: 1, tall: 1, height: Int32(keys))
    for chunk in 0..<chunks(of: call.valueSize) {
      products.addOverRows(
        queries, chunkWidth, height, TileChunk(tiles.scores, width: chunkWidth, 0),
        TileChunk(tiles.value + chunk * room * chunkWidth, width: chunkWidth, 0),
        StridedTargets(output + chunk * chunkWidth, stride: call.valueWidth))
    }
  }

  // MARK: few queries

  private func scoreRows(_ queries: Int, _ keys: Int, _ tiles: ForwardTiles) {
    for place in stride(from: 0, to: keys, by: chunkWidth) {
      let rows = tiles.rows + place * queries
      products.set(queries, call.headSize, tiles.query, tiles.key + place * call.width, rows)
      for key in 0..<min(chunkWidth, keys - place) {
        for i in 0..<queries { tiles.scores[(place + key) * chunkWidth + i] = rows[i * chunkWidth + key] }
      }
    }
  }

  private func addRows(_ queries: Int, _ keys: Int, _ tiles: ForwardTiles, room: Int) {
    for place in stride(from: 0, to: keys, by: chunkWidth) {
      let rows = tiles.rows + place * queries
      for key in 0..<min(chunkWidth, keys - place) {
        for i in 0..<queries { rows[i * chunkWidth + key] = tiles.scores[(place + key) * chunkWidth + i] }
      }
    }
    for chunk in 0..<chunks(of: call.valueSize) {
      products.add(
        queries, chunkWidth, keys, tiles.rows, tiles.value + chunk * room * chunkWidth,
        tiles.output + chunk * chunkWidth, cStride: call.valueWidth)
    }
  }

  private func draw(
    _ dropout: AttentionDropout, _ sequence: Int, _ head: Int, _ queries: Range<Int>, _ keys: Range<Int>,
    _ tiles: ForwardTiles
  ) {
    for (i, query) in queries.enumerated() {
      dropout.fill(
        tiles.keptRows + i * AttentionForward.block, row: call.row(sequence, head, query), first: keys.lowerBound,
        count: keys.count)
    }
    kernels.pointee.pack_transposed(
      Int64(queries.count), Int64(keys.count), tiles.keptRows, Int64(AttentionForward.block), tiles.kept)
  }

  private func end(_ sequence: Int, _ head: Int, _ queries: Range<Int>, _ tiles: ForwardTiles, _ lane: Int) {
    forEachPanel(queries) { panel, queries in
      let total = tiles.total + panel * chunkWidth
      kernels.pointee.attention_sums(tiles.maximum + panel * chunkWidth, total, tiles.logSums, tiles.inverse)
      for (i, query) in queries.enumerated() {
        let row = call.row(sequence, head, query)
        if !total[i].isFinite { failed[lane] = min(failed[lane], row) }
        kernels.pointee.scale(
          Int64(call.valueSize), tiles.inverse[i], tiles.output + (panel * chunkWidth + i) * call.valueWidth,
          arrays.output + call.output(sequence, query, head))
        logSums?[row] = tiles.logSums[i]
      }
    }
  }
}
