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
  /// What is the same for all elements of a step.
  associatedtype Factors
  func factors(_ part: TensorStep) -> Factors
  func update(_ piece: ElementwisePiece, _ factors: Factors)
}

/// Some elements with their values in float32.
struct ElementwisePiece {
  let kernels: UnsafePointer<moei_kernels>
  let count: Int
  let data: UnsafeMutablePointer<Float>
  let grad: UnsafePointer<Float>
  let moments: moei_moments
}

extension ElementwiseRule {
  func step(_ part: TensorStep) { part.context.runToTheEnd(part.items, ElementwiseStep(rule: self, part: part)) }

  func stepsElements(_ shape: Optimizer.Shape) -> Bool { true }

  func step(_ block: BlockGradient, of part: TensorStep) {
    let factors = factors(part)
    for r in 0..<block.rows {
      let first = block.first + r * block.rowStride
      update(part, first..<first + block.columns, grad: block.sums + r * block.sumsStride, factors)
    }
  }

  /// Updates some elements, of which the gradient begins at `grad`.
  @inline(__always) fileprivate func update(
    _ part: TensorStep, _ elements: Range<Int>, grad: UnsafePointer<Float>, _ factors: Factors
  ) {
    part.changeValues(elements) { values, start, length in
      update(
        ElementwisePiece(
          kernels: part.context.kernels, count: length, data: values, grad: grad + (start - elements.lowerBound),
          moments: part.moments.from(start)), factors)
    }
  }
}

private struct ElementwiseStep<Rule: ElementwiseRule>: Job {
  let rule: Rule
  let part: TensorStep

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let elements = part.elements(ofItem: item)
    let grad = part.gradient(from: elements.lowerBound)
    rule.update(part, elements, grad: grad, rule.factors(part))
    if part.clears { grad.update(repeating: 0, count: elements.count) }
  }
}

extension TensorStep {
  /// What stepping a block reads and writes.
  func places(_ block: BlockGradient, in memory: UnsafeMutablePointer<UnsafeRawPointer>) -> WantedPlaces {
    var places = WantedPlaces(memory)
    for r in 0..<block.rows {
      let first = block.first + r * block.rowStride
      places.append(data + shape.type.bytes(first), bytes: shape.type.bytes(block.columns))
      if let master { places.append(master + first, bytes: block.columns * MemoryLayout<Float>.size) }
      let (own, bytes) = (moments.from(first), moments.type.bytes(block.columns))
      if moments.rows > 0 { places.append(own.first, bytes: bytes) }
      if moments.rows > 1 { places.append(own.second, bytes: bytes) }
    }
    return places
  }
}

/// The gradient of a block of a matrix, [rows, columns], apart from the rest of it.
struct BlockGradient {
  let sums: UnsafePointer<Float>
  let sumsStride: Int
  let rows: Int
  let columns: Int
  let first: Int  // the block's first element, among the tensor's
  let rowStride: Int  // of the tensor
}
