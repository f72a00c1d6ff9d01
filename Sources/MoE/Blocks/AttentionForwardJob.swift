import CShims

/// What a thread holds at a time.
struct ForwardTiles<P: AttentionPrecision> {
  let query: P.Target  // panels [panel][D / unit][32][unit], or few rows in chunks
  let output: UnsafeMutablePointer<Float>  // [panel][32][Dv, padded], not yet divided by the totals
  let maximum: UnsafeMutablePointer<Float>  // [panel][32]
  let total: UnsafeMutablePointer<Float>  // [panel][32]
  let firstKeys: UnsafeMutablePointer<Int>  // [panel][32], of each query
  let key: P.Target  // tiles of a block, or panels for few rows
  let value: P.Target  // [chunk][block / unit][32][unit]
  let scores: UnsafeMutablePointer<Float>  // [block][32]
  let weights: P.Target  // [block / unit][32][unit]; the scores' memory in float32
  let rows: UnsafeMutablePointer<Float>  // [block / 32][few][32]: scores, and weights, of few rows
  let weightRows: P.Target  // the same weights as products read them
  let scratch: P.Target  // [32, width] where queries and keys are rounded before they are packed
  let factor: UnsafeMutablePointer<Float>  // [32]
  let inverse: UnsafeMutablePointer<Float>  // [32]
  let logSums: UnsafeMutablePointer<Float>  // [32]
  let bias: UnsafeMutablePointer<Float>  // [block][32]
  let kept: UnsafeMutablePointer<Float>  // [block][32]
  let keptRows: UnsafeMutablePointer<Float>  // [32][block]

  init(_ arena: inout Arena, _ call: AttentionCall, panels: Int) {
    let block = AttentionForward.block
    query = arena.take(P.Element.self, panels * call.width, chunkWidth)
    output = arena.take(Float.self, panels * call.valueWidth, chunkWidth)
    maximum = arena.take(Float.self, panels, chunkWidth)
    total = arena.take(Float.self, panels, chunkWidth)
    firstKeys = arena.take(Int.self, panels, chunkWidth)
    key = arena.take(P.Element.self, block, call.width)
    value = arena.take(P.Element.self, block, call.valueWidth)
    let apart = P.unit > 1 ? 1 : 0
    weights = arena.take(P.Element.self, block, chunkWidth)
    scores = P.workplace(weights, or: arena.take(Float.self, apart * block, chunkWidth))
    weightRows = arena.take(P.Element.self, block, ForwardItems.few)
    rows = P.workplace(weightRows, or: arena.take(Float.self, apart * block, ForwardItems.few))
    scratch = arena.take(P.Element.self, apart * chunkWidth, call.width)
    factor = arena.take(Float.self, chunkWidth)
    inverse = arena.take(Float.self, chunkWidth)
    logSums = arena.take(Float.self, chunkWidth)
    bias = arena.take(Float.self, block, chunkWidth)
    let dropped = call.dropout > 0 ? block : 0
    kept = arena.take(Float.self, dropped, chunkWidth)
    keptRows = arena.take(Float.self, dropped, chunkWidth)
  }
}

struct ForwardJob<P: AttentionPrecision>: Job {
  let call: AttentionCall
  let arrays: AttentionArrays
  let logSums: UnsafeMutablePointer<Float>?
  let products: TileProducts
  let dropout: AttentionDropout?
  let memory: LaneMemory
  let failed: UnsafeMutablePointer<Int>
  let items: ForwardItems

  private var kernels: UnsafePointer<moei_kernels> { products.kernels }
  private var few: Bool { items.areFew }
  /// Few rows read keys and values where they lie: put into tiles, each would be copied for a handful of products.
  private var inPlace: Bool {
    few && products.readInPlace(call.headSize, areRounded: call.areRounded)
      && products.readInPlace(call.valueSize, areRounded: call.areRounded)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = memory.arena(lane.pointee.index)
    let tiles = ForwardTiles<P>(&arena, call, panels: items.panels)
    let rows = items[item]
    if !attend(rows, tiles, lane, clears: false) { return }
    end(rows, tiles, lane.pointee.index)
    if !call.masks.hideAny { return }
    // A weight of 0 is no shield against a value that is not finite. Where some output is none, those of queries that may
    // not have seen what made it so are computed again, one by one.
    for row in 0..<rows.count where !isFinite(rows, row) {
      if !attend(rows.one(row), tiles, lane, clears: true) { return }
      end(rows.one(row), tiles, lane.pointee.index)
    }
  }

