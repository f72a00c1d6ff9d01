import CMoE
import MoE

// What the functions about experts by call are given, as the engine's ExpertsCall.

/// The lists of tensors of one call.
struct ExpertLists {
  let weights: ExpertTensorList
  let gradients: ExpertTensorList

  /// No tensors are listed in the structs' defaults.
  init(_ config: moe_experts_config, _ gradients: moe_experts_gradients = moe_experts_gradients()) {
    weights = ExpertTensorList(config.weights, Int(config.n_weights), .weights)
    self.gradients = ExpertTensorList(gradients.tensors, Int(gradients.n_tensors), .gradients)
  }
}

extension ExpertsCall {
  /// `planned`: the call is not made, and its memory need not be there.
  init(
    _ config: moe_experts_config, _ call: UnsafePointer<moe_experts_call>?, _ lists: ExpertLists,
    planned: Bool = false, _ operands: inout Operands
  ) throws(Fault) {
    let call = try operands.copies(call, "call")
    let (tokens, topK) = (Int(call.n_tokens), Int(call.top_k))
    // Pairs of tokens and choices are counted in 32 bits.
    try require(tokens, "call.n_tokens", from: 0, to: Int(Int32.max) / topK)
    _ = try product(
      try product(tokens * topK, Int(config.hidden_size), "n_tokens * top_k * hidden_size"), 8,
      "the bytes of n_tokens * top_k * hidden_size")
    let prepared = try call.prepared.map { (handle) throws(Fault) in
      try MoEABI.handle(handle, "call.prepared", as: PreparedExperts.self)
    }
    let spread = try call.ranks.map { (handle) throws(Fault) in
      try MoEABI.handle(handle, "call.ranks", as: ExpertRanks.self)
    }
    try requireExperts(config, of: spread)
    let given = try ExpertGroup(config, lists.weights, packed: prepared?.pointee.group)
    try prepared?.pointee.require(given)
    self.init(
      prepared?.pointee.computed(given) ?? given,
      tokenType: try elementType(config.io_dtype, "io_dtype", forTokens: true), tokens: tokens, topK: topK)
    self.prepared = prepared
    self.spread = spread
    try takeChoices(call, planned: planned, &operands)
    try takeTensors(lists, planned: planned, &operands)
  }

  private mutating func takeChoices(
    _ call: moe_experts_call, planned: Bool, _ operands: inout Operands
  ) throws(Fault) {
    let pairs = tokens * topK
    routingType = try elementType(call.routing_dtype, "call.routing_dtype")
    let isWide = call.index_dtype == Int32(MOE_DTYPE_I64.rawValue)
    if !isWide && call.index_dtype != Int32(MOE_DTYPE_I32.rawValue) {
      throw .invalid("call.index_dtype = \(Int(call.index_dtype)) is neither MOE_DTYPE_I32 nor MOE_DTYPE_I64")
    }
    if planned && call.expert_indices == nil {
      if spread == nil || tokens == 0 { return }
      throw .invalid("call.expert_indices is NULL: over ranks what is computed where is known from all of them")
    }
    let name: StaticString = "call.expert_indices"
    if isWide {
      indices = .int64(try operands.reads(call.expert_indices?.assumingMemoryBound(to: Int64.self), pairs, name))
    } else {
      indices = .int32(try operands.reads(call.expert_indices?.assumingMemoryBound(to: Int32.self), pairs, name))
    }
    if planned { return }
    routing = try operands.reads(call.expert_weights, pairs, of: routingType, "call.expert_weights")
  }

  private mutating func takeTensors(
    _ lists: ExpertLists, planned: Bool, _ operands: inout Operands
  ) throws(Fault) {
    weights = try GivenTensors(lists.weights, group, planned: planned, &operands)
    try weights.requireMatrices(group, mayBeAbsent: prepared != nil || group.experts == 0)
    gradients = try GivenTensors(lists.gradients, group, planned: planned, &operands)
    for number: Int32 in 0..<Int32(GivenTensors.Part.count) {
      let part: GivenTensors.Part = try named(number)
      if gradients[part] == nil { continue }
      if !part.isVector, let form = prepared?.pointee.form, form.isFrozen {
        throw .invalid(
          "gradients have \(part.constant), whose values are those that call.prepared holds as \(form.constant), which stay as they are: leave it out"
        )
      }
      if weights[part] == nil {
        throw .invalid("gradients have \(part.constant), which weights have not: list it in both, or in neither")
      }
    }
  }

