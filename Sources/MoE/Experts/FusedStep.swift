/// A backward that steps an optimiser itself, so that the gradient of all experts never exists. Where the rule steps each element
/// by itself, a block of a matrix is stepped by the thread that has summed up its gradient, while that is in the cache
/// (GroupSteps). Where it steps whole matrices (Muon), or tokens come in several chunks, the gradient of an expert is summed up
/// in scratch, applied and forgotten before the next expert's is begun. Either way gives the bits of one step after a whole
/// backward.
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
      parameters.trained(index).zeroGrad(in: context)
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

  /// Whether blocks of a group's matrices can be stepped before the gradients of the others are there.
  func stepsElements(_ group: ExpertGroup) -> Bool {
    let parameters = parameters.of(group)
    var steps = true
    parameters.forEachOfMatrices { role, parameter in
      if parameter.isFrozen { return }
      steps = call.optimizer.pointee.stepsElements(ofTensor: tensor(parameters.trainedIndex(role))) && steps
    }
    return steps
  }

  /// What steps a group's matrices block by block, and is told the gradients of their biases.
  func blocks(of group: ExpertGroup) -> UnsafePointer<GroupSteps> {
    let parameters = parameters.of(group)
    scratch.steps.initialize(to: GroupSteps(parameters, in: scratch.steps, biases: scratch.gradient))
    parameters.forEachOfMatrices { role, parameter in
      if role.isBias || parameter.isFrozen { return }
      scratch.steps.pointee.matrix(role).initialize(
        to: BlockStep(
          optimizer: call.optimizer,
          tensor: call.optimizer.pointee.part(
            tensor(parameters.trainedIndex(role)), 0..<parameter.count, data: parameter.data!, grad: scratch.gradient,
            clip: call.clip, clears: false)))
    }
    return UnsafePointer(scratch.steps)
  }

  /// Applies what the biases of all experts have been told, and leaves 0.
  func stepBiases(_ group: ExpertGroup) {
    let begun = context.profile.begin()
    defer { if begun != 0 { context.profile.end(begun, .optimizer, backward: false, Work()) } }
    let parameters = parameters.of(group)
    parameters.forEachOfMatrices { role, parameter in
      if !role.isBias || parameter.isFrozen { return }
      call.optimizer.pointee.step(
        tensor(parameters.trainedIndex(role)), 0..<parameter.count, data: parameter.data!,
        grad: scratch.steps.pointee.bias(role, group, expert: 0)!, clip: call.clip, clears: true)
    }
  }

  /// Applies the gradient of one expert, and leaves 0 for the next one.
  func step(_ group: ExpertGroup, expert: Int, onlyMatrices: Bool = false) {
    let begun = context.profile.begin()
    defer { if begun != 0 { context.profile.end(begun, .optimizer, backward: false, Work()) } }
    let parameters = parameters.of(group)
    var grad = scratch.gradient
    parameters.forEachOfMatrices { role, parameter in
      let size = parameter.count / group.experts
      if !parameter.isFrozen && !(onlyMatrices && role.isBias) {
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
  let gradient: UnsafeMutablePointer<Float>  // [count] of one expert, tensor after tensor, or of all experts' biases
  let count: Int  // of the largest expert, or group of biases
  let context: ContextPointer  // memory for one in which nobody is asked whether to go on
  let steps: UnsafeMutablePointer<GroupSteps>

  init(_ arena: inout Arena, _ c: Configuration) {
    var most = 0
    for index in 0..<c.groupCount {
      let group = c.groups[index]
      most = max(most, group.elementsOfOne, group.experts * group.biasesOfOne)
    }
    count = most
    gradient = arena.take(Float.self, count)
    context = arena.take(Context.self, 1)
    steps = GroupSteps.take(&arena)
  }
}