  /// Some rows over all keys, into the tiles; false where it was stopped. `clears`: the values that the only query does not
  /// see count as 0.
  private func attend(
    _ rows: ForwardRows, _ tiles: ForwardTiles<P>, _ lane: UnsafeMutablePointer<Lane>, clears: Bool
  ) -> Bool {
    let (masks, block) = (call.masks, AttentionForward.block)
    let inPlace = inPlace && !clears
    let limit = masks.limit(rows.queries.upperBound - 1)
    masks.fillFirstKeys(tiles.firstKeys, rows.sequence, rows.queries)
    // Dropout is drawn for fours of keys from the first on.
    let anchor = dropout == nil ? masks.firstKey(rows.sequence) : 0
    let first = anchor + max(0, tiles.firstKeys[0] - anchor) / 4 * 4
    if !inPlace { fetch(rows, first..<max(first, min(limit, first + block))) }
    begin(rows, tiles)
    for start in stride(from: first - (first - anchor) % block, to: limit, by: block) {
      if lane.pointee.shouldStop() { return false }
      let keys = max(start, first)..<min(limit, start + block)
      if masks.hideAll(rows.sequence, keys) { continue }
      let keyTiles = Tiles(rows: keys.count, maxHeight: TileProducts.height, unit: P.unit)
      if !inPlace {
        gather(rows, keys, keyTiles, tiles)
        fetch(rows, keys.upperBound..<min(limit, keys.upperBound + block))
        if clears { clearHidden(rows, keys, tiles) }
      }
      rows.forEachPanel { panel, within in
        // Of the keys those that some query of the panel sees.
        let queries = rows.queries(within)
        let end = min(keys.upperBound, masks.limit(queries.upperBound - 1))
        let begin = max(keys.lowerBound, tiles.firstKeys[queries.lowerBound - rows.queries.lowerBound])
        if begin >= end { return }
        let seen = Seen(all: keys, skipped: skipped(begin - keys.lowerBound, keyTiles), count: end - keys.lowerBound)
        attend(rows, panel, within, seen, keyTiles, inPlace: inPlace, tiles)
      }
    }
    if inPlace && P.partsColumns { joinColumns(rows.count, tiles) }
    return true
  }

  /// Keys of a block that a panel sees, of all that have been gathered: those of rows `skipped` ..< `count`.
  private struct Seen {
    let all: Range<Int>
    let skipped: Int
    let count: Int

    var keys: Range<Int> { all.lowerBound + skipped..<all.lowerBound + count }
  }

  /// Rows of whole tiles before a row.
  private func skipped(_ row: Int, _ keyTiles: Tiles) -> Int {
    if few || row == 0 { return 0 }
    var tile = 0
    while keyTiles.start(tile + 1) <= row { tile += 1 }
    return keyTiles.start(tile)
  }

  /// Whether an output is finite; false, too, where only its sum is none.
  private func isFinite(_ rows: ForwardRows, _ row: Int) -> Bool {
    let output = arrays.output + call.output(rows.sequence, rows.query(row), rows.head(row))
    return kernels.pointee.sum(Int64(call.valueSize), output).isFinite
  }

  private func clearHidden(_ rows: ForwardRows, _ keys: Range<Int>, _ tiles: ForwardTiles<P>) {
    let (sequence, query, first) = (rows.sequence, rows.queries.lowerBound, tiles.firstKeys[0])
    for (row, key) in keys.enumerated() where !call.masks.sees(sequence, query, key, from: first) {
      P.clearRow(row, of: keys.count, tiles.value, call.valueSize)
    }
  }

