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
  let feedForward: MemoryPlan?
  let tape: Int
  let forward: Int
  let backward: Int

  init(
    _ model: Model, _ n: Int, _ input: ModelInput, _ choice: LayerChoice, taped: Bool, cache: CachedLayer?
  ) throws(Fault) {
    let nowhere = UnsafeMutablePointer<Float>(bitPattern: Allocator.alignment)!  // while measuring nothing is touched
    let part = try FeedForward(model, n, input, choice, taped: taped)
    feedForward = part?.memory
    var (tape, forward, backward) = (Arena(), Arena(), Arena())
    var kept: BlockTape?
    if taped {
      kept = BlockTape(
        &tape, model.configuration, input, choice.keep, feedForwardBytes: part?.memory.tape ?? 0, x: nowhere)
    }
    _ = BlockForward(&forward, model, n, input, part, tape: kept, cache: cache, x: nowhere, y: nowhere)
    if let kept { _ = BlockBackward(&backward, model, n, input, part, tape: kept, d: nowhere) }
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
    return tooMany ? .max : sum
  }

  public func keep(_ n: Int) -> Keep { n < input ? .input : n < lean ? .lean : .all }
  func choice(_ n: Int) -> LayerChoice { LayerChoice(keep(n), chunk: chunk) }
}

/// Layers that are both dense or both MoE, and keep the same, take the same memory: they are measured once.
struct KindsOfLayers {
  private var measured = InlineArray<6, LayerMemory?>(repeating: nil)

  subscript(isMoE: Bool, keep: Keep) -> LayerMemory? {
    get { measured[(isMoE ? 3 : 0) + Int(keep.rawValue)] }
    set { measured[(isMoE ? 3 : 0) + Int(keep.rawValue)] = newValue }
  }
}

extension Model {
  /// The fastest way that keeps to the limit.
  public func plan(_ input: ModelInput, taped: Bool) throws(Fault) -> ModelPlan {
    try plan(input, taped: taped, cache: nil)
  }

  /// The same for tokens that go behind those in a cache, any layer of which tells its sizes.
  func plan(_ input: ModelInput, taped: Bool, cache: CachedLayer?) throws(Fault) -> ModelPlan {
    let asked = input.chunkTokens.map { blocks(of: $0) * rowsPerBlock }
    let (n, whole) = (configuration.layers, min(max(input.tokens, 1), asked ?? .max))
    var kinds = KindsOfLayers()
    guard let limit = input.limit ?? context.memoryLimit else {
      return try plan(input, taped: taped, lean: 0, input: 0, chunk: whole, cache, &kinds)
    }
    func atLevel(_ level: Int, chunk: Int, _ kinds: inout KindsOfLayers) throws(Fault) -> ModelPlan {
      try plan(
        input, taped: taped, lean: min(level, n), input: max(level - n, 0), chunk: chunk, cache, &kinds)
    }
    let levels = taped ? 2 * n : 0  // without a tape there is nothing to keep
    for level in 0...levels {
      let found = try atLevel(level, chunk: whole, &kinds)
      if found.total <= limit { return found }
    }
    // In chunks, of the level that takes least: with few layers what is computed again may take more than it saves.
    kinds = KindsOfLayers()
    var (best, bestLevel) = (try atLevel(0, chunk: rowsPerBlock, &kinds), 0)
    for level in 0...levels {
      let found = try atLevel(level, chunk: rowsPerBlock, &kinds)
      if found.total < best.total { (best, bestLevel) = (found, level) }
    }
    if best.total > limit {
      throw .invalid(
        "memory_limit = \(limit) bytes, but \(input.sequences) sequences of \(input.length) tokens need at least \(best.total)"
      )
    }
    // The largest chunks that fit, by bisection.
    var (least, most) = (2, blocks(of: whole) - 1)
    while least <= most {
      let middle = (least + most) / 2
      kinds = KindsOfLayers()
      let found = try atLevel(bestLevel, chunk: middle * rowsPerBlock, &kinds)
      if found.total <= limit {
        best = found
        least = middle + 1
      } else {
        most = middle - 1
      }
    }
    return best
  }

  private func plan(
    _ input: ModelInput, taped: Bool, lean: Int, input inputs: Int, chunk: Int, _ cache: CachedLayer?,
    _ kinds: inout KindsOfLayers
  ) throws(Fault) -> ModelPlan {
    var plan = ModelPlan(taped: taped, lean: lean, input: inputs, chunk: chunk, layers: kinds)
    var (tape, forward, backward) = (Arena(), Arena(), Arena())
    let kept = taped ? TapeFrame(&tape, self, input) : nil
    let frame = ForwardFrame(&forward, self, input, tape: kept)
    var (behind, layers) = (forward, forward)
    let last = frame.x(configuration.layers)
    if cache == nil {
      _ = ForwardEnd(&behind, self, input, x: last, ModelOutputs())
    } else {
      _ = ReadEnd(&behind, self, input, last, logits: nil)
    }
    layers.cover(behind)
    let back = BackwardFrame(&backward, self, input)
    var (behindBack, layersBack) = (backward, backward)
    _ = BackwardEnd(&behindBack, self, input, back, x: UnsafePointer(back.d), dObjective: 0)
    layersBack.cover(behindBack)
    for n in 0..<configuration.layers {
      let (isMoE, keep) = (configuration.isMoE(n), plan.keep(n))
      if plan.layers[isMoE, keep] == nil {
        plan.layers[isMoE, keep] = try LayerMemory(self, n, input, plan.choice(n), taped: taped, cache: cache)
      }
      let memory = plan.layers[isMoE, keep]!
      tape.skip(memory.tape)
      var (front, backFront) = (forward, backward)
      front.skip(memory.forward)
      layers.cover(front)
      backFront.skip(memory.backward)
      layersBack.cover(backFront)
    }
    kinds = plan.layers
    plan.forwardScratch = try layers.total()
    plan.backwardScratch = taped ? try layersBack.total() : 0
    plan.tape = try tape.total()
    return plan
  }
}
