// Memory of a model's call, in bytes, before anything is allocated. A limit is kept by keeping less for backward, layer by
// layer, then by smaller chunks within the ffn's. No choice changes a bit.

/// What a layer keeps from forward to backward. Numbers as in moe_keep.
public enum Keep: Int32 {
  case all = 0
  case lean = 1  // attention's arrays, and the ffn's routing
  case input = 2  // x and the ffn's routing
}

/// How one layer is computed.
struct LayerChoice {
  let keep: Keep
  let chunk: Int  // tokens that the ffn computes at once, at most

  /// A lean ffn computes its chunks again, so they are smaller from the first.
  init(_ keep: Keep, chunk: Int) {
    self.keep = keep
    self.chunk = keep == .all ? chunk : min(chunk, Layer.leanChunk)
  }
}

/// What one layer takes.
struct LayerMemory {
  private(set) var feedForward: MemoryPlan?
  private(set) var tape: Int
  private(set) var forward: Int
  private(set) var backward: Int

  /// Of layers that are both dense or both MoE: as much as the one that takes most, each for itself.
  mutating func cover(_ other: LayerMemory) throws(Fault) {
    (tape, forward, backward) = (max(tape, other.tape), max(forward, other.forward), max(backward, other.backward))
    if let own = feedForward, let others = other.feedForward { feedForward = try own.covering(others) }
  }

  @inline(never) init(
    _ model: Model, _ n: Int, _ input: ModelInput, _ choice: LayerChoice, taped: Bool, cache: CachedLayer?,
    over chunks: RankChunks?
  ) throws(Fault) {
    let nowhere = UnsafeMutablePointer<Float>(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    let part = try FeedForward(model, n, input, choice, taped: taped, over: chunks)
    feedForward = part?.memory
    var (tape, forward, backward) = (Arena(), Arena(), Arena())
    var kept: BlockTape?
    let work = BlockWork(model: model, n: n, input: input)
    if taped {
      kept = BlockTape(&tape, work, choice.keep, feedForwardBytes: part?.memory.tape ?? 0, x: nowhere)
    }
    _ = BlockForward(&forward, work, part, tape: kept, cache: cache, x: nowhere, y: nowhere)
    if let kept { _ = BlockBackward(&backward, work, part, tape: kept, d: nowhere) }
    self.tape = try tape.total()
    self.forward = try forward.total()
    self.backward = try backward.total()
  }
}

public struct ModelPlan {
  public let taped: Bool
  /// So many layers, from the first on, keep no more than LEAN, and so many no more than INPUT.
  public let lean: Int
  public let input: Int
  let chunk: Int
  fileprivate(set) var layers: KindsOfLayers
  public fileprivate(set) var forwardScratch = 0
  public fileprivate(set) var backwardScratch = 0  // 0 without a tape
  public fileprivate(set) var tape = 0

  /// What exists at once at most.
  public var total: Int {
    let (sum, tooMany) = tape.addingReportingOverflow(max(forwardScratch, backwardScratch))
    let (all, areTooMany) = sum.addingReportingOverflow(layers.exchanges ?? 0)
    return tooMany || areTooMany ? .max : all
  }

  /// Whether ranks divide the call: a chunk is then of the tokens of all of them.
  var isOfRanks: Bool { layers.exchanges != nil }

  public func keep(_ n: Int) -> Keep { n < input ? .input : n < lean ? .lean : .all }
  func choice(_ n: Int) -> LayerChoice { LayerChoice(keep(n), chunk: chunk) }
}

/// Layers that are both dense or both MoE, and keep the same, are given the same memory: those that differ in size or kind
/// of attention are measured, and what the largest takes is what all are given.
struct KindsOfLayers {
  private var measured = InlineArray<6, LayerMemory?>(repeating: nil)
  /// Where ranks divide the call: what exchanges take beside the layers.
  var exchanges: Int?

  static var count: Int { 6 }
  static func kind(_ number: Int) -> (isMoE: Bool, keep: Keep) {
    (number >= 3, Keep(rawValue: Int32(truncatingIfNeeded: number % 3))!)
  }

  subscript(isMoE: Bool, keep: Keep) -> LayerMemory? {
    get { measured[(isMoE ? 3 : 0) + Int(keep.rawValue)] }
    set { measured[(isMoE ? 3 : 0) + Int(keep.rawValue)] = newValue }
  }
}

/// What a call takes beside its layers: the same at every level and with every chunk.
private struct FrameMemory {
  private let tape: Arena
  private let forward: Arena
  private let backward: Arena
  private let behind: Arena  // forward's, with what comes after the last layer
  private let behindBack: Arena