  private func begin(_ rows: ForwardRows, _ tiles: ForwardTiles<P>) {
    for head in rows.heads {
      fetchQueries(rows, head)
      products.fetchToWrite(
        rows.queries.count, call.valueSize, arrays.output + call.output(rows.sequence, rows.queries.lowerBound, head),
        stride: call.outputStride)
    }
    rows.forEachPanel { panel, within in
      let place = tiles.query + panel * call.width * chunkWidth
      if !few, let query = roundedQueries(rows, within) {
        return P.pack(
          within.count, call.headSize, query, rowStride: call.headSize, transposed: true, into: place, kernels)
      }
      let (query, stride) = queries(rows, within, tiles)
      if few {
        products.gather(P.self, within.count, call.headSize, query, stride: stride, into: tiles.query)
        if inPlace {
          products.gatherFewRows(
            P.self, within.count, call.headSize, query, stride: stride, into: queryGroups(tiles))
        }
      } else {
        products.pack(P.self, within.count, call.headSize, query, stride: stride, into: place, tiles.scratch)
      }
    }
    tiles.output.update(repeating: 0, count: items.panels * call.valueWidth * chunkWidth)
    tiles.maximum.update(repeating: -.infinity, count: items.panels * chunkWidth)
    tiles.total.update(repeating: 0, count: items.panels * chunkWidth)
  }

  private func fetchQueries(_ rows: ForwardRows, _ head: Int) {
    let first = rows.queries.lowerBound
    if let query = roundedQueries(rows, 0..<rows.count) {
      products.fetch(rows.queries.count, call.headSize, query, stride: call.headSize)
    } else {
      products.fetch(
        rows.queries.count, call.headSize, arrays.query + call.query(rows.sequence, first, head),
        stride: call.queryStride)
    }
  }

  /// One head's queries where they have been rounded, the next one's row behind each; nil of several heads, and where they are
  /// floats alone.
  private func roundedQueries(_ rows: ForwardRows, _ within: Range<Int>) -> P.Source? {
    guard rows.heads.count == 1, let query = arrays.rounded?.pointee.query else { return nil }
    let row = query.row(rows.heads.lowerBound, rows.sequence * call.queries + rows.query(within.lowerBound))
    return UnsafeRawPointer(row).assumingMemoryBound(to: P.Element.self)
  }

  /// A panel's queries at equal distances: of several heads, copied to where keys have not come yet.
  private func queries(
    _ rows: ForwardRows, _ within: Range<Int>, _ tiles: ForwardTiles<P>
  ) -> (UnsafePointer<Float>, stride: Int) {
    if rows.heads.count == 1 {
      let place = call.query(rows.sequence, rows.query(within.lowerBound), rows.heads.lowerBound)
      return (arrays.query + place, call.queryStride)
    }
    let copies = UnsafeMutableRawPointer(tiles.key).assumingMemoryBound(to: Float.self)
    for (i, row) in within.enumerated() {
      let place = call.query(rows.sequence, rows.query(row), rows.head(row))
      (copies + i * call.headSize).update(from: arrays.query + place, count: call.headSize)
    }
    return (UnsafePointer(copies), call.headSize)
  }

  /// Keys and values that come next. What belongs to a head lies in short pieces, which the processor does not foresee.
  private func fetch(_ rows: ForwardRows, _ keys: Range<Int>) {
    let key = call.key(rows.sequence, keys.lowerBound, rows.keyHead)
    let value = call.value(rows.sequence, keys.lowerBound, rows.keyHead)
    func fetch<Element>(_ keyArray: UnsafePointer<Element>, _ valueArray: UnsafePointer<Element>) {
      products.fetch(keys.count, call.headSize, keyArray + key, stride: call.keyStride)
      products.fetch(keys.count, call.valueSize, valueArray + value, stride: call.valueStride)
    }
    if call.areRounded {
      fetch(elements(arrays.key), elements(arrays.value))
    } else {
      fetch(arrays.key, arrays.value)
    }
  }

  /// Keys or values that are stored as what is multiplied, which floats are where these are.
  private func elements(_ array: UnsafePointer<Float>) -> P.Source {
    UnsafeRawPointer(array).assumingMemoryBound(to: P.Element.self)
  }

  /// 32 keys of a block at most, as a panel.
  private func packKeys(_ rows: ForwardRows, _ keys: Range<Int>, into panel: P.Target, _ tiles: ForwardTiles<P>) {
    let key = call.key(rows.sequence, keys.lowerBound, rows.keyHead)
    if call.areRounded {
      P.pack(
        keys.count, call.headSize, elements(arrays.key) + key, rowStride: call.keyStride, transposed: true, into: panel,
        kernels)
    } else {
      products.pack(
        P.self, keys.count, call.headSize, arrays.key + key, stride: call.keyStride, into: panel, tiles.scratch)
    }
  }

