/// A backward that steps an optimiser itself: the gradient of an expert is summed up in scratch, applied and forgotten
/// before the next expert's is begun, so that the gradient of all experts never exists. Steps are elementwise: they give
/// the bits of one step after a whole backward.
struct FusedStep {
  private let call: FusedCall
  private let parameters: Parameters
  private let scratch: FusedScratch
  private var hasBegun = false
  /// Where the rest of the call runs. A half-made step could not be repaired: once one has begun, nobody is asked here
  /// whether to go on.
  private(set) var context: ContextPointer

  /// Sets gradients to 0 that have memory to stay in: of all but the experts' matrices and their biases.
  @inline(never) init(
    _ call: FusedCall, _ parameters: Parameters, _ scratch: FusedScratch, in context: ContextPointer
  ) {
    self.context = context
    self.call = call
    self.parameters = parameters
    self.scratch = scratch
    for index in 0..<parameters.trainedCount where !parameters.trained(index).isOfMatrices {
      parameters.trained(index).zeroGrad()
    }
  }

  /// Before the first expert's step.
  mutating func begin() {
    if hasBegun { return }
    hasBegun = true
    scratch.gradient.update(repeating: 0, count: scratch.count)
    if call.goesOn { return }
    context = context.uncancelled(in: scratch.context)
    call.optimizer.pointee.beginStep()
  }

  /// Which of the optimiser's tensors number `index` of the layer's trained ones is: frozen ones are none of them.
  private func tensor(_ index: Int) -> Int {
    var tensor = call.firstTensor
    for before in 0..<index where !parameters.trained(before).isFrozen { tensor += 1 }
    return tensor
  }

  /// Applies the gradient of one expert, and leaves 0 for the next one.
  func step(_ group: ExpertGroup, expert: Int) {
    let begun = context.profile.begin()
    defer { if begun != 0 { context.profile.end(begun, .optimizer, backward: false, Work()) } }
    let parameters = parameters.of(group)
    var grad = scratch.gradient
    for raw in Parameters.Role.ofMatrices {
      guard let role = Parameters.Role(rawValue: raw), let parameter = parameters[role] else { continue }
      let size = parameter.count / group.experts
      if !parameter.isFrozen {
        call.optimizer.pointee.step(
          tensor(parameters.trainedIndex(role)), expert * size..<(expert + 1) * size, data: parameter.data!,
          grad: grad, clip: call.clip, clears: true)
      }
      grad += size
    }
  }

  /// Steps everything else, whose gradients are complete by now.
  mutating func finish() {
    begin()
    let begun = context.profile.begin()
    defer { if begun != 0 { context.profile.end(begun, .optimizer, backward: false, Work()) } }
    for index in 0..<parameters.trainedCount {
      let parameter = parameters.trained(index)
      if parameter.isOfMatrices || parameter.isFrozen { continue }
      call.optimizer.pointee.step(
        tensor(index), 0..<parameter.count, data: parameter.data!, grad: parameter.grad!, clip: call.clip,
        clears: false)
    }
  }
}

/// What a caller gives to a backward that steps: an optimiser of exactly the trained parameters of a layer or model, in their
/// order, and what gradients are multiplied by.
public struct FusedCall {
  public let optimizer: OptimizerPointer
  let clip: Float
  /// Of a model's layer: which of the optimiser's tensors is its first one.
  private(set) var firstTensor = 0
  /// Whether the step is a model's, which has begun it: its layers' contexts ask nobody whether to go on.
  private(set) var goesOn = false

  public init(_ optimizer: OptimizerPointer, clip: Float) {
    self.optimizer = optimizer
    self.clip = clip
  }

  func goingOn(withTensor first: Int) -> FusedCall {
    var own = self
    (own.firstTensor, own.goesOn) = (first, true)
    return own
  }
}

struct FusedScratch {
  let gradient: UnsafeMutablePointer<Float>  // [count] of one expert, tensor after tensor
  let count: Int  // of the largest expert
  let context: ContextPointer  // memory for one in which nobody is asked whether to go on

  init(_ arena: inout Arena, _ c: Configuration) {
    var most = 0
    for index in 0..<c.groupCount { most = max(most, c.groups[index].elementsOfOne) }
    count = most
    gradient = arena.take(Float.self, count)
    context = arena.take(Context.self, 1)
  }
}