  @inline(never) init(_ model: Model, _ input: ModelInput, taped: Bool, reads: Bool) {
    var (tape, forward, backward) = (Arena(), Arena(), Arena())
    let kept = taped ? TapeFrame(&tape, model, input) : nil
    let frame = ForwardFrame(&forward, model, input, tape: kept)
    var behind = forward
    let last = frame.x(model.configuration.layers)
    if reads {
      _ = ReadEnd(&behind, model, input, last, logits: nil)
    } else {
      _ = ForwardEnd(&behind, model, input, x: last, ModelOutputs())
    }
    let back = BackwardFrame(&backward, model, input)
    var behindBack = backward
    _ = BackwardEnd(&behindBack, model, input, back, x: UnsafePointer(back.d), dObjective: 0)
    (self.tape, self.forward, self.backward) = (tape, forward, backward)
    (self.behind, self.behindBack) = (behind, behindBack)
  }

  /// Adds all layers. Those of a kind are counted, not visited: a search tries many levels.
  func complete(_ plan: inout ModelPlan, _ c: ModelConfiguration) throws(Fault) {
    var (tape, front, back) = (tape, behind, behindBack)
    for kind in 0..<KindsOfLayers.count {
      let (isMoE, keep) = KindsOfLayers.kind(kind)
      let layers = plan.count(isMoE, keep, c)
      guard layers > 0, let memory = plan.layers[isMoE, keep] else { continue }
      tape.skip(memory.tape, times: layers)
      var (own, ownBack) = (forward, backward)
      own.skip(memory.forward)
      front.cover(own)
      ownBack.skip(memory.backward)
      back.cover(ownBack)
    }
    plan.forwardScratch = try front.total()
    plan.backwardScratch = plan.taped ? try back.total() : 0
    plan.tape = try tape.total()
  }
}

extension Model {
  /// The fastest way that keeps to the limit.
  public func plan(_ input: ModelInput, taped: Bool) throws(Fault) -> ModelPlan {
    try plan(input, taped: taped, cache: nil)
  }

  /// The plan of tokens that go behind those in a cache, any layer of which tells its sizes.
  func plan(_ input: ModelInput, taped: Bool, cache: CachedLayer?) throws(Fault) -> ModelPlan {
    let planner = ModelPlanner(model: self, input: input, taped: taped, cache: cache, over: alike(input))
    return try planner.plan(input.limit ?? context.memoryLimit)
  }
}

struct ModelPlanner {
  private let model: Model
  private let input: ModelInput
  private let taped: Bool
  private let cache: CachedLayer?
  /// The tokens of all ranks, where they divide the call.
  private let ranks: Ranks.AllTokens?
  private let frames: FrameMemory

  init(model: Model, input: ModelInput, taped: Bool, cache: CachedLayer?, over ranks: Ranks.AllTokens?) {
    var input = input
    input.isTaped = taped
    (self.model, self.input, self.taped, self.cache, self.ranks) = (model, input, taped, cache, ranks)
    frames = FrameMemory(model, input, taped: taped, reads: cache != nil)
  }

  func plan(_ limit: Int?) throws(Fault) -> ModelPlan {
    let asked = input.chunkTokens.map { blocks(of: $0) * rowsPerBlock }
    let whole = min(max(ranks?.tokens ?? input.tokens, 1), asked ?? .max)
    var kinds = KindsOfLayers()
    guard let limit else { return try plan(0, chunk: whole, &kinds) }
    for level in 0...levels {
      let found = try plan(level, chunk: whole, &kinds)
      if found.total <= limit { return found }
    }
    // In chunks, of the level that takes least: with few layers what is computed again may take more than it saves.
    kinds = KindsOfLayers()
    var (best, bestLevel) = (try plan(0, chunk: rowsPerBlock, &kinds), 0)
    for level in 0...levels {
      let found = try plan(level, chunk: rowsPerBlock, &kinds)
      if found.total < best.total { (best, bestLevel) = (found, level) }
    }
    if best.total > limit { throw tooLittle(limit, best.total) }
    // The largest chunks that fit, by bisection.
    var (least, most) = (2, blocks(of: whole) - 1)
    while least <= most {
      let middle = (least + most) / 2
      kinds = KindsOfLayers()
      let found = try plan(bestLevel, chunk: middle * rowsPerBlock, &kinds)
      if found.total <= limit {
        best = found
        least = middle + 1
      } else {
        most = middle - 1
      }
    }
    return best
  }

