import CShims

/// A part of a step: some elements of one tensor.
struct TensorStep {
  let context: ContextPointer
  let shape: Optimizer.Shape
  let group: Optimizer.Group
  let clip: Float  // what gradients are multiplied by
  let elements: Range<Int>
  let data: UnsafeMutableRawPointer  // [count], the whole tensor
  let grad: UnsafeMutablePointer<Float>  // [elements]
  let clears: Bool  // the gradient is 0 afterwards
  let master: UnsafeMutablePointer<Float>?  // [count], where the type has one (Masters.swift)
  let moments: Moments
  let chance: Random  // what values are rounded by that have no master
  let scratch: Arena  // what `takeScratch` takes is there

  /// Some of its elements as a part of their own.
  func of(_ range: Range<Int>) -> TensorStep {
    TensorStep(
      context: context, shape: shape, group: group, clip: clip, elements: range, data: data,
      grad: gradient(from: range.lowerBound),
      clears: clears, master: master, moments: moments, chance: chance,
      scratch: scratch)
  }

  /// Elements one item of work updates.
  private static var stretch: Int { 32_768 }
  /// Elements that stay in the first-level cache between three passes.
  private static var run: Int { 1024 }

  /// Items of work that `elements` are cut into.
  var items: Int { (elements.count + Self.stretch - 1) / Self.stretch }
  func elements(ofItem item: Int) -> Range<Int> {
    let start = elements.lowerBound + item * Self.stretch
    return start..<min(start + Self.stretch, elements.upperBound)
  }

  func gradient(from first: Int) -> UnsafeMutablePointer<Float> { grad + (first - elements.lowerBound) }

  /// Calls `change` for the values of some elements in float32, piece by piece.
  func changeValues(
    _ range: Range<Int>, _ change: (_ values: UnsafeMutablePointer<Float>, _ first: Int, _ count: Int) -> Void
  ) {
    let (type, kernels) = (shape.type, context.kernels)
    if type == .f32 {
      return change(data.assumingMemoryBound(to: Float.self) + range.lowerBound, range.lowerBound, range.count)
    }
    guard let master else { return changeHalves(range, change) }
    for first in stride(from: range.lowerBound, to: range.upperBound, by: Self.run) {
      let count = min(Self.run, range.upperBound - first)
      type.follow(data, first, count, master + first, kernels)
      change(master + first, first, count)
      type.fromFloats(master + first, count, data, first, kernels)
    }
  }
}

extension TensorStep {
  /// Of a bfloat16 tensor without a master: the new values are rounded up or down by chance, so that steps smaller than the type
  /// resolves add up in the mean [Zamirai et al. 2020, arXiv:2010.06192].
  private func changeHalves(
    _ range: Range<Int>, _ change: (_ values: UnsafeMutablePointer<Float>, _ first: Int, _ count: Int) -> Void
  ) {
    let kernels = context.kernels
    let stretch = 256  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(of: Float.self, capacity: stretch) {
      let values = $0.baseAddress!
      for first in stride(from: range.lowerBound, to: range.upperBound, by: stretch) {
        let count = min(stretch, range.upperBound - first)
        shape.type.toFloats(data, first, count, values, kernels)
        change(values, first, count)
        var halves = moei_moments(
          first: data + shape.type.bytes(first), second: data, by_chance: 1, random: chance.numbers,
          tensor: UInt64(moments.tensor), element: UInt64(first))
        kernels.pointee.round_by_chance(Int64(count), values, &halves)
      }
    }
  }
}

/// A rule by which an element depends on no other.
protocol ElementwiseRule: UpdateRule {
  func update(_ piece: ElementwisePiece)
}

/// Some elements with their values in float32.
struct ElementwisePiece {
  let kernels: UnsafePointer<moei_kernels>
  let group: Optimizer.Group
  let clip: Float
  let count: Int
  let data: UnsafeMutablePointer<Float>
  let grad: UnsafePointer<Float>
  let moments: moei_moments
}

extension ElementwiseRule {
  func step(_ part: TensorStep) { part.context.runToTheEnd(part.items, ElementwiseStep(rule: self, part: part)) }
}

private struct ElementwiseStep<Rule: ElementwiseRule>: Job {
  let rule: Rule
  let part: TensorStep

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    part.changeValues(part.elements(ofItem: item)) { values, start, length in
      let grad = part.gradient(from: start)
      rule.update(
        ElementwisePiece(
          kernels: part.context.kernels, group: part.group, clip: part.clip, count: length, data: values, grad: grad,
          moments: part.moments.from(start)))
      if part.clears { grad.update(repeating: 0, count: length) }
    }
  }
}
