import CShims

public typealias ModelPointer = UnsafeMutablePointer<Model>

/// One block of memory: the model, then what it points at.
private struct ModelParts {
  let model: ModelPointer
  let parameters: ModelParameters
  let feedForwards: UnsafeMutablePointer<LayerPointer?>
  let turn: Lock
  let table: UnsafeMutablePointer<ModelLayer>
  let rotaries: UnsafeMutablePointer<UnsafeMutablePointer<ModelRotary>?>  // in a block of their own
  let room: UnsafeMutableRawPointer

  init(_ arena: inout Arena, _ c: ModelConfiguration, room bytes: Int) {
    model = arena.take(Model.self, 1)
    parameters = ModelParameters(&arena, c)
    feedForwards = arena.take(LayerPointer?.self, c.layers)
    turn = Lock(&arena)
    table = arena.take(ModelLayer.self, c.layers)
    rotaries = arena.take(UnsafeMutablePointer<ModelRotary>?.self, 1)
    room = UnsafeMutableRawPointer(arena.take(UInt8.self, bytes))
  }

  func free(_ allocator: Allocator, layers: Int) {
    for n in 0..<layers { feedForwards[n]?.free() }
    parameters.free(allocator: allocator)
    allocator.deallocate(rotaries.pointee)
    allocator.deallocate(model)
  }

  /// The configuration with its table of layers.
  func fillTable(_ given: ModelConfiguration, _ layer: (Int) -> ModelLayer) -> ModelConfiguration {
    var c = given
    c.rotaries = nil  // the caller's; what they say is in tables of the model's
    c.table = UnsafePointer(table)
    for n in 0..<c.layers {
      ModelLayer.add(layer(n), n, to: table)
      if table[n].isMoE { c.moeLayers += 1 }
    }
    return c
  }
}

extension LayerPointer {
  /// The ffn of layer n, of whose kind `values` are.
  fileprivate static func create(
    _ n: Int, _ c: ModelConfiguration, _ values: Configuration.Values, over spread: Ranks.Wanted?,
    in context: ContextPointer
  ) throws(Fault) -> LayerPointer {
    var own = values
    (own.seed, own.startsRandom, own.allocates) = (c.seed(ofFeedForward: n), c.startsRandom, c.allocates)
    if c.isMoE(n) { return try create(own, over: spread, in: context) }
    var group = own.groups[0].wide(c.layer(n).denseSize)
    return try withUnsafePointer(to: &group) { (groups) throws(Fault) in
      own.groups = groups
      return try create(own, in: context)
    }
  }
}

extension UnsafeMutablePointer where Pointee == Model {
  /// `moe` and `dense` are the ffn's, their seeds and the width of dense ones aside; nil where the model has none of them.
  /// `layer` says what each layer is. `room`: bytes for whoever makes the model. `spread`: over which ranks, where that is more than
  /// this process.
  public static func create(
    _ given: ModelConfiguration, moe: Configuration.Values?, dense: Configuration.Values?, layer: (Int) -> ModelLayer,
    room: Int, over spread: Ranks.Wanted? = nil, in context: ContextPointer
  ) throws(Fault) -> ModelPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make { ModelParts(&$0, given, room: room) }
    let c = parts.fillTable(given, layer)
    parts.rotaries.initialize(to: nil)
    parts.turn.initialise()
    parts.parameters.clear()
    parts.feedForwards.initialize(repeating: nil, count: c.layers)
    var ranks: RanksPointer?
    do throws(Fault) {
      ranks = try spread.map { (spread) throws(Fault) in try RanksPointer.create(spread, moe!, allocator) }
      try parts.parameters.allocate(c, allocator: allocator)
      for n in 0..<c.layers where c.hasFeedForward {
        parts.feedForwards[n] = try LayerPointer.create(n, c, c.isMoE(n) ? moe! : dense!, over: spread, in: context)
        parts.feedForwards[n]!.pointee.ranks?.pointee.lender = ranks
      }
      let rotaries = try ModelRotary.make(given, allocator)
      parts.rotaries.pointee = rotaries
      let list = try ParameterList.make(parts.parameters, parts.feedForwards, layers: c.layers, allocator)
      parts.model.initialize(
        to: Model(
          c, at: parts.model, context: context, parameters: parts.parameters, feedForwards: parts.feedForwards,
          list: list,
          rotaries: rotaries, room: parts.room, turn: parts.turn))
      parts.model.pointee.ranks = ranks
    } catch {
      ranks?.free(allocator)
      parts.free(allocator, layers: c.layers)
      throw error
    }
    if c.startsRandom { parts.parameters.initialise(c, in: context) } else { parts.parameters.zeroGrad(in: context) }
    for number in 0..<given.rotaryCount {
      parts.model.pointee.rotaries[number].fill(given.rotaries![number], headSize: given.headSize)
    }
    context.retain()
    return parts.model
  }

  public func free() {
    let (context, layers) = (pointee.context, pointee.configuration.layers)
    let allocator = context.pointee.allocator
    for n in 0..<layers { pointee.feedForwards[n]?.free() }
    pointee.parameters.free(allocator: allocator)
    pointee.list.free(allocator)
    pointee.origin?.free(allocator)
    pointee.ranks?.free(allocator)
    allocator.deallocate(UnsafeMutableRawPointer(mutating: pointee.rotaries))
    allocator.deallocate(self)
    context.release()
  }
}

// MARK: parameters

extension Model {
  public var parameterCount: Int { list.count }

  public func parameter(_ index: Int) -> Parameter {
    switch list[index] {
    case .own(let own): parameters.parameter(own)
    case .feedForward(let n, let own): feedForwards[n]!.pointee.parameter(own).named(list.name(index))
    }
  }

  public func find(_ name: UnsafePointer<CChar>) -> Int? {
    for index in list.candidates(name) where compareText(parameter(index).name, name) == 0 { return index }
    return nil
  }

  public func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?) {
    switch list[index] {
    case .own(let own): parameters.bind(own, data: data, grad: grad, allocator: context.pointee.allocator)
    case .feedForward(let n, let own): feedForwards[n]!.pointee.bind(own, data: data, grad: grad)
    }
  }

  public func freeze(_ index: Int) {
    switch list[index] {
    case .own(let own): parameters.freeze(own, allocator: context.pointee.allocator)
    case .feedForward(let n, let own): feedForwards[n]!.pointee.freeze(own)
    }
  }

  /// Gradients of what is trained, where they have no memory.
  func allocateGradients() throws(Fault) {
    for index in 0..<parameterCount {
      let own = parameter(index)
      if own.isReleased && own.isTrained {
        throw .invalid(
          "\(own.name): is packed in a form that is for inference: set inference_only = 1, or pack it in few bits, which are frozen"
        )
      }
    }
    try parameters.allocateGradients(in: context)
    for n in 0..<configuration.layers { try feedForwards[n]?.pointee.parameters.allocateGradients(in: context) }
  }

  public func zeroGrad() {
    parameters.zeroGrad(in: context)
    for n in 0..<configuration.layers { feedForwards[n]?.pointee.zeroGrad() }
  }

  /// The ffn of layer n; nil where there is none.
  public func layer(_ n: Int) -> LayerPointer? { feedForwards[n] }

  /// Whether the tape was made for this model.
  public func owns(_ tape: UnsafePointer<ModelTape>) -> Bool {
    tape.pointee.modelNumber == number && tape.pointee.context == context
  }
  /// Empties the tape: after an error there is nothing to go back from.
  public func clear(_ tape: ModelTapePointer) { tape.pointee.clear() }
}
