/// A model's backward that steps an optimiser itself, layer by layer, the last one first: each parameter is stepped once nothing
/// of this backward reads it any more. Layers without memory for their experts' gradients step these one by one
/// (Experts/FusedStep.swift); the others' gradients are complete when their layer is done.
/// Steps give the bits of one step after a whole backward.
struct ModelStep {
  private let call: FusedCall
  private let original: UnsafePointer<Model>
  private let memory: ModelStepMemory

  /// Refuses what a layer would refuse once others have been stepped. Sets the gradients to 0 that are not set to 0 by layers
  /// which step themselves.
  @inline(never) init(
    _ call: FusedCall, _ model: Model, _ taped: ModelTapeContents, _ memory: ModelStepMemory
  ) throws(Fault) {
    self.call = call
    self.memory = memory
    original = model.place
    for n in 0..<model.configuration.layers {
      guard let layer = model.feedForwards[n] else { continue }
      if taped.tapes[n].contents!.frozen != layer.pointee.prepared.frozenForms { throw .packedSince }
    }
    try model.parameters.requirePackedValues(model.context.kernels)
    for index in 0..<model.parameterCount where !model.stepsWithinBackward(index) {
      model.parameter(index).zeroGrad(in: model.context)
    }
  }

  /// Before the first layer's backward, in which the first step is. Returns the model that backward goes on with: a half-made step
  /// could not be repaired, and so it is one in which nobody is asked whether to go on.
  @inline(never) func begin() -> UnsafePointer<Model> {
    let context = original.pointee.context.uncancelled(in: memory.context)
    memory.model.initialize(from: original, count: 1)
    memory.model.pointee.context = context
    memory.model.pointee.place = UnsafePointer(memory.model)
    memory.model.pointee.feedForwards = memory.feedForwards
    memory.feedForwards.initialize(
      from: original.pointee.feedForwards, count: original.pointee.configuration.layers)
    call.optimizer.pointee.beginStep()
    return UnsafePointer(memory.model)
  }

  /// Before the backward of layer n; returns what it steps itself, nil where it steps nothing.
  @inline(never) func begin(layer n: Int) -> FusedCall? {
    guard let layer = original.pointee.feedForwards[n] else { return nil }
    memory.layer.initialize(from: layer, count: 1)
    memory.layer.pointee.context = memory.context
    memory.feedForwards[n] = memory.layer
    if layer.pointee.configuration.keepsExpertGradients { return nil }
    return call.goingOn(withTensor: tensors(before: original.pointee.list.firstOfFeedForward(n)))
  }

  /// After the backward of layer n.
  @inline(never) func finish(layer n: Int) { step(original.pointee.list.ofLayer(n)) }

  /// What belongs to no layer, after everything else: an embedding may be the output's matrix too.
  @inline(never) func finish() {
    let list = original.pointee.list
    step(0..<list.ofLayer(0).lowerBound)
    step(list.ofLayer(original.pointee.configuration.layers - 1).upperBound..<list.count)
  }

  private func step(_ range: Range<Int>) {
    let profile = original.pointee.context.profile
    let begun = profile.begin()
    defer { if begun != 0 { profile.end(begun, .optimizer, backward: false, Work()) } }
    var tensor = tensors(before: range.lowerBound)
    for index in range {
      let parameter = original.pointee.parameter(index)
      if !parameter.isTrained { continue }
      if !original.pointee.stepsWithinBackward(index) {
        call.optimizer.pointee.step(
          tensor, 0..<parameter.count, data: parameter.data!, grad: parameter.grad!, clip: call.clip, clears: false)
      }
      tensor += 1
    }
  }

  /// How many of the optimiser's tensors come before number `index` of the model's parameters.
  private func tensors(before index: Int) -> Int {
    var count = 0
    for before in 0..<index where original.pointee.parameter(before).isTrained { count += 1 }
    return count
  }
}

extension Model {
  /// Whether a parameter is of a layer that steps itself, expert by expert, and so needs no gradient.
  public func stepsWithinBackward(_ index: Int) -> Bool {
    guard case .feedForward(let n, _) = list[index], let layer = feedForwards[n] else { return false }
    return !layer.pointee.configuration.keepsExpertGradients
  }
}

/// The model, and the layer that is at work: copies in whose context nobody is asked whether to go on.
struct ModelStepMemory {
  fileprivate let context: ContextPointer
  fileprivate let model: UnsafeMutablePointer<Model>
  fileprivate let layer: LayerPointer
  fileprivate let feedForwards: UnsafeMutablePointer<LayerPointer?>  // [N]

  init(_ arena: inout Arena, _ model: Model) {
    context = arena.take(Context.self, 1)
    self.model = arena.take(Model.self, 1)
    layer = arena.take(Layer.self, 1)
    feedForwards = arena.take(LayerPointer?.self, model.configuration.layers)
  }
}
