/// A backward that steps an optimiser itself: the gradient of an expert is summed up in scratch, applied and forgotten
/// before the next expert's is begun, so that the gradient of all experts never exists. Steps are elementwise: they give
/// the bits of one step after a whole backward.
struct FusedStep {
  private let optimizer: OptimizerPointer
  private let clip: Float
  private let c: Configuration
  private let parameters: Parameters
  private let scratch: FusedScratch
  private var hasBegun = false
  /// Where the rest of the call runs. A half-made step could not be repaired: once one has begun, nobody is asked here
  /// whether to go on.
  private(set) var context: ContextPointer

  /// Sets gradients to 0 that have memory to stay in: of all but the experts' matrices and their biases.
  init(
    _ call: FusedCall, _ c: Configuration, _ parameters: Parameters, _ scratch: FusedScratch, in context: ContextPointer
  ) {
    self.context = context
    optimizer = call.optimizer
    clip = call.clip
    self.c = c
    self.parameters = parameters
    self.scratch = scratch
    for index in 0..<parameters.trainedCount {
      let parameter = parameters.trained(index)
      if !parameter.isOfMatrices { parameter.grad!.update(repeating: 0, count: parameter.count) }
    }
  }

  /// Before the first expert's step.
  mutating func begin() {
    if hasBegun { return }
    hasBegun = true
    context = context.uncancelled(in: scratch.context)
    scratch.gradient.update(repeating: 0, count: scratch.count)
    optimizer.pointee.beginStep()
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
      optimizer.pointee.step(
        parameters.trainedIndex(role), expert * size..<(expert + 1) * size, data: parameter.data!, grad: grad,
        clip: clip, clears: true)
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
      if parameter.isOfMatrices { continue }
      optimizer.pointee.step(
        index, 0..<parameter.count, data: parameter.data!, grad: parameter.grad!, clip: clip, clears: false)
    }
  }
}

/// What a caller gives to a backward that steps: an optimiser of exactly the layer's trained parameters, in their order,
/// and what gradients are multiplied by.
public struct FusedCall {
  public let optimizer: OptimizerPointer
  let clip: Float

  public init(_ optimizer: OptimizerPointer, clip: Float) {
    self.optimizer = optimizer
    self.clip = clip
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
