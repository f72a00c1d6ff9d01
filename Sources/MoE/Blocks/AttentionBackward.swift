import CShims

/// Gradients of AttentionForward [FlashAttention 2022]. With P the weights, dP = dO V^T and m = <dO, O> of each query:
///     dV = P^T dO;   dS = scale P (dP - m);   dK = dS^T Q;   dQ = dS K
/// Dropout multiplies P in dV, and dP. Each element is one chain: of dQ over the keys, of dK and dV over the query heads that
/// share them and then over the queries, all ascending.
///
/// One pass over (key block, query block) gives all three, with a key head for an item. Where there are too few key heads for
/// the threads, one pass over key blocks gives dK and dV, and another over query blocks gives dQ, from weights computed
/// twice: the chains are the same.
public struct AttentionBackward {
  private let call: AttentionCall
  private let products: TileProducts
  private let memory: LaneMemory

  init(_ arena: inout Arena, _ call: AttentionCall, in context: ContextPointer) {
    self.call = call
    products = TileProducts(&arena, context)
    var measure = Arena()
    _ = BackwardTiles(&measure, call)
    memory = LaneMemory(&arena, bytes: measure.bytes, context: context)
  }

  /// A call with memory of its own.
  public static func run(
    _ call: AttentionCall, _ arrays: AttentionGradients, in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({ AttentionBackward(&$0, call, in: context) }) { (backward) throws(Fault) in
      try backward.run(arrays, in: context)
    }
  }

  func run(_ arrays: AttentionGradients, in context: ContextPointer) throws(Fault) {
    try runInputs(arrays, in: context)
    try addSinks(arrays, in: context)
  }

  /// All but the sinks' gradients.
  func runInputs(_ arrays: AttentionGradients, in context: ContextPointer) throws(Fault) {
    products.initialise()
    func job(_ part: BackwardJob.Part) -> BackwardJob {
      BackwardJob(
        call: call, arrays: arrays, products: products, dropout: AttentionDropout(call, context.kernels),
        memory: memory, part: part)
    }
    let keyHeads = call.sequences * call.keyHeads
    let rounds = (keyHeads + context.lanes - 1) / context.lanes
    // One pass takes 5 products where two take 7.
    let inOne = 7 * keyHeads >= 5 * rounds * context.lanes
    try context.measure(
      .attention, backward: true, call.work(products: inOne ? (head: 3, value: 2) : (head: 4, value: 3))
    ) { () throws(Fault) in
      if inOne {
        try context.run(keyHeads, job(.all))
      } else {
        try context.run(keyHeads * BackwardTiles.keyBlocks(call), job(.keys))
        try context.run(call.sequences * call.heads * BackwardTiles.queryRuns(call), job(.queries))
      }
    }
  }

  func addSinks(_ arrays: AttentionGradients, in context: ContextPointer) throws(Fault) {
    guard let sinks = call.sinks, let dsinks = arrays.dsinks else { return }
    try context.measure(.attention, backward: true) { () throws(Fault) in
      try context.run(
        call.heads,
        SinkGradientJob(
          call: call, arrays: arrays, sinks: sinks, dsinks: dsinks, kernels: context.kernels, memory: memory))
    }
  }
}

public struct AttentionGradients {
  let arrays: AttentionArrays  // output is only read
  let logSums: UnsafePointer<Float>  // [B,n_heads,S]
  let doutput: UnsafePointer<Float>  // [B,S,n_heads,Dv], rows as output's
  let dquery: UnsafeMutablePointer<Float>  // as query
  let dkey: UnsafeMutablePointer<Float>  // as key
  let dvalue: UnsafeMutablePointer<Float>  // as value
  let dsinks: UnsafeMutablePointer<Float>?  // [n_heads], added to

  public init(
    _ arrays: AttentionArrays, logSums: UnsafePointer<Float>, doutput: UnsafePointer<Float>,
    dquery: UnsafeMutablePointer<Float>, dkey: UnsafeMutablePointer<Float>, dvalue: UnsafeMutablePointer<Float>,
    dsinks: UnsafeMutablePointer<Float>? = nil
  ) {
    (self.arrays, self.logSums, self.doutput) = (arrays, logSums, doutput)
    (self.dquery, self.dkey, self.dvalue, self.dsinks) = (dquery, dkey, dvalue, dsinks)
  }
}