  private func packKeys(_ rows: ForwardRows, _ keys: Range<Int>, _ tiles: ForwardTiles<P>) {
    for place in stride(from: 0, to: keys.count, by: chunkWidth) {
      packKeys(rows, keys.dropFirst(place).prefix(chunkWidth), into: tiles.key + place * call.width, tiles)
    }
  }

  private func gatherRounded(_ rows: ForwardRows, _ keys: Range<Int>, _ keyTiles: Tiles, _ tiles: ForwardTiles<P>) {
    let key = elements(arrays.key) + call.key(rows.sequence, keys.lowerBound, rows.keyHead)
    if few {
      packKeys(rows, keys, tiles)
    } else {
      for tile in 0..<keyTiles.count {
        let within = keyTiles.rows(tile)
        P.gatherRounded(
          within.count, call.headSize, key + within.lowerBound * call.keyStride, stride: call.keyStride,
          into: tiles.key + within.lowerBound * call.width)
      }
    }
    P.gatherRoundedTokens(
      keys.count, call.valueSize, elements(arrays.value) + call.value(rows.sequence, keys.lowerBound, rows.keyHead),
      stride: call.valueStride, into: tiles.value, kernels)
  }

  private func gather(_ rows: ForwardRows, _ keys: Range<Int>, _ keyTiles: Tiles, _ tiles: ForwardTiles<P>) {
    if call.areRounded { return gatherRounded(rows, keys, keyTiles, tiles) }
    let key = arrays.key + call.key(rows.sequence, keys.lowerBound, rows.keyHead)
    if few {
      packKeys(rows, keys, tiles)
    } else {
      for tile in 0..<keyTiles.count {
        let within = keyTiles.rows(tile)
        products.gather(
          P.self, within.count, call.headSize, key + within.lowerBound * call.keyStride, stride: call.keyStride,
          into: tiles.key + within.lowerBound * call.width)
      }
    }
    products.gatherTokens(
      P.self, keys.count, call.valueSize, arrays.value + call.value(rows.sequence, keys.lowerBound, rows.keyHead),
      stride: call.valueStride, into: tiles.value)
  }

  /// One panel of rows and the keys of a block that it sees.
  private func attend(
    _ rows: ForwardRows, _ panel: Int, _ within: Range<Int>, _ seen: Seen, _ keyTiles: Tiles, inPlace: Bool,
    _ tiles: ForwardTiles<P>
  ) {
    if inPlace {
      scoreRowsInPlace(rows, within.count, seen, tiles)
    } else if few {
      scoreRows(within.count, seen.count, tiles)
    } else {
      scoreColumns(panel, seen, keyTiles, tiles)
    }
    let place = seen.skipped * chunkWidth
    let masked = fillBias(rows, within, seen, tiles)
    if let dropout { draw(dropout, rows, within, seen, tiles) }
    let (bias, kept) = (masked ? tiles.bias + place : nil, dropout == nil ? nil : tiles.kept + place)
    let sums = AttentionSums(
      maximum: tiles.maximum + panel * chunkWidth, total: tiles.total + panel * chunkWidth, factor: tiles.factor)
    if few {
      // They are rounded for their products.
      kernels.pointee.attention_weights_of_few(
        Int64(within.count), Int64(seen.count), call.scale, bias, kept, tiles.rows, tiles.scores, sums.maximum,
        sums.total, sums.factor)
    } else {
      P.attentionWeights(
        seen.keys.count, call.scale, bias: bias, kept: kept, tiles.scores + place, into: tiles.weights + place, sums,
        kernels)
      products.round(P.self, tiles.weights + place, seen.keys.count * chunkWidth)
    }

    let output = tiles.output + panel * call.valueWidth * chunkWidth
    scaleDown(within.count, output, tiles)
    if inPlace {
      addRowsInPlace(rows, within.count, seen, tiles)
    } else if few {
      addRows(within.count, seen, tiles)
    } else {
      addColumns(within.count, seen, output, tiles)
    }
  }

