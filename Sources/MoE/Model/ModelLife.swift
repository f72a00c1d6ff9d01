import CShims

public typealias ModelPointer = UnsafeMutablePointer<Model>

/// One block of memory: the model, then what it points at.
private struct ModelParts {
  let model: ModelPointer
  let parameters: ModelParameters
  let feedForwards: UnsafeMutablePointer<LayerPointer?>
  let turn: Lock
  let rotaryTable: RotaryTable?

  init(_ arena: inout Arena, _ c: ModelConfiguration) {
    model = arena.take(Model.self, 1)
    parameters = ModelParameters(&arena, c)
    feedForwards = arena.take(LayerPointer?.self, c.layers)
    turn = Lock(&arena)
    rotaryTable = c.theta == nil ? nil : RotaryTable(&arena, headSize: c.headSize, steps: true)
  }

  func free(_ allocator: Allocator, layers: Int) {
    for n in 0..<layers { feedForwards[n]?.free() }
    parameters.free(allocator: allocator)
    allocator.deallocate(model)
  }
}

extension UnsafeMutablePointer where Pointee == Model {
  /// `moe` and `dense` are the ffn's, their seeds aside; nil where the model has none of them.
  public static func create(
    _ c: ModelConfiguration, moe: Configuration.Values?, dense: Configuration.Values?, in context: ContextPointer
  ) throws(Fault) -> ModelPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make { ModelParts(&$0, c) }
    parts.turn.initialise()
    parts.parameters.clear()
    parts.feedForwards.initialize(repeating: nil, count: c.layers)
    do throws(Fault) {
      try parts.parameters.allocate(c, allocator: allocator)
      for n in 0..<c.layers where c.hasFeedForward {
        var layer = c.isMoE(n) ? moe! : dense!
        layer.seed = c.seed(ofFeedForward: n)
        parts.feedForwards[n] = try LayerPointer.create(layer, in: context)
      }
      let list = try ParameterList.make(parts.parameters, parts.feedForwards, layers: c.layers, allocator)
      parts.model.initialize(
        to: Model(
          c, context: context, parameters: parts.parameters, feedForwards: parts.feedForwards, list: list,
          rotaryTable: parts.rotaryTable, turn: parts.turn))
    } catch {
      parts.free(allocator, layers: c.layers)
      throw error
    }
    parts.parameters.initialise(c, context.kernels)
    if let theta = c.theta { parts.rotaryTable!.fill(theta: theta) }
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

  public func zeroGrad() {
    parameters.zeroGrad()
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