/// What a thread holds at a time: a block of keys and a block of queries.
struct BackwardTiles {
  let keyPanels: UnsafeMutablePointer<Float>  // [panel][D][32], of 32 keys
  let valuePanels: UnsafeMutablePointer<Float>  // [panel][Dv][32]
  let key: UnsafeMutablePointer<Float>  // [chunk][block][32]
  let query: UnsafeMutablePointer<Float>  // tiles
  let doutput: UnsafeMutablePointer<Float>  // tiles
  let weights: UnsafeMutablePointer<Float>  // tiles of scores, then of weights
  let slopes: UnsafeMutablePointer<Float>  // tiles of dP, then of dS
  let logSums: UnsafeMutablePointer<Float>  // [queries]
  let means: UnsafeMutablePointer<Float>  // [queries]
  let firstKeys: UnsafeMutablePointer<Int>  // [queries]
  let bias: UnsafeMutablePointer<Float>  // [height][32]
  let kept: UnsafeMutablePointer<Float>  // [height][32]

  /// Keys and queries of a block, and queries that share what is packed of the keys.
  static let keys = 256
  static let queries = 96
  static let run = 4 * queries

  static func keyBlocks(_ call: AttentionCall) -> Int { (call.keys + keys - 1) / keys }
  static func queryRuns(_ call: AttentionCall) -> Int { (call.queries + run - 1) / run }

  init(_ arena: inout Arena, _ call: AttentionCall) {
    keyPanels = arena.take(Float.self, Self.keys, call.width)
    valuePanels = arena.take(Float.self, Self.keys, call.valueWidth)
    key = arena.take(Float.self, Self.keys, call.width)
    query = arena.take(Float.self, Self.queries, call.width)
    doutput = arena.take(Float.self, Self.queries, call.valueWidth)
    weights = arena.take(Float.self, Self.queries, Self.keys)
    slopes = arena.take(Float.self, Self.queries, Self.keys)
    logSums = arena.take(Float.self, Self.queries)
    means = arena.take(Float.self, Self.queries)
    firstKeys = arena.take(Int.self, Self.queries)
    bias = arena.take(Float.self, TileProducts.height, chunkWidth)
    kept = arena.take(Float.self, TileProducts.height, chunkWidth)
  }
}

private struct BackwardJob: Job {
  enum Part: UInt8 {
    /// Items are key heads.
    case all
    /// Items are key blocks, for dK and dV.
    case keys
    /// Items are runs of queries, for dQ.
    case queries
  }

  let call: AttentionCall
  let arrays: AttentionGradients
  let products: TileProducts
  let dropout: AttentionDropout?
  let memory: LaneMemory
  let part: Part