  /// Returns whether something has to be added to the scores: tiles.bias then.
  private func fillBias(_ rows: ForwardRows, _ within: Range<Int>, _ seen: Seen, _ tiles: ForwardTiles<P>) -> Bool {
    let (queries, first) = (rows.queries(within), rows.queries.lowerBound)
    let last = tiles.firstKeys[queries.upperBound - 1 - first]
    if call.masks.doNothing(rows.sequence, queries, seen.keys, from: last) { return false }
    (tiles.bias + seen.skipped * chunkWidth).update(repeating: 0, count: seen.keys.count * chunkWidth)
    for (column, row) in within.enumerated() {
      let query = rows.query(row)
      call.masks.fill(
        tiles.bias + (seen.skipped * chunkWidth + column), step: chunkWidth, rows.sequence, query, seen.keys,
        from: tiles.firstKeys[query - first])
    }
    return true
  }

  private func scaleDown(_ rows: Int, _ output: UnsafeMutablePointer<Float>, _ tiles: ForwardTiles<P>) {
    for i in 0..<rows where tiles.factor[i] != 1 {
      let row = output + i * call.valueWidth
      kernels.pointee.scale(Int64(call.valueWidth), tiles.factor[i], row, row)
    }
  }

  private func scoreColumns(_ panel: Int, _ seen: Seen, _ keyTiles: Tiles, _ tiles: ForwardTiles<P>) {
    let query = tiles.query + panel * call.width * chunkWidth
    for tile in 0..<keyTiles.count {
      let rows = keyTiles.rows(tile)
      if rows.lowerBound < seen.skipped { continue }
      if rows.lowerBound >= seen.count { break }
      products.set(
        P.self, rows.count, call.headSize, tiles.key + rows.lowerBound * call.width, query,
        tiles.scores + rows.lowerBound * chunkWidth)
    }
  }

  /// output[row, :] += the sum over keys of weight * value
  private func addColumns(_ rows: Int, _ seen: Seen, _ output: UnsafeMutablePointer<Float>, _ tiles: ForwardTiles<P>) {
    let height = moei_tiles(count: 1, tall: 1, height: Int32(P.filledUp(seen.keys.count) / P.unit))
    for chunk in 0..<chunks(of: call.valueSize) {
      let value = tiles.value + (chunk * P.filledUp(seen.all.count) + seen.skipped) * chunkWidth
      products.addOverRows(
        P.self, rows, chunkWidth, height,
        TileChunk(tiles.weights + seen.skipped * chunkWidth, width: chunkWidth, 0),
        TileChunk(value, width: chunkWidth, 0),
        StridedTargets(output + chunk * chunkWidth, stride: call.valueWidth))
    }
  }

  // MARK: few rows

  private func scoreRows(_ count: Int, _ keys: Int, _ tiles: ForwardTiles<P>) {
    for place in stride(from: 0, to: keys, by: chunkWidth) {
      products.set(
        P.self, count, call.headSize, tiles.query, tiles.key + place * call.width, tiles.rows + place * count)
    }
  }

  /// The weights as products read them.
  private func storeWeights(_ count: Int, _ seen: Seen, _ tiles: ForwardTiles<P>) {
    let elements = padded(seen.count) * count
    P.store(elements, tiles.rows, into: tiles.weightRows, kernels)
    products.round(P.self, tiles.weightRows, elements)
  }

  private func addRows(_ count: Int, _ seen: Seen, _ tiles: ForwardTiles<P>) {
    storeWeights(count, seen, tiles)
    for chunk in 0..<chunks(of: call.valueSize) {
      products.add(
        P.self, count, chunkWidth, seen.count, tiles.weightRows,
        tiles.value + chunk * P.filledUp(seen.all.count) * chunkWidth, tiles.output + chunk * chunkWidth,
        cStride: call.valueWidth)
    }
  }

  /// Behind the queries of all rows, which the last keys are multiplied by: both are few, and a panel has room for 32.
  private func queryGroups(_ tiles: ForwardTiles<P>) -> P.Target { tiles.query + ForwardItems.few * call.width }

  private func scoreRowsInPlace(_ rows: ForwardRows, _ count: Int, _ seen: Seen, _ tiles: ForwardTiles<P>) {
    let key = elements(arrays.key) + call.key(rows.sequence, seen.all.lowerBound, rows.keyHead)
    // While keys are multiplied their values come, and with these the keys of the next block.
    let value = elements(arrays.value) + call.value(rows.sequence, seen.all.lowerBound, rows.keyHead)
    for place in stride(from: 0, to: seen.count, by: chunkWidth) {
      let (own, scores) = (key + place * call.keyStride, tiles.rows + place * count)
      if place + chunkWidth <= seen.all.count {
        products.setFewRows(
          P.self, count, call.headSize, queryGroups(tiles), own, stride: call.keyStride, scores,
          next: call.valueStride == call.keyStride ? value + place * call.valueStride : own)
      } else {
        packKeys(rows, seen.all.dropFirst(place), into: tiles.key, tiles)
        products.set(P.self, count, call.headSize, tiles.query, tiles.key, scores)
      }
    }
  }

