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

  /// Memory for a call of `tokens` tokens, with pre-activations of that form. The tape counts as empty until `fill`.
  mutating func prepare(
    _ c: Configuration, tokens: Int, dropout: Dropout?, form: ExpertForm
  ) throws(Fault) -> TapeContents {
    contents = nil
    var measure = Arena()
    _ = TapeContents(&measure, c, tokens: tokens, dropout: dropout, form: form)
    let needed = try measure.total()
    if memory == nil || needed > bytes {
      let allocator = context.pointee.allocator
      allocator.deallocate(memory)  // first: the old and the new block need not exist at once
      memory = nil
      memory = try allocator.allocate(bytes: needed)
      bytes = needed
    }
    var arena = Arena(memory!)
    return TapeContents(&arena, c, tokens: tokens, dropout: dropout, form: form)
  }

  mutating func fill(_ contents: TapeContents) { self.contents = contents }
  mutating func clear() { contents = nil }
}

/// The routing, probabilities and pre-activations of one call.
struct TapeContents {
  let routing: Routing
  let dispatch: Dispatch
  let preactivations: KeptPreactivations
  let dropout: Dropout?

  init(_ arena: inout Arena, _ c: Configuration, tokens: Int, dropout: Dropout?, form: ExpertForm) {
    routing = Routing(&arena, c, tokens: tokens)
    dispatch = Dispatch(&arena, c, tokens: tokens)
    preactivations = form.preactivations(&arena, c, pairs: dispatch.pairs)
    self.dropout = dropout
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
