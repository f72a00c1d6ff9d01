/// How the tokens of all ranks are divided: chunks of so many of them, in their order, so that an expert's rows come in that order from
/// chunk to chunk, too. A rank has tokens in some of the chunks, and makes the exchanges of all.
struct RankChunks {
  let size: Int  // tokens of a chunk
  fileprivate let all: Ranks.AllTokens
  private let tokens: Int  // of this rank

  init(_ all: Ranks.AllTokens, tokens: Int, size: Int) {
    (self.all, self.tokens) = (all, tokens)
    self.size = max(min(size, all.tokens), 1)
  }

  var count: Int { max((all.tokens + size - 1) / size, 1) }
  /// Those of this rank's tokens that are in a chunk.
  func tokens(ofChunk i: Int) -> Range<Int> {
    func place(_ token: Int) -> Int { min(max(token - all.first, 0), tokens) }
    return place(i * size)..<place((i + 1) * size)
  }
  /// The most of them.
  var most: Int { min(size, tokens) }
}

extension Layer {
  /// Chunks with which every rank keeps to its limit; in agreement with the others, of `next` words the one that follows.
  func divide(
    _ call: Call, over ranks: RanksPointer, _ type: ElementType, taped: Bool, next: Int
  ) throws(Fault) -> RankChunks {
    let all = ranks.pointee.all
    ranks.pointee.expect(all.isDivided ? 1 : next)
    func chunks(of size: Int) -> RankChunks { RankChunks(all, tokens: call.tokens, size: size) }
    if !all.isDivided { return chunks(of: all.tokens) }
    var size = blocks(of: min(all.tokens, call.chunkTokens ?? .max))
    if let limit = call.limit ?? context.memoryLimit, limit < .max {
      var least = Int.max
      while true {
        let needed = try memory(chunks(of: size * rowsPerBlock), call, over: ranks, type, taped: taped).total
        if needed <= limit { break }
        least = min(least, needed)
        if size <= 1 {
          throw .invalid("memory_limit = \(limit) bytes, but \(call.tokens) tokens need at least \(least)")
        }
        let count = (blocks(of: all.tokens) + size - 2) / (size - 1)  // that smaller ones make
        size = min(size - 1, (blocks(of: all.tokens) + count - 1) / count)
      }
    }
    ranks.pointee.words[0] = Int64(size)
    try ranks.pointee.agree(1, nil, next: next)
    for other in 0..<ranks.pointee.size { size = min(size, Int(ranks.pointee.words(of: other, 1)[0])) }
    return chunks(of: size * rowsPerBlock)
  }

  /// What a call with these chunks takes at most, whatever the ranks choose.
  @inline(never) func memory(
    _ chunks: RankChunks, _ call: Call, over ranks: RanksPointer, _ type: ElementType, taped: Bool
  ) throws(Fault) -> RankMemory {
    let c = configuration
    let nowhere = UnsafeMutableRawPointer(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    let plan = Plan(c, call, policy: .lean, chunkTokens: max(chunks.most, 1))
    ranks.pointee.setRows(
      sent: plan.chunk.mostRows, owned: chunks.size * min(c.choices, ranks.pointee.experts.count))
    if mayHaveHotExperts { ranks.pointee.hot.assumeMost() } else { ranks.pointee.hot.chooseNone() }
    var (tape, forward, backward) = (Arena(), Arena(), Arena())
    var (kept, room, backwardRoom) = (Arena(), Arena(), Arena())
    var contents: TapeContents?
    if taped {
      contents = TapeContents(
        &tape, c, call, plan, context: context, activeExperts: c.activeExperts(call, parameters),
        frozen: prepared.frozenForms)
    }
    let stages = forwardStages(&forward, nowhere, call, plan, y: nowhere, taped: contents)
    _ = ForwardRoom(&room, self, ranks, stages, chunks, type: type, tape: nil, isTaped: taped)
    if let contents {
      let stages = backwardStages(&backward, contents, plan, x: nowhere, dy: nowhere, dx: nowhere, BackwardCall())
      let owned = OwnedTape(&kept, c, ranks, chunks, keeps: false, frozen: prepared.frozenForms, context)
      _ = BackwardRoom(&backwardRoom, self, ranks, stages, contents, owned, frozen: false)
    }
    forward.cover(after: room)
    backward.cover(after: backwardRoom)
    forward.cover(backward)
    var all = tape
    all.cover(after: kept)
    all.cover(after: forward)
    room.cover(backwardRoom)
    return RankMemory(room: try room.total(), kept: try kept.total(), total: (try? all.total()) ?? .max)
  }
}

/// What a call over ranks takes at most, in bytes.
struct RankMemory {
  /// Of exchanges, and of what is computed for other ranks; a model's layers have it in turn.
  let room: Int
  /// Beside the layer's own tape.
  let kept: Int
  /// With all that is the layer's own.
  let total: Int
}
