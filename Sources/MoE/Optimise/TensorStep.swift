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
  let scratch: Arena  // what `takeScratch` takes is there

  /// Some of its elements as a part of their own.
  func of(_ range: Range<Int>) -> TensorStep {
    TensorStep(
      context: context, shape: shape, group: group, clip: clip, elements: range, data: data,
      grad: gradient(from: range.lowerBound),
      clears: clears, master: master, moments: moments, scratch: scratch)
  }

  /// Elements one item of work updates.
  private static var stretch: Int { 32_768 }
  /// Elements that stay in the first-level cache between a master's three passes.
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
    guard let master else {
      return change(data.assumingMemoryBound(to: Float.self) + range.lowerBound, range.lowerBound, range.count)
    }
    let (type, kernels) = (shape.type, context.kernels)
    for first in stride(from: range.lowerBound, to: range.upperBound, by: Self.run) {
      let count = min(Self.run, range.upperBound - first)
      type.follow(data, first, count, master + first, kernels)
      change(master + first, first, count)
      type.fromFloats(master + first, count, data, first, kernels)
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
