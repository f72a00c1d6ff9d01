import CShims

// A weight of 0 is no shield against a value that is not finite: keys and queries with such values are left out of the
// products, and then added to those alone that they are not hidden from.

extension BackwardJob {
  func isOdd(_ key: Int, _ block: KeyBlock, _ tiles: BackwardTiles<P>) -> Bool {
    !kernels.pointee.sum(Int64(call.headSize), keyRow(key, block, tiles)).isFinite
  }

  private func keyRow(_ key: Int, _ block: KeyBlock, _ tiles: BackwardTiles<P>) -> UnsafePointer<Float> {
    guard let rows = arrays.rounded?.pointee.key else {
      return arrays.arrays.key + call.key(block.sequence, key, block.head)
    }
    return floats(rows.row(block.head, block.sequence * call.keys + key), tiles)
  }

  private func queryRow(
    _ query: Int, _ sequence: Int, _ head: Int, _ tiles: BackwardTiles<P>
  ) -> UnsafePointer<Float> {
    guard let rows = arrays.rounded?.pointee.query else {
      return arrays.arrays.query + call.query(sequence, query, head)
    }
    return floats(rows.row(head, sequence * call.queries + query), tiles)
  }

  /// A rounded row as floats, in the scratch of those that are being rounded.
  private func floats(_ row: UnsafePointer<UInt16>, _ tiles: BackwardTiles<P>) -> UnsafePointer<Float> {
    let floats = UnsafeMutableRawPointer(tiles.scratch).assumingMemoryBound(to: Float.self)
    kernels.pointee.from_bf16(Int64(call.headSize), row, floats)
    return UnsafePointer(floats)
  }

  /// Some rows of what has been gathered of the queries for sums over them.
  func clearQueries(_ rows: Tiles, _ tiles: BackwardTiles<P>, where isCleared: (Int) -> Bool) {
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      for i in within where isCleared(i) {
        let (row, start) = (i - within.lowerBound, within.lowerBound)
        P.clearRow(row, of: within.count, tiles.queryTokens + start * call.width, call.headSize)
        P.clearRow(row, of: within.count, tiles.doutputTokens + start * call.valueWidth, call.valueSize)
      }
    }
  }

  /// dQ += dS K for the keys that are not finite.
  func addOddKeys(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>) {
    for key in block.keys where isOdd(key, block, tiles) {
      forEachPair(queries, key..<key + 1, block, tiles) { query, key, place, _ in
        kernels.pointee.add_scaled(
          Int64(call.headSize), P.number(tiles.dscores[place]),
          keyRow(key, block, tiles), arrays.dquery + call.query(block.sequence, query, head))
      }
    }
  }

  /// dV += P^T dO and dK += dS^T Q for the queries that are not finite.
  func addOddQueries(_ head: Int, _ queries: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>) {
    forEachPair(queries, block.keys, block, tiles) { query, key, place, tokenPlace in
      if tiles.means[query - queries.lowerBound].isFinite { return }
      kernels.pointee.add_scaled(
        Int64(call.valueSize), P.number(tiles.weights[tokenPlace]),
        arrays.doutput + call.output(block.sequence, query, head),
        arrays.dvalue + call.value(block.sequence, key, block.head))
      kernels.pointee.add_scaled(
        Int64(call.headSize), P.number(tiles.dscores[place]),
        queryRow(query, block.sequence, head, tiles), arrays.dkey + call.key(block.sequence, key, block.head))
    }
  }

  /// Queries and the keys that each sees, and where tiles have what belongs to both, by features and for sums over queries.
  private func forEachPair(
    _ queries: Range<Int>, _ keys: Range<Int>, _ block: KeyBlock, _ tiles: BackwardTiles<P>,
    _ body: (_ query: Int, _ key: Int, _ place: Int, _ tokenPlace: Int) -> Void
  ) {
    let rows = Tiles(rows: queries.count, maxHeight: TileProducts.height, unit: P.unit)
    for tile in 0..<rows.count {
      let within = rows.rows(tile)
      for i in within {
        for key in keys
        where call.masks.sees(block.sequence, queries.lowerBound + i, key, from: tiles.firstKeys[i]) {
          let (panel, column) = (key - block.keys.lowerBound).quotientAndRemainder(dividingBy: chunkWidth)
          let (start, row) = (within.lowerBound * AttentionCall.keysAtOnce, i - within.lowerBound)
          body(
            queries.lowerBound + i, key, start + (panel * within.count + row) * chunkWidth + column,
            start + panel * P.filledUp(within.count) * chunkWidth + (row / P.unit * chunkWidth + column) * P.unit
              + row % P.unit)
        }
      }
    }
  }
}
