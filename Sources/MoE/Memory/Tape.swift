/// What forward leaves for backward. One block of memory, which grows to the largest call.
public struct Tape {
  let context: ContextPointer
  let layerNumber: Int64
  private(set) var contents: TapeContents?
  fileprivate var memory: UnsafeMutableRawPointer?
  private var bytes = 0

  fileprivate init(_ layer: Layer) {
    context = layer.context
    layerNumber = layer.number
  }

  /// Memory for a call. The tape counts as empty until `fill`.
  mutating func prepare(
    _ c: Configuration, _ call: Call, _ parameters: Parameters, _ draws: Draws
  ) throws(Fault) -> TapeContents {
    contents = nil
    let active = c.activeExperts(call, parameters)
    let packsWeights = context.packsWeights
    var measure = Arena()
    _ = TapeContents(&measure, c, call, draws, activeExperts: active, packsWeights: packsWeights)
    let needed = try measure.total()
    if memory == nil || needed > bytes {
      let allocator = context.pointee.allocator
      allocator.deallocate(memory)  // first: the old and the new block need not exist at once
      memory = nil
      memory = try allocator.allocate(bytes: needed)
      bytes = needed
    }
    var arena = Arena(memory!)
    return TapeContents(&arena, c, call, draws, activeExperts: active, packsWeights: packsWeights)
  }

  mutating func fill(_ contents: TapeContents) { self.contents = contents }
  mutating func clear() { contents = nil }
}

/// The routing, probabilities and pre-activations of one call.
struct TapeContents {
  let routing: Routing
  let dispatch: Dispatch
  let preactivations: KeptGroups
  let slopes: LossSlopes
  let draws: Draws
  let activeExperts: Int
  let weightsAreGiven: Bool
  let mayLeaveSlotsEmpty: Bool

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, _ draws: Draws, activeExperts: Int, packsWeights: Bool
  ) {
    routing = Routing(&arena, c, call)
    dispatch = Dispatch(&arena, c, call)
    preactivations = KeptGroups(
      &arena, c, tokens: call.tokens, mostRows: dispatch.mostRows, packsWeights: packsWeights)
    slopes = LossSlopes(&arena, c, call)
    self.draws = draws
    self.activeExperts = activeExperts
    weightsAreGiven = call.givenWeights != nil
    mayLeaveSlotsEmpty = c.mayLeaveSlotsEmpty(call)
  }
}

public typealias TapePointer = UnsafeMutablePointer<Tape>

extension UnsafeMutablePointer where Pointee == Tape {
  public static func create(for layer: UnsafePointer<Layer>) throws(Fault) -> TapePointer {
    let context = layer.pointee.context
    let tape = try context.pointee.allocator.make(Tape(layer.pointee))
    context.retain()
    return tape
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(pointee.memory)
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}