  /// With chunks that ranks have agreed on.
  func plan(_ limit: Int?, chunk: Int) throws(Fault) -> ModelPlan {
    var kinds = KindsOfLayers()
    var least = Int.max
    for level in 0...levels {
      let found = try plan(level, chunk: chunk, &kinds)
      if found.total <= limit ?? .max { return found }
      least = min(least, found.total)
    }
    throw tooLittle(limit ?? .max, least)
  }

  /// Without a tape there is nothing to keep: level 2 n keeps the least.
  private var levels: Int { taped ? 2 * model.configuration.layers : 0 }

  private func tooLittle(_ limit: Int, _ least: Int) -> Fault {
    .invalid(
      "memory_limit = \(limit) bytes, but \(input.sequences) sequences of \(input.length) tokens need at least \(least)"
    )
  }

  /// At level 1 ... N the first layers keep no more than LEAN, from N + 1 on the first ones no more than INPUT.
  private func plan(_ level: Int, chunk: Int, _ kinds: inout KindsOfLayers) throws(Fault) -> ModelPlan {
    let c = model.configuration
    let chunks = ranks.map { RankChunks($0, tokens: input.tokens, size: blocks(of: chunk) * rowsPerBlock) }
    if let chunks, kinds.exchanges == nil { kinds.exchanges = try exchanges(chunks) }
    var plan = ModelPlan(
      taped: taped, lean: min(level, c.layers), input: max(level - c.layers, 0), chunk: chunk, layers: kinds)
    for kind in 0..<KindsOfLayers.count {
      let (isMoE, keep) = KindsOfLayers.kind(kind)
      if plan.layers[isMoE, keep] != nil || plan.count(isMoE, keep, c) == 0 { continue }
      plan.layers[isMoE, keep] = try measure(isMoE, LayerChoice(keep, chunk: chunk), over: chunks)
    }
    kinds = plan.layers
    try frames.complete(&plan, c)
    return plan
  }

  /// What goes from rank to rank is in the same memory, layer by layer; what is kept of other ranks' rows is each layer's own.
  @inline(never) private func exchanges(_ chunks: RankChunks) throws(Fault) -> Int {
    var (room, kept) = (taped ? model.bytesOfChains : 0, Arena())
    for n in 0..<model.configuration.layers {
      guard let own = try FeedForward.rankMemory(model, n, input, chunks, taped: taped) else { continue }
      room = max(room, own.room)
      kept.skip(own.kept)
    }
    kept.skip(room)
    return try kept.total()
  }

  private func measure(
    _ isMoE: Bool, _ choice: LayerChoice, over chunks: RankChunks?
  ) throws(Fault) -> LayerMemory? {
    let c = model.configuration
    var found: LayerMemory?
    for n in 0..<c.layers where c.isMoE(n) == isMoE && !model.takesMemory(n, as: c.layer(n).model) {
      let memory = try LayerMemory(model, n, input, choice, taped: taped, cache: cache, over: chunks)
      if found == nil { found = memory } else { try found!.cover(memory) }
    }
    return found
  }
}

extension Model {
  /// Whether layer n takes the memory that another before it does, whose configuration is the same.
  fileprivate func takesMemory(_ n: Int, as other: Int) -> Bool {
    guard n != other else { return false }
    guard let own = feedForwards[n], let others = feedForwards[other] else { return parameters.takeAlike(n, other) }
    return own.pointee.isOffloaded == others.pointee.isOffloaded
      && own.pointee.prepared.isAlike(others.pointee.prepared) && parameters.takeAlike(n, other)
  }
}

extension ModelPlan {
  /// Layers that are both.
  fileprivate func count(_ isMoE: Bool, _ keep: Keep, _ c: ModelConfiguration) -> Int {
    let range =
      switch keep {
      case .input: 0..<input
      case .lean: input..<lean
      case .all: lean..<c.layers
      }
    let moe = c.countMoE(range.upperBound) - c.countMoE(range.lowerBound)
    return isMoE ? moe : range.count - moe
  }
}
