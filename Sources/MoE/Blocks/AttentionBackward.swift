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
    products = TileProducts(&arena, context, call.precision)
    var measure = Arena()
    switch products.precision {
    case .f32: _ = BackwardTiles<F32>(&measure, call)
    case .bf16: _ = BackwardTiles<BF16>(&measure, call)
    }
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
    let keyHeads = call.sequences * call.keyHeads
    let rounds = (keyHeads + context.lanes - 1) / context.lanes
    // One pass takes 5 products where two take 7.
    let inOne = 7 * keyHeads >= 5 * rounds * context.lanes
    try context.measure(
      .attention, backward: true, call.work(products: inOne ? (head: 3, value: 2) : (head: 4, value: 3))
    ) { () throws(Fault) in
      switch products.precision {
      case .f32: try run(F32.self, inOne: inOne, arrays, in: context)
      case .bf16: try run(BF16.self, inOne: inOne, arrays, in: context)
      }
    }
  }

  private func run<P: AttentionPrecision>(
    _: P.Type, inOne: Bool, _ arrays: AttentionGradients, in context: ContextPointer
  ) throws(Fault) {
    func run(_ items: Int, _ part: BackwardPart) throws(Fault) {
      try context.run(
        items,
        BackwardJob<P>(
          call: call, arrays: arrays, products: products, dropout: AttentionDropout(call, context.kernels),
          memory: memory, part: part))
    }
    let keyHeads = call.sequences * call.keyHeads
    if inOne { return try run(keyHeads, .all) }
    try run(keyHeads * call.keyBlocks, .keys)
    try run(call.sequences * call.heads * call.queryRuns, .queries)
  }

  func addSinks(_ arrays: AttentionGradients, in context: ContextPointer) throws(Fault) {
    guard let sinks = call.sinks, let dsinks = arrays.dsinks else { return }
    try context.measure(.attention, backward: true) { () throws(Fault) in
      func job<P: AttentionPrecision>(_: P.Type) -> SinkGradientJob<P> {
        SinkGradientJob(
          call: call, arrays: arrays, sinks: sinks, dsinks: dsinks, kernels: context.kernels, memory: memory)
      }
      switch products.precision {
      case .f32: try context.run(call.heads, job(F32.self))
      case .bf16: try context.run(call.heads, job(BF16.self))
      }
    }
  }
}

public struct AttentionGradients {
  let arrays: AttentionArrays  // output is only read
  /// Where queries, keys and values are read in place of the floats of `arrays`.
  var rounded: UnsafePointer<RoundedHeads>? { arrays.rounded }
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

extension AttentionCall {
  /// Keys and queries of a block of the backward, and queries that share what is packed of the keys.
  static let keysAtOnce = 256
  static let queriesAtOnce = 96
  static let queriesOfRun = 4 * queriesAtOnce

  fileprivate var keyBlocks: Int { (keys + Self.keysAtOnce - 1) / Self.keysAtOnce }
  fileprivate var queryRuns: Int { (queries + Self.queriesOfRun - 1) / Self.queriesOfRun }
}

enum BackwardPart: UInt8 {
  /// Items are key heads.
  case all
  /// Items are key blocks, for dK and dV.
  case keys
  /// Items are runs of queries, for dQ.
  case queries
}

struct BackwardJob<P: AttentionPrecision>: Job {
  let call: AttentionCall
  let arrays: AttentionGradients
  let products: TileProducts
  let dropout: AttentionDropout?
  let memory: LaneMemory
  let part: BackwardPart

