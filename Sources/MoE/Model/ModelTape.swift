/// What a model's forward leaves for backward: one block of memory, which grows to the largest call.
public struct ModelTape {
  let context: ContextPointer
  let modelNumber: Int64
  private let layers: Int
  private let hasFeedForwards: Bool
  private(set) var contents: ModelTapeContents?
  fileprivate let blocks: UnsafeMutablePointer<BlockTape>  // [N]
  fileprivate let tapes: UnsafeMutablePointer<Tape>  // [N], of the ffn's
  fileprivate var memory: UnsafeMutableRawPointer?
  private var bytes = 0

  fileprivate init(_ model: Model, _ parts: ModelTapeParts) {
    context = model.context
    modelNumber = model.number
    (layers, hasFeedForwards) = (model.configuration.layers, model.configuration.hasFeedForward)
    blocks = parts.blocks
    tapes = parts.tapes
    for n in 0..<layers {
      if let layer = model.feedForwards[n] { (tapes + n).initialize(to: Tape(layer.pointee)) }
    }
  }

  /// Memory for a call. The tape counts as empty until `fill`.
  mutating func prepare(_ model: Model, _ input: ModelInput, _ plan: ModelPlan) throws(Fault) -> ModelTapeContents {
    contents = nil
    if memory == nil || plan.tape > bytes {
      let allocator = context.pointee.allocator
      allocator.deallocate(memory)  // first: the old and the new block need not exist at once
      memory = nil
      memory = try allocator.allocate(bytes: plan.tape)
      bytes = plan.tape
    }
    var arena = Arena(memory!)
    let c = model.configuration
    let frame = TapeFrame(&arena, model, input)
    for n in 0..<layers {
      let kind = plan.layers[c.isMoE(n), plan.keep(n)]!
      let block = BlockTape(
        &arena, BlockWork(model: model, n: n, input: input), plan.keep(n),
        feedForwardBytes: kind.feedForward?.tape ?? 0, x: frame.x(n))
      (blocks + n).initialize(to: block)
      if model.feedForwards[n] != nil {
        (tapes + n).bind(CallerMemory(block.feedForward, bytes: block.feedForwardBytes))
      }
    }
    return ModelTapeContents(
      plan: plan, input: input, frame: frame, blocks: blocks, tapes: tapes, packings: model.parameters.packings)
  }

  fileprivate func free() {
    if hasFeedForwards { for n in 0..<layers { tapes[n].freeOwned() } }
    context.pointee.allocator.deallocate(memory)
  }

  mutating func fill(_ contents: ModelTapeContents) { self.contents = contents }
  mutating func clear() { contents = nil }

  /// The call that filled it.
  public var input: ModelInput? { contents?.input }
}

/// The residual stream between the layers, and what is not any layer's.
struct TapeFrame {
  private let streams: UnsafeMutablePointer<Float>  // [N or N + 1, T, H]
  private let first: UnsafePointer<Float>?  // [T,H] the caller's, where there are neither embeddings nor padding
  private let elements: Int  // T H
  /// Of the pooled balance loss with respect to each MoE layer's mean probabilities.
  let pooledGradient: UnsafeMutablePointer<Float>?  // [MoE layers, E]

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput) {
    let c = model.configuration
    elements = input.tokens * c.hidden  // fits: the boundary has seen to that
    let readsItsOwn = model.readsItsOwn(input)
    first = readsItsOwn ? nil : input.hidden
    streams = arena.take(Float.self, readsItsOwn ? c.layers + 1 : c.layers, elements)
    pooledGradient =
      c.pooledCoefficient > 0 ? arena.take(Float.self, model.countMoE, model.pooledExperts) : nil
  }

  /// What layer n reads; x(N) is what the last one writes.
  func x(_ n: Int) -> UnsafePointer<Float> {
    guard let first else { return UnsafePointer(streams + n * elements) }
    return n == 0 ? first : UnsafePointer(streams + (n - 1) * elements)
  }
  /// What layer n writes, or, n = -1, the embedding.
  func y(_ n: Int) -> UnsafeMutablePointer<Float> { UnsafeMutablePointer(mutating: x(n + 1)) }
}

struct ModelTapeContents {
  let plan: ModelPlan
  let input: ModelInput
  let frame: TapeFrame
  let blocks: UnsafeMutablePointer<BlockTape>  // [N]
  let tapes: UnsafeMutablePointer<Tape>  // [N]
  let packings: Int  // of the model's own parameters before it
}

public typealias ModelTapePointer = UnsafeMutablePointer<ModelTape>

/// One block of memory: the tape, then what it points at.
private struct ModelTapeParts {
  let tape: ModelTapePointer
  let blocks: UnsafeMutablePointer<BlockTape>
  let tapes: UnsafeMutablePointer<Tape>

  init(_ arena: inout Arena, _ model: Model) {
    tape = arena.take(ModelTape.self, 1)
    blocks = arena.take(BlockTape.self, model.configuration.layers)
    tapes = arena.take(Tape.self, model.configuration.layers)
  }
}

extension UnsafeMutablePointer where Pointee == ModelTape {
  public static func create(for model: UnsafePointer<Model>) throws(Fault) -> ModelTapePointer {
    let context = model.pointee.context
    let parts = try context.pointee.allocator.make { ModelTapeParts(&$0, model.pointee) }
    parts.tape.initialize(to: ModelTape(model.pointee, parts))
    context.retain()
    return parts.tape
  }

  public func free() {
    let context = pointee.context
    pointee.free()
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