  /// Whether backward has what it reads.
  func requireGradients() throws(Fault) {
    guard let form = prepared?.pointee.form, !form.isFrozen else { return }
    if weights[.down] == nil {
      throw .invalid(
        "weights have no matrices, and backward reads none that are packed as \(form.constant): list them")
    }
  }
}

/// Whether there are as many experts as the call is about.
private func requireExperts(_ config: moe_experts_config, of spread: ExpertRanksPointer?) throws(Fault) {
  let count = Int(config.n_experts)
  guard let spread else { return try require(count, "n_experts", from: 1, to: Int(Int32.max)) }
  let own = spread.pointee.own.count
  if count != own {
    throw .invalid(
      "n_experts = \(count), but of the \(spread.pointee.experts) experts of call.ranks this rank has \(own)")
  }
}

/// Runs the body of a call: over ranks, what it throws is told to the others.
func attempt(
  together call: UnsafePointer<moe_experts_call>?, _ body: () throws(Fault) -> Void
) -> moe_status {
  attempt { () throws(Fault) in
    let ranks = call == nil ? nil : try readUnchecked(call, "call").ranks
    guard let ranks else { return try body() }
    try handle(ranks, "call.ranks", as: ExpertRanks.self).together(body)
  }
}

extension Operands {
  /// The memory of experts that are listed one by one, when everything else of a call is known.
  func requireApart(
    fromListed lists: ExpertLists, _ call: ExpertsCall, in context: ContextPointer
  ) throws(Fault) {
    try requireApart(ExpertMemory(lists: lists, group: call.group), in: context)
  }
}

extension ExpertGroup {
  /// The experts of one call, by the checks of a layer's. Their weights' type stands in the list of tensors; where matrices
  /// were packed and are not given, the type they had.
  init(
    _ config: moe_experts_config, _ list: ExpertTensorList, packed: ExpertGroup? = nil
  ) throws(Fault) {
    var (group, layer) = (moe_expert_group(), moe_layer_config())
    group.n_experts = config.n_experts
    group.intermediate_size = config.intermediate_size
    group.expert_kind = config.expert_kind
    group.activation = config.activation
    group.expert_bias = number(MOE_BIAS_OFF)
    (group.glu_limit, group.glu_alpha, group.glu_offset) = (config.glu_limit, config.glu_alpha, config.glu_offset)
    layer.hidden_size = config.hidden_size
    layer.weight_on_input = config.weight_on_input
    layer.weight_dtype = packed?.weights.rawValue ?? ElementType.f32.rawValue
    let weights = try array(list.tensors, count: list.count, list.name)
    for i in 0..<list.count where weights[i].part == number(MOE_EXPERT_PART_DOWN) {
      layer.weight_dtype = try elementType(weights[i].dtype, "DOWN of weights").rawValue
    }
    try self.init(group, layer, shared: false)
  }
}

extension PreparedExperts {
  /// Whether it is of such experts.
  func require(_ wanted: ExpertGroup) throws(Fault) {
    if group.kind == wanted.kind && group.hidden == wanted.hidden && group.intermediate == wanted.intermediate
      && group.experts == wanted.experts && group.weights == wanted.weights
    {
      return
    }
    throw .badState(
      "prepared is of \(group.experts) experts of expert_kind = \(Int(group.kind.rawValue)), hidden_size = \(group.hidden), intermediate_size = \(group.intermediate) and \(group.weights.format.constant), not of these: prepare these"
    )
  }
}

/// Memory of plain bytes that a call writes or reads.
func savedBytes(_ memory: UnsafeMutableRawPointer?, _ size: Int) throws(Fault) -> CallerMemory? {
  guard let memory else {
    if size != 0 {
      throw .invalid("saved is NULL, but saved_size is \(UInt64(UInt(bitPattern: size))): give both, or neither")
    }
    return nil
  }
  if Int(bitPattern: memory) % 8 != 0 { throw .invalid("saved is not aligned to 8 bytes") }
  return CallerMemory(memory, bytes: Int(clamping: UInt(bitPattern: size)))
}
