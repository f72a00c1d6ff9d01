/// How the rows of a call, one for each query of each head, are shared out. Where queries are few, an item has those of several
/// heads that share keys, and reads these once for all of them; else it has some panels of one head's queries.
struct ForwardItems {
  let heads: Int  // of an item, at most
  let parts: Int  // of the heads that share keys, with an item each
  let panels: Int  // of 32 rows, of an item, at most
  let blocks: Int  // of queries, with an item each
  private let call: AttentionCall

  /// Panels of an item at most.
  static let most = 8
  /// So many rows are few: they fit into one tile.
  static let few = TileProducts.height

  /// `room`: so many panels there is memory for.
  init(_ call: AttentionCall, lanes: Int, room: Int) {
    self.call = call
    let needed = chunks(of: call.queries)
    if call.queries < chunkWidth {
      // No fewer items than threads.
      let sets = max(1, call.sequences * call.keyHeads)
      let parts = min(call.group, (lanes + sets - 1) / sets)
      heads = min((call.group + parts - 1) / parts, room * chunkWidth / call.queries)
      panels = chunks(of: heads * call.queries)
      blocks = 1
    } else {
      heads = 1
      // Many panels share what is gathered of keys and values; few panels share the work out evenly.
      var panels = min(needed, room)
      while panels > 1 && (needed + panels - 1) / panels * call.sequences * call.heads < 4 * lanes { panels /= 2 }
      self.panels = panels
      blocks = (needed + panels - 1) / panels
    }
    parts = (call.group + heads - 1) / heads
  }

  var count: Int { blocks * call.sequences * call.keyHeads * parts }

  /// Whether rows are so few that they are the rows of their products too.
  var areFew: Bool { heads * min(call.queries, panels * chunkWidth) <= Self.few }

  subscript(_ item: Int) -> ForwardRows {
    let (block, rest) = item.quotientAndRemainder(dividingBy: call.sequences * call.keyHeads * parts)
    let (set, part) = rest.quotientAndRemainder(dividingBy: parts)
    let (sequence, keyHead) = set.quotientAndRemainder(dividingBy: call.keyHeads)
    // The last queries first: where attention is causal they see the most keys.
    let first = (blocks - 1 - block) * panels * chunkWidth
    let queries = blocks == 1 ? 0..<call.queries : first..<min(call.queries, first + panels * chunkWidth)
    let head = keyHead * call.group + part * heads
    return ForwardRows(
      sequence: sequence, keyHead: keyHead, heads: head..<min((keyHead + 1) * call.group, head + heads),
      queries: queries)
  }
}

/// Queries of heads that share a key head, head by head.
struct ForwardRows {
  let sequence: Int
  let keyHead: Int
  let heads: Range<Int>
  let queries: Range<Int>

  var count: Int { heads.count * queries.count }
  func head(_ row: Int) -> Int { heads.lowerBound + row / queries.count }
  func query(_ row: Int) -> Int { queries.lowerBound + row % queries.count }

  /// Of one row.
  func one(_ row: Int) -> ForwardRows {
    let (head, query) = (head(row), query(row))
    return ForwardRows(sequence: sequence, keyHead: keyHead, heads: head..<head + 1, queries: query..<query + 1)
  }

  /// The queries that some rows have: with several heads it may be all of them.
  func queries(_ rows: Range<Int>) -> Range<Int> {
    heads.count == 1 ? query(rows.lowerBound)..<query(rows.upperBound - 1) + 1 : queries
  }

  func forEachPanel(_ body: (_ panel: Int, _ rows: Range<Int>) -> Void) {
    for panel in 0..<chunks(of: count) { body(panel, panel * chunkWidth..<min(count, (panel + 1) * chunkWidth)) }
  }
}