  private var kernels: UnsafePointer<moei_kernels> { products.kernels }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = memory.arena(lane.pointee.index)
    let tiles = BackwardTiles(&arena, call)
    switch part {
    case .all:
      let (sequence, keyHead) = (item / call.keyHeads, item % call.keyHeads)
      let heads = keyHead * call.group..<(keyHead + 1) * call.group
      run(sequence, keyHead, heads, 0..<call.queries, 0..<call.keys, tiles, lane)
    case .keys:
      let keyHeads = call.sequences * call.keyHeads
      let (sequence, keyHead) = (item % keyHeads / call.keyHeads, item % call.keyHeads)
      let heads = keyHead * call.group..<(keyHead + 1) * call.group
      // The first keys first: where attention is causal most queries see them.
      let start = item / keyHeads * BackwardTiles.keys
      let keys = start..<min(call.keys, start + BackwardTiles.keys)
      run(sequence, keyHead, heads, 0..<call.queries, keys, tiles, lane)
    case .queries:
      let heads = call.sequences * call.heads
      let (sequence, head) = (item % heads / call.heads, item % call.heads)
      let start = (BackwardTiles.queryRuns(call) - 1 - item / heads) * BackwardTiles.run
      let queries = start..<min(call.queries, start + BackwardTiles.run)
      run(sequence, head / call.group, head..<head + 1, queries, 0..<call.keys, tiles, lane)
    }
  }

  private func run(
    _ sequence: Int, _ keyHead: Int, _ heads: Range<Int>, _ queries: Range<Int>, _ keys: Range<Int>,
    _ tiles: BackwardTiles, _ lane: UnsafeMutablePointer<Lane>
  ) {
    if part != .keys {
      for head in heads {
        for query in queries { clear(call.headSize, arrays.dquery + call.query(sequence, query, head)) }
      }
    }
    for start in stride(from: keys.lowerBound, to: keys.upperBound, by: BackwardTiles.keys) {
      let block = KeyBlock(
        sequence: sequence, head: keyHead, keys: start..<min(keys.upperBound, start + BackwardTiles.keys))
      if part != .queries {
        for key in block.keys {
          clear(call.headSize, arrays.dkey + call.key(sequence, key, keyHead))
          clear(call.valueSize, arrays.dvalue + call.value(sequence, key, keyHead))
        }
      }
      if call.masks.hideAll(sequence, block.keys) || !sees(sequence, queries, block, tiles) { continue }
      let hasOddKeys = pack(block, tiles)
      for head in heads {
        for first in stride(from: queries.lowerBound, to: queries.upperBound, by: BackwardTiles.queries) {
          if lane.pointee.shouldStop() { return }
          let queries = first..<min(queries.upperBound, first + BackwardTiles.queries)
          if call.masks.limit(queries.upperBound - 1) <= block.keys.lowerBound { continue }
          call.masks.fillFirstKeys(tiles.firstKeys, sequence, queries)
          if tiles.firstKeys[0] >= block.keys.upperBound { break }  // as the queries that follow
          let hasOddQueries = go(head, queries, block, tiles)
          if hasOddKeys && part != .keys { addOddKeys(head, queries, block, tiles) }
          if hasOddQueries && part != .queries { addOddQueries(head, queries, block, tiles) }
        }
      }
    }
  }

  /// Whether some query may see some key of the block by its place.
  private func sees(_ sequence: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles) -> Bool {
    if call.masks.limit(queries.upperBound - 1) <= block.keys.lowerBound { return false }
    if !call.masks.hideEarly { return true }
    // The first one that the block is not hidden from as a later one.
    let first = max(queries.lowerBound, block.keys.lowerBound - (call.keys - call.queries))
    call.masks.fillFirstKeys(tiles.firstKeys, sequence, first..<first + 1)
    return tiles.firstKeys[0] < block.keys.upperBound
  }

  private func clear(_ size: Int, _ row: UnsafeMutablePointer<Float>) { row.update(repeating: 0, count: size) }

  /// Returns whether there are keys that are not finite: in `tiles.key` they count as 0, and `addOddKeys` follows.
  private func pack(_ block: KeyBlock, _ tiles: BackwardTiles) -> Bool {
    let key = arrays.arrays.key + call.key(block.sequence, block.keys.lowerBound, block.head)
    let value = arrays.arrays.value + call.value(block.sequence, block.keys.lowerBound, block.head)
    for panel in 0..<block.panels {
      let place = panel * chunkWidth
      kernels.pointee.pack_transposed(
        Int64(block.columns(panel)), Int64(call.headSize), key + place * call.keyStride, Int64(call.keyStride),
        tiles.keyPanels + place * call.width)
      kernels.pointee.pack_transposed(
        Int64(block.columns(panel)), Int64(call.valueSize), value + place * call.valueStride, Int64(call.valueStride),
        tiles.valuePanels + place * call.valueWidth)
    }
    kernels.pointee.gather(
      Int64(block.keys.count), Int64(call.headSize), nil, key, Int64(call.keyStride), nil, tiles.key)
    if !call.masks.hideAny || kernels.pointee.sum(Int64(block.keys.count * call.width), tiles.key).isFinite {
      return false
    }
    for (row, key) in block.keys.enumerated() where isOdd(key, block) {
      clearRow(row, of: block.keys.count, tiles.key, call.headSize)
    }
    return true
  }

  /// One block of queries and one of keys. Returns whether there are queries that are not finite, for `addOddQueries`.
  private func go(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles) -> Bool {
    let rows = Tiles(rows: queries.count, maxHeight: TileProducts.height, unit: 1)
    gather(head, queries, block.sequence, rows, tiles)
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      weigh(head, queries, within, block, tiles)
    }
    let hasOddQueries = call.masks.hideAny && !(0..<queries.count).allSatisfy { tiles.means[$0].isFinite }
    if hasOddQueries { clearQueries(rows, tiles) { !tiles.means[$0].isFinite } }
    if part != .queries {
      for panel in 0..<block.panels { addToKeys(panel, queries, rows, block, tiles) }
    }
    if part != .keys {
      for chunk in 0..<chunks(of: call.headSize) {
        for tile in 0..<rows.count {
          let within = rows.rows(tile)
          let seen = panels(within, of: queries, block, tiles)
          let (first, end) = (seen.lowerBound * chunkWidth, min(block.keys.count, seen.upperBound * chunkWidth))
          if first >= end { continue }
          products.add(
            within.count, columns(chunk, of: call.headSize), end - first,
            tiles.slopes + (within.lowerBound * BackwardTiles.keys + first * within.count),
            tiles.key + (chunk * block.keys.count + first) * chunkWidth,
            arrays.dquery + call.query(block.sequence, queries.lowerBound + within.lowerBound, head)
              + chunk * chunkWidth, cStride: call.queryStride)
        }
      }
    }
    return hasOddQueries
  }

  // MARK: what is not finite

  // A weight of 0 is no shield against a value that is not finite: keys and queries with such values are left out of the
  // products, and then added to those alone that they are not hidden from.

  private func isOdd(_ key: Int, _ block: KeyBlock) -> Bool {
    !kernels.pointee.sum(Int64(call.headSize), arrays.arrays.key + call.key(block.sequence, key, block.head)).isFinite
  }

  /// Of [chunk][rows][32], `width` numbers to a row.
  private func clearRow(_ row: Int, of rows: Int, _ tile: UnsafeMutablePointer<Float>, _ width: Int) {
    for chunk in 0..<chunks(of: width) {
      (tile + (chunk * rows + row) * chunkWidth).update(repeating: 0, count: chunkWidth)
    }
  }

  /// Some rows of what has been gathered of the queries.
  private func clearQueries(_ rows: Tiles, _ tiles: BackwardTiles, where isCleared: (Int) -> Bool) {
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      for i in within where isCleared(i) {
        let (row, start) = (i - within.lowerBound, within.lowerBound)
        clearRow(row, of: within.count, tiles.query + start * call.width, call.headSize)
        clearRow(row, of: within.count, tiles.doutput + start * call.valueWidth, call.valueSize)
      }
    }
  }

  /// dQ += dS K for the keys that are not finite.
  private func addOddKeys(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles) {
    for key in block.keys where isOdd(key, block) {
      forEachPair(queries, key..<key + 1, block, tiles) { query, key, place in
        kernels.pointee.add_scaled(
          Int64(call.headSize), tiles.slopes[place], arrays.arrays.key + call.key(block.sequence, key, block.head),
          arrays.dquery + call.query(block.sequence, query, head))
      }
    }
  }

  /// dV += P^T dO and dK += dS^T Q for the queries that are not finite.
  private func addOddQueries(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles) {
    forEachPair(queries, block.keys, block, tiles) { query, key, place in
      if tiles.means[query - queries.lowerBound].isFinite { return }
      kernels.pointee.add_scaled(
        Int64(call.valueSize), tiles.weights[place], arrays.doutput + call.output(block.sequence, query, head),
        arrays.dvalue + call.value(block.sequence, key, block.head))
      kernels.pointee.add_scaled(
        Int64(call.headSize), tiles.slopes[place], arrays.arrays.query + call.query(block.sequence, query, head),
        arrays.dkey + call.key(block.sequence, key, block.head))
    }
  }

  /// Queries and the keys that each sees, and where the tiles have their weight.
  private func forEachPair(
    _ queries: Range<Int>, _ keys: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles,
    _ body: (_ query: Int, _ key: Int, _ place: Int) -> Void
  ) {
    let rows = Tiles(rows: queries.count, maxHeight: TileProducts.height, unit: 1)
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      for i in within {
        for key in keys
        where call.masks.sees(block.sequence, queries.lowerBound + i, key, from: tiles.firstKeys[i]) {
          let (panel, column) = (key - block.keys.lowerBound).quotientAndRemainder(dividingBy: chunkWidth)
          body(
            queries.lowerBound + i, key,
            within.lowerBound * BackwardTiles.keys + (panel * within.count + i - within.lowerBound) * chunkWidth
              + column)
        }
      }
    }
  }

  /// Panels of the block with keys that the places of some queries do not hide; `within`: rows of `queries`.
  private func panels(
    _ within: Range<Int>, of queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles
  ) -> Range<Int> {
    let limit = call.masks.limit(queries.lowerBound + within.upperBound - 1)
    let end = min(block.panels, chunks(of: max(0, limit - block.keys.lowerBound)))
    return min(end, max(0, tiles.firstKeys[within.lowerBound] - block.keys.lowerBound) / chunkWidth)..<end
  }

  private func gather(
    _ head: Int, _ queries: Range<Int>, _ sequence: Int, _ rows: Tiles, _ tiles: BackwardTiles
  ) {
    let output = call.output(sequence, queries.lowerBound, head)
    products.gather(
      rows, call.headSize, arrays.arrays.query + call.query(sequence, queries.lowerBound, head),
      stride: call.queryStride, into: tiles.query)
    products.gather(
      rows, call.valueSize, arrays.doutput + output, stride: call.outputStride, into: tiles.doutput)
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

  /// Weights and dS of one tile of queries. `within`: its rows of all `queries`.
  private func weigh(
    _ head: Int, _ queries: Range<Int>, _ within: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles
  ) {
    let panels = panels(within, of: queries, block, tiles)
    let queries = queries.lowerBound + within.lowerBound..<queries.lowerBound + within.upperBound
    let firstKeys = tiles.firstKeys + within.lowerBound
    let (query, doutput) = (
      tiles.query + within.lowerBound * call.width, tiles.doutput + within.lowerBound * call.valueWidth
    )
    for panel in panels {
      let place = within.lowerBound * BackwardTiles.keys + panel * within.count * chunkWidth
      let (weights, slopes) = (tiles.weights + place, tiles.slopes + place)
      let packed = panel * chunkWidth
      products.set(within.count, call.headSize, query, tiles.keyPanels + packed * call.width, weights)
      products.set(within.count, call.valueSize, doutput, tiles.valuePanels + packed * call.valueWidth, slopes)
      let start = block.keys.lowerBound + panel * chunkWidth
      let keys = start..<start + block.columns(panel)
      let masked = !call.masks.doNothing(block.sequence, queries, keys, from: firstKeys[queries.count - 1])
      if masked {
        for (i, query) in queries.enumerated() {
          call.masks.fill(tiles.bias + i * chunkWidth, step: 1, block.sequence, query, keys, from: firstKeys[i])
        }
      }
      if let dropout {
        for (i, query) in queries.enumerated() {
          dropout.fill(
            tiles.kept + i * chunkWidth, row: call.row(block.sequence, head, query), first: start, count: keys.count)
        }
      }
      kernels.pointee.attention_gradients(
        Int64(within.count), call.scale, masked ? tiles.bias : nil, dropout == nil ? nil : tiles.kept,
        tiles.logSums + within.lowerBound, tiles.means + within.lowerBound, weights, slopes)
    }
  }

  /// dV += P^T dO and dK += dS^T Q for one panel of keys, over the tiles of queries that see it.
  private func addToKeys(_ panel: Int, _ queries: Range<Int>, _ rows: Tiles, _ block: KeyBlock, _ tiles: BackwardTiles)
  {
    func sees(_ tile: Int) -> Bool { panels(rows.rows(tile), of: queries, block, tiles).contains(panel) }
    var first = 0
    while first < rows.count && !sees(first) { first += 1 }
    var end = first
    while end < rows.count && sees(end) { end += 1 }
    if first == end { return }
    let part = rows.part(first..<end)
    let (start, key) = (rows.start(first), block.keys.lowerBound + panel * chunkWidth)
    func add(
      _ size: Int, _ a: UnsafeMutablePointer<Float>, _ b: UnsafeMutablePointer<Float>,
      _ c: UnsafeMutablePointer<Float>, cStride: Int
    ) {
      for chunk in 0..<chunks(of: size) {
        products.addOverRows(
          block.columns(panel), columns(chunk, of: size), part,
          TileChunk(a + start * BackwardTiles.keys, width: BackwardTiles.keys, panel),
          TileChunk(b + start * padded(size), width: padded(size), chunk),
          StridedTargets(c + chunk * chunkWidth, stride: cStride))
      }
    }
    let dvalue = arrays.dvalue + call.value(block.sequence, key, block.head)
    add(call.valueSize, tiles.weights, tiles.doutput, dvalue, cStride: call.valueStride)
    let dkey = arrays.dkey + call.key(block.sequence, key, block.head)
    add(call.headSize, tiles.slopes, tiles.query, dkey, cStride: call.keyStride)
  }
}

/// Of sizes that are no multiple of 32, the last chunk has fewer.
private func columns(_ chunk: Int, of size: Int) -> Int { min(chunkWidth, size - chunk * chunkWidth) }

/// Some keys of one head, in panels of 32.
private struct KeyBlock {
  let sequence: Int
  let head: Int
  let keys: Range<Int>

  var panels: Int { chunks(of: keys.count) }
  func columns(_ panel: Int) -> Int { min(chunkWidth, keys.count - panel * chunkWidth) }
}