  private func addRowsInPlace(_ rows: ForwardRows, _ count: Int, _ seen: Seen, _ tiles: ForwardTiles<P>) {
    let value = elements(arrays.value) + call.value(rows.sequence, seen.all.lowerBound, rows.keyHead)
    let following = elements(arrays.key) + call.key(rows.sequence, seen.all.upperBound, rows.keyHead)
    storeWeights(count, seen, tiles)
    for place in stride(from: 0, to: seen.count, by: chunkWidth) {
      P.addFewRows(
        count, call.valueSize, min(chunkWidth, seen.count - place), tiles.weightRows + place * count,
        RowsInPlace(start: value + place * call.valueStride, stride: call.valueStride),
        StridedTargets(tiles.output, stride: call.valueWidth),
        next: RowsInPlace(start: following + place * call.keyStride, stride: call.keyStride), kernels)
    }
  }

  /// Columns whose even ones stand in front of the odd ones, 32 at a time, take their places.
  private func joinColumns(_ rows: Int, _ tiles: ForwardTiles<P>) {
    for chunk in 0..<rows * call.valueWidth / chunkWidth {
      let (own, parted) = (tiles.output + chunk * chunkWidth, tiles.factor)
      parted.update(from: own, count: chunkWidth)
      for j in 0..<chunkWidth / 2 { (own[2 * j], own[2 * j + 1]) = (parted[j], parted[chunkWidth / 2 + j]) }
    }
  }

  private func draw(
    _ dropout: AttentionDropout, _ rows: ForwardRows, _ within: Range<Int>, _ seen: Seen, _ tiles: ForwardTiles<P>
  ) {
    for (i, row) in within.enumerated() {
      dropout.fill(
        tiles.keptRows + i * AttentionForward.block, row: call.row(rows.sequence, rows.head(row), rows.query(row)),
        first: seen.all.lowerBound, count: seen.count)
    }
    kernels.pointee.pack_transposed(
      Int64(within.count), Int64(seen.count), tiles.keptRows, Int64(AttentionForward.block), tiles.kept)
  }

  // MARK: what the tiles become

  private func end(_ rows: ForwardRows, _ tiles: ForwardTiles<P>, _ lane: Int) {
    rows.forEachPanel { panel, within in
      let (maximum, total) = (tiles.maximum + panel * chunkWidth, tiles.total + panel * chunkWidth)
      if let sinks = call.sinks { share(with: sinks, rows, panel, within, tiles) }
      kernels.pointee.attention_sums(maximum, total, tiles.logSums, tiles.inverse)
      for (i, row) in within.enumerated() {
        let (head, query) = (rows.head(row), rows.query(row))
        let place = call.row(rows.sequence, head, query)
        if !total[i].isFinite { failed[lane] = min(failed[lane], place) }
        kernels.pointee.scale(
          Int64(call.valueSize), tiles.inverse[i], tiles.output + (panel * chunkWidth + i) * call.valueWidth,
          arrays.output + call.output(rows.sequence, query, head))
        logSums?[place] = tiles.logSums[i]
      }
    }
  }

  /// The sinks are the last keys, and have no value. A query that sees no key stays one.
  private func share(
    with sinks: UnsafePointer<Float>, _ rows: ForwardRows, _ panel: Int, _ within: Range<Int>, _ tiles: ForwardTiles<P>
  ) {
    let (maximum, total) = (tiles.maximum + panel * chunkWidth, tiles.total + panel * chunkWidth)
    tiles.scores.update(repeating: -.infinity, count: chunkWidth)
    for (i, row) in within.enumerated() where maximum[i] != -.infinity { tiles.scores[i] = sinks[rows.head(row)] }
    kernels.pointee.attention_weights(1, 1, nil, nil, tiles.scores, maximum, total, tiles.factor)
    scaleDown(within.count, tiles.output + panel * call.valueWidth * chunkWidth, tiles)
  }
}
