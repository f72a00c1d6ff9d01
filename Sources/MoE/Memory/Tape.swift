/// What forward leaves for backward. One block of memory, which grows to the largest call.
public struct Tape {
  let context: ContextPointer
  let layerNumber: Int64
  private(set) var contents: TapeContents?
  fileprivate var memory: UnsafeMutableRawPointer?
  private var bytes = 0
  /// Of experts that are spread over ranks: what backward wants of rows that have come from other ranks, in memory of its own.
  private(set) var owned: OwnedTape?
  fileprivate var ownedMemory: UnsafeMutableRawPointer?
  private var ownedBytes = 0
  /// The caller's, in place of `memory`.
  public private(set) var lent: CallerMemory?

  init(_ layer: Layer) {
    context = layer.context
    layerNumber = layer.number
  }

  /// Memory for a call. The tape counts as empty until `fill`.
  mutating func prepare(
    _ c: Configuration, _ call: Call, _ plan: Plan, _ parameters: Parameters, frozen: LayerForms
  ) throws(Fault) -> TapeContents {
    contents = nil
    let active = c.activeExperts(call, parameters)
    func layout(_ arena: inout Arena) -> TapeContents {
      TapeContents(&arena, c, call, plan, context: context, activeExperts: active, frozen: frozen)
    }
    let needed = try Arena.bytes(of: layout)
    if let lent {
      if lent.bytes < needed {
        throw .invalid("tape: the memory bound to it has \(lent.bytes) bytes, but the call needs \(needed)")
      }
      var arena = Arena(lent.memory)
      return layout(&arena)
    }
    if memory == nil || needed > bytes {
      let allocator = context.pointee.allocator
      allocator.deallocate(memory)  // first: the old and the new block need not exist at once
      memory = nil
      memory = try allocator.allocate(bytes: needed)
      bytes = needed
    }
    var arena = Arena(memory!)
    return layout(&arena)
  }

  /// Memory for the rows that this rank has been told of.
  mutating func prepareOwned(
    _ c: Configuration, _ ranks: RanksPointer, _ chunks: RankChunks, keeps: Bool, frozen: LayerForms
  ) throws(Fault) {
    owned = nil
    func layout(_ arena: inout Arena) -> OwnedTape {
      OwnedTape(&arena, c, ranks, chunks, keeps: keeps, frozen: frozen, context)
    }
    let needed = try Arena.bytes(of: layout)
    if ownedMemory == nil || needed > ownedBytes {
      let allocator = context.pointee.allocator
      allocator.deallocate(ownedMemory)
      ownedMemory = nil
      ownedMemory = try allocator.allocate(bytes: needed)
      ownedBytes = needed
    }
    var arena = Arena(ownedMemory!)
    owned = layout(&arena)
  }

  fileprivate mutating func bind(_ lent: CallerMemory?) {
    contents = nil
    context.pointee.allocator.deallocate(memory)
    memory = nil
    bytes = 0
    self.lent = lent
  }

  /// Of a tape that is part of a model's: what is its own.
  func freeOwned() { context.pointee.allocator.deallocate(ownedMemory) }

  mutating func fill(_ contents: TapeContents) { self.contents = contents }
  mutating func clear() { contents = nil }
}

/// The routing of one call, and, unless they are to be computed again, its probabilities and pre-activations.
struct TapeContents {
  let plan: Plan
  private(set) var routing: Routing
  private let preactivations: KeptChunks?
  /// Of weights in few bits: backward goes through the same.
  let frozen: LayerForms
  let slopes: LossSlopes
  let draws: Draws
  let activeExperts: Int
  let weightsAreGiven: Bool
  let mayLeaveSlotsEmpty: Bool
  // The caller's numbers, which need not live until backward.
  private let noise: UnsafeMutablePointer<Float>?  // [T,E]
  private let jitter: UnsafeMutablePointer<Float>?  // [T,H]

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, _ plan: Plan, context: ContextPointer, activeExperts: Int,
    frozen: LayerForms
  ) {
    self.plan = plan
    self.frozen = frozen
    routing = Routing(&arena, c, call)
    slopes = LossSlopes(&arena, c, call)
    preactivations =
      plan.policy == .full
      ? KeptChunks(
        &arena, c, plan, c.groupsHere(over: call.ranks), packsWeights: context.packsWeights, frozen: frozen) : nil
    if plan.policy == .full { routing.takeMeasures(&arena, c) }
    var draws = c.draws(call, context.kernels)
    let jitters = call.given.jitter != nil && c.exploration.jitter > 0
    noise = call.given.noise == nil ? nil : arena.take(Float.self, call.tokens, c.experts)
    jitter = jitters ? arena.take(Float.self, call.tokens, c.hidden) : nil
    var kept = GivenNumbers()
    kept.noise = noise.map { UnsafePointer($0) }
    kept.jitter = jitter.map { UnsafePointer($0) }
    draws.given = kept.counted(from: draws.firstToken, c)
    self.draws = draws
    self.activeExperts = activeExperts
    weightsAreGiven = call.givenWeights != nil
    mayLeaveSlotsEmpty = c.mayLeaveSlotsEmpty(call)
  }

  func keepNumbers(of call: Call, _ c: Configuration) {
    noise?.update(from: call.given.noise!, count: call.tokens * c.experts)
    jitter?.update(from: call.given.jitter!, count: call.tokens * c.hidden)
  }

  var keeps: Bool { preactivations != nil }
  func kept(_ chunk: Int) -> KeptGroups? { preactivations?[chunk] }
}

public typealias TapePointer = UnsafeMutablePointer<Tape>

extension UnsafeMutablePointer where Pointee == Tape {
  public static func create(for layer: UnsafePointer<Layer>) throws(Fault) -> TapePointer {
    let context = layer.pointee.context
    let tape = try context.pointee.allocator.place(Tape(layer.pointee))
    context.retain()
    return tape
  }

  /// Uses the caller's memory, or the library's again.
  public func bind(_ memory: CallerMemory?) { pointee.bind(memory) }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(pointee.memory)
    pointee.freeOwned()
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