  var kernels: UnsafePointer<moei_kernels> { products.kernels }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = memory.arena(lane.pointee.index)
    let tiles = BackwardTiles<P>(&arena, call)
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
      let start = item / keyHeads * AttentionCall.keysAtOnce
      let keys = start..<min(call.keys, start + AttentionCall.keysAtOnce)
      run(sequence, keyHead, heads, 0..<call.queries, keys, tiles, lane)
    case .queries:
      let heads = call.sequences * call.heads
      let (sequence, head) = (item % heads / call.heads, item % call.heads)
      let start = (call.queryRuns - 1 - item / heads) * AttentionCall.queriesOfRun
      let queries = start..<min(call.queries, start + AttentionCall.queriesOfRun)
      run(sequence, head / call.group, head..<head + 1, queries, 0..<call.keys, tiles, lane)
    }
  }

  private func run(
    _ sequence: Int, _ keyHead: Int, _ heads: Range<Int>, _ queries: Range<Int>, _ keys: Range<Int>,
    _ tiles: BackwardTiles<P>, _ lane: UnsafeMutablePointer<Lane>
  ) {
    if part != .keys {
      for head in heads {
        clear(
          queries.count, call.headSize, arrays.dquery + call.query(sequence, queries.lowerBound, head),
          stride: call.queryStride)
      }
    }
    for start in stride(from: keys.lowerBound, to: keys.upperBound, by: AttentionCall.keysAtOnce) {
      let block = KeyBlock(
        sequence: sequence, head: keyHead, keys: start..<min(keys.upperBound, start + AttentionCall.keysAtOnce))
      if part != .queries {
        clear(
          block.keys.count, call.headSize, arrays.dkey + call.key(sequence, start, keyHead), stride: call.keyStride)
        clear(
          block.keys.count, call.valueSize, arrays.dvalue + call.value(sequence, start, keyHead),
          stride: call.valueStride)
      }
      if call.masks.hideAll(sequence, block.keys) || !sees(sequence, queries, block, tiles) { continue }
      fetch(sequence, heads.lowerBound, queries.prefix(AttentionCall.queriesAtOnce))
      let hasOddKeys = pack(block, tiles)
      for head in heads {
        for first in stride(from: queries.lowerBound, to: queries.upperBound, by: AttentionCall.queriesAtOnce) {
          if lane.pointee.shouldStop() { return }
          let next = queries.dropFirst(first - queries.lowerBound + AttentionCall.queriesAtOnce)
          if !next.isEmpty {
            fetch(sequence, head, next.prefix(AttentionCall.queriesAtOnce))
          } else if head + 1 < heads.upperBound {
            fetch(sequence, head + 1, queries.prefix(AttentionCall.queriesAtOnce))
          }
          let queries = first..<min(queries.upperBound, first + AttentionCall.queriesAtOnce)
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
  private func sees(_ sequence: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>) -> Bool {
    if call.masks.limit(queries.upperBound - 1) <= block.keys.lowerBound { return false }
    if !call.masks.hideEarly { return true }
    // The first one that the block is not hidden from as a later one.
    let first = max(queries.lowerBound, block.keys.lowerBound - (call.keys - call.queries))
    call.masks.fillFirstKeys(tiles.firstKeys, sequence, first..<first + 1)
    return tiles.firstKeys[0] < block.keys.upperBound
  }

  /// One block of queries and one of keys. Returns whether there are queries that are not finite, for `addOddQueries`.
  private func go(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>) -> Bool {
    let rows = Tiles(rows: queries.count, maxHeight: TileProducts.height, unit: P.unit)
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
            P.self, within.count, columns(chunk, of: call.headSize), end - first,
            tiles.dscores + (within.lowerBound * AttentionCall.keysAtOnce + first * within.count),
            tiles.key + (chunk * P.filledUp(block.keys.count) + first) * chunkWidth,
            arrays.dquery + call.query(block.sequence, queries.lowerBound + within.lowerBound, head)
              + chunk * chunkWidth, cStride: call.queryStride)
        }
      }
    }
    return hasOddQueries
  }

  /// Panels of the block with keys that the places of some queries do not hide; `within`: rows of `queries`.
  private func panels(
    _ within: Range<Int>, of queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>
  ) -> Range<Int> {
    let limit = call.masks.limit(queries.lowerBound + within.upperBound - 1)
    let end = min(block.panels, chunks(of: max(0, limit - block.keys.lowerBound)))
    return min(end, max(0, tiles.firstKeys[within.lowerBound] - block.keys.lowerBound) / chunkWidth)..<end
  }

  /// Weights and dS of one tile of queries. `within`: its rows of all `queries`.
  private func weigh(
    _ head: Int, _ queries: Range<Int>, _ within: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>
  ) {
    let panels = panels(within, of: queries, block, tiles)
    let queries = queries.lowerBound + within.lowerBound..<queries.lowerBound + within.upperBound
    let firstKeys = tiles.firstKeys + within.lowerBound
    let (query, doutput) = (
      tiles.query + within.lowerBound * call.width, tiles.doutput + within.lowerBound * call.valueWidth
    )
    for panel in panels {
      let place = within.lowerBound * AttentionCall.keysAtOnce + panel * within.count * chunkWidth
      let tokenPlace = within.lowerBound * AttentionCall.keysAtOnce + panel * P.filledUp(within.count) * chunkWidth
      let (scores, slopes) = (tiles.scores + place, tiles.slopes + place)
      let packed = panel * chunkWidth
      products.set(P.self, within.count, call.headSize, query, tiles.keyPanels + packed * call.width, scores)
      products.set(P.self, within.count, call.valueSize, doutput, tiles.valuePanels + packed * call.valueWidth, slopes)
      let start = block.keys.lowerBound + panel * chunkWidth
      let keys = start..<start + block.columns(panel)
      // Where the last key stands alone in its pair, there must be 0 beside it whatever the query is.
      let isAlone = keys.count % P.unit != 0
      let masked = isAlone || !call.masks.doNothing(block.sequence, queries, keys, from: firstKeys[queries.count - 1])
      if masked {
        tiles.bias.update(repeating: 0, count: queries.count * chunkWidth)
        for (i, query) in queries.enumerated() {
          call.masks.fill(tiles.bias + i * chunkWidth, step: 1, block.sequence, query, keys, from: firstKeys[i])
          if isAlone { tiles.bias[i * chunkWidth + keys.count] = -.infinity }
        }
      }
      if let dropout {
        for (i, query) in queries.enumerated() {
          dropout.fill(
            tiles.kept + i * chunkWidth, row: call.row(block.sequence, head, query), first: start, count: keys.count)
        }
      }
      P.attentionGradients(
        moei_attention_slopes(
          rows: Int64(within.count), scale: call.scale, bias: masked ? tiles.bias : nil,
          kept: dropout == nil ? nil : tiles.kept, log_sums: tiles.logSums + within.lowerBound,
          means: tiles.means + within.lowerBound, scores: scores, slopes: slopes, weights: tiles.weights + tokenPlace,
          dscores: tiles.dscores + place, dscores_tokens: tiles.dscoresTokens + tokenPlace), kernels)
      products.round(P.self, tiles.weights + place, within.count * chunkWidth)
      products.round(P.self, tiles.dscores + place, within.count * chunkWidth)
    }
  }

  /// dV += P^T dO and dK += dS^T Q for one panel of keys, over the tiles of queries that see it.
  private func addToKeys(
    _ panel: Int, _ queries: Range<Int>, _ rows: Tiles, _ block: KeyBlock, _ tiles: BackwardTiles<P>
  ) {
    func sees(_ tile: Int) -> Bool { panels(rows.rows(tile), of: queries, block, tiles).contains(panel) }
    var first = 0
    while first < rows.count && !sees(first) { first += 1 }
    var end = first
    while end < rows.count && sees(end) { end += 1 }
    if first == end { return }
    let part = rows.part(first..<end)
    let (start, key) = (rows.start(first), block.keys.lowerBound + panel * chunkWidth)
    func add(
      _ size: Int, _ a: P.Target, _ b: P.Target, _ c: UnsafeMutablePointer<Float>, cStride: Int
    ) {
      for chunk in 0..<chunks(of: size) {
        products.addOverRows(
          P.self, block.columns(panel), columns(chunk, of: size), part,
          TileChunk(a + start * AttentionCall.keysAtOnce, width: AttentionCall.keysAtOnce, panel),
          TileChunk(b + start * padded(size), width: padded(size), chunk),
          StridedTargets(c + chunk * chunkWidth, stride: cStride))
      }
    }
    let dvalue = arrays.dvalue + call.value(block.sequence, key, block.head)
    add(call.valueSize, tiles.weights, tiles.doutputTokens, dvalue, cStride: call.valueStride)
    let dkey = arrays.dkey + call.key(block.sequence, key, block.head)
    add(call.headSize, tiles.dscoresTokens, tiles.queryTokens, dkey, cStride: call.keyStride)
  }
}

/// Of sizes that are no multiple of 32, the last chunk has fewer.
private func columns(_ chunk: Int, of size: Int) -> Int { min(chunkWidth, size - chunk * chunkWidth) }

/// Some keys of one head, in panels of 32.
struct KeyBlock {
  let sequence: Int
  let head: Int
  let keys: Range<Int>

  var panels: Int { chunks(of: keys.count) }
  func columns(_ panel: Int) -> Int { min(chunkWidth, keys.count - panel * chunkWidth) }
}
