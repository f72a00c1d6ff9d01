import CShims

// The experts alone, over a caller's routing and a caller's weights: what a layer does between its router and its losses,
// by the same code. Nothing of a call is kept but what the caller keeps himself.

/// What one call brings beside its tokens. The boundary has checked it.
public struct ExpertsCall {
  public let group: ExpertGroup
  public let tokenType: ElementType  // of x, y and their gradients
  public let tokens: Int  // T
  public let topK: Int  // K
  public var indices: GivenIndices?  // [T,K]; nil where a call is planned for as many rows as there can be
  public var routing: UnsafeRawPointer?  // [T,K] routing weights
  public var routingType = ElementType.f32
  public var weights = GivenTensors()
  public var gradients = GivenTensors()
  public var overwrites = false
  public var prepared: PreparedExpertsPointer?
  /// Over which the experts are spread: `group` then has those of this rank, and `indices` count those of all.
  public var spread: ExpertRanksPointer?

  public init(_ group: ExpertGroup, tokenType: ElementType, tokens: Int, topK: Int) {
    self.group = group
    self.tokenType = tokenType
    self.tokens = tokens
    self.topK = topK
  }

  var pairs: Int { tokens * topK }
  var ranks: RanksPointer? { spread?.pointee.ranks }
  /// That may be chosen, E.
  var experts: Int { spread?.pointee.experts ?? group.experts }
  /// Whether the matrices are packed values that nothing changes.
  var isFrozen: Bool { prepared?.pointee.form.isFrozen ?? false }

  /// All tokens are one chunk.
  func chunk() -> ChunkSize {
    guard let indices else { return ChunkSize(tokens: tokens, mostRows: pairs, mayRepeat: true) }
    var rows = 0
    for pair in 0..<pairs where indices.expert(pair, of: experts).isExpert { rows += 1 }
    let mayRepeat = nameTwice(tokens: tokens, choices: topK) { indices.expert($0, of: experts) }
    return ChunkSize(tokens: tokens, mostRows: rows, mayRepeat: mayRepeat)
  }

  /// The call as a layer would have it: one group of experts, and choices that are given.
  @inline(never) func withConfiguration(_ body: (Configuration) throws(Fault) -> Void) throws(Fault) {
    try withUnsafePointer(to: group) { (group) throws(Fault) in
      var values = Configuration.Values(
        hidden: group.pointee.hidden, experts: experts, topK: topK, groups: group, groupCount: 1)
      values.router = .external
      values.tokens = tokenType
      try withUnsafePointer(to: values) { (values) throws(Fault) in try body(Configuration(values)) }
    }
  }

  func fill(_ routing: Routing, _ kernels: UnsafePointer<moei_kernels>) {
    guard let indices, let weights = self.routing, pairs > 0 else { return }
    routingType.toFloats(weights, 0, pairs, routing.weights, kernels)
    for pair in 0..<pairs { routing.indices[pair] = indices.expert(pair, of: experts) }
  }
}

/// Numbers of experts, as the caller counts them.
public enum GivenIndices {
  case int32(UnsafePointer<Int32>)
  case int64(UnsafePointer<Int64>)

  /// None for what is no expert's number.
  func expert(_ pair: Int, of experts: Int) -> Int32 {
    switch self {
    case .int32(let indices):
      let expert = indices[pair]
      return expert >= 0 && Int(expert) < experts ? expert : .noExpert
    case .int64(let indices):
      let expert = indices[pair]
      return expert >= 0 && expert < Int64(experts) ? Int32(truncatingIfNeeded: expert) : .noExpert
    }
  }
}

/// What forward and backward have in common.
struct CallParts {
  let c: Configuration
  let x: TokensIn
  let routing: Routing
  let dispatch: Dispatch
  let work: ExpertsWork
  let tensors: UnsafeMutablePointer<CallTensors>

  /// `runs`: those of a backward or of the forward before it, where the products are the library's own; none without a backward.
  init(
    _ arena: inout Arena, _ call: ExpertsCall, _ c: Configuration, _ size: ChunkSize,
    _ tensors: UnsafeMutablePointer<CallTensors>, x: UnsafeRawPointer, prepared: PreparedGroups,
    runs: Runs, _ context: ContextPointer
  ) {
    self.c = c
    self.tensors = tensors
    let own = Call(tokens: call.tokens)
    self.x = TokensIn(&arena, c, context: context, x, tokens: call.tokens)
    routing = Routing(&arena, c, own)
    dispatch = Dispatch(&arena, c, size)
    tensors.pointee.layout(&arena)
    work = ExpertsWork(
      c: c, x: self.x.floats, source: .call(UnsafePointer(tensors)), prepared: prepared, dispatch: dispatch,
      draws: c.draws(own, context.kernels), isDifferentiated: runs != .none,
      runs: context.packsWeights ? runs : .none)
  }

  var rows: GroupRows { dispatch.rows(of: c.groups[0]) }

  func begin(_ call: ExpertsCall, in context: ContextPointer, backward: Bool) throws(Fault) {
    try x.run(in: context)
    try context.measure(.dispatch, backward: backward) { () throws(Fault) in
      call.fill(routing, context.kernels)
      dispatch.group(routing, 0..<call.tokens)
      // Over ranks this rank's experts have other rows than its tokens.
      if call.ranks == nil { tensors.pointee.begin(rows, context.kernels) }
    }
  }
}
