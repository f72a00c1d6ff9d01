/// How experts and tokens find each other. A new router is a row of RouterKind.swift, a file with a struct that fills the
/// routing's indices, and a case here with its lines: token by token, wave by wave, or for all tokens together once their
/// logits are known.
enum Choice {
  case topK(TopKChoice)
  case hierarchical(HierarchicalChoice)
  case hash(HashChoice)
  case given(GivenChoice)
  case experts(ExpertChoice)
  case sinkhorn(SinkhornChoice)
  case relu(ReluChoice)

  /// What a choice is made from.
  struct Inputs {
    let c: Configuration
    let call: Call
    let context: ContextPointer
    let x: UnsafePointer<Float>  // [T,H]
    let routing: Routing
    let selection: Selection
    let values: TokenRows  // what is chosen by, where choices are made together
  }

  init(_ arena: inout Arena, _ inputs: Inputs) {
    let (c, context, routing) = (inputs.c, inputs.context, inputs.routing)
    // A call that is only planned may come without its arrays.
    if inputs.call.givenIndices != nil || c.router.needsChoices {
      self = .given(GivenChoice(c: c, routing: routing, indices: inputs.call.givenIndices))
      return
    }
    switch (c.routerKind, c.choice.groups) {
    case (.expertChoice, _):
      self = .experts(
        ExpertChoice(
          &arena, c, inputs.call, context: context, routing: routing, selection: inputs.selection,
          values: inputs.values))
    case (.hierarchical, .some(let groups)):
      self = .hierarchical(
        HierarchicalChoice(
          &arena, c, groups, context: context, routing: routing, hierarchy: Hierarchy(c, groups, context.kernels)))
    case (.hash, _):
      self = .hash(HashChoice(c: c, routing: routing, table: c.hashTable!, tokenIds: inputs.call.tokenIds))
    case (.sinkhorn, _) where inputs.call.training:
      self = .sinkhorn(SinkhornChoice(&arena, c, context: context, routing: routing, values: inputs.values))
    case (.relu, _): self = .relu(ReluChoice(&arena, c, context: context, routing: routing))
    case (.tokenChoice, _), (.sinkhorn, _), (.hierarchical, .none), (.external, _):
      self = .topK(
        TopKChoice(&arena, c, context: context, routing: routing, selection: inputs.selection, x: inputs.x))
    }
  }

  /// Whether tokens are chosen for all together.
  static func isTogether(_ c: Configuration, _ call: Call) -> Bool {
    if call.givenIndices != nil { return false }
    switch c.router.together {
    case .never: return false
    case .inTraining: return call.training
    case .always: return true
    }
  }

  func prepare(in context: ContextPointer) throws(Fault) {
    switch self {
    case .topK(let choice): try choice.prepare(in: context)
    case .experts(let choice): choice.prepare()
    case .hierarchical, .hash, .given, .sinkhorn, .relu: break
    }
  }

  /// For one block of tokens; nothing where choices are made together.
  func choose(_ block: TokenBlock) -> RoutingFailure? {
    switch self {
    case .topK(let choice): choice.choose(block)
    case .hierarchical(let choice): choice.choose(block)
    case .hash(let choice): choice.choose(block)
    case .given(let choice): choice.choose(block)
    case .relu(let choice): choice.choose(block)
    case .experts, .sinkhorn: nil
    }
  }

  /// Of a token whose choice is made together with others'.
  func note(_ t: Int, logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>) {
    switch self {
    case .experts(let choice): choice.note(t, logits: z, probabilities: p)
    case .sinkhorn(let choice): choice.note(t, logits: z, probabilities: p)
    case .topK, .hierarchical, .hash, .given, .relu: break
    }
  }

  /// For a wave of tokens, whose blocks are done.
  func offer(_ tokens: Range<Int>) throws(Fault) {
    if case .experts(let choice) = self { try choice.offer(tokens) }
  }

  /// After the last token.
  func chooseTogether(in context: ContextPointer) throws(Fault) {
    if case .sinkhorn(let choice) = self { try choice.run(in: context) }
  }
}
