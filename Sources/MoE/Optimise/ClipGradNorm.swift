import CShims

/// Scales all gradients by min(1, maxNorm / (norm + 1e-6)), norm being taken over all tensors together, and returns it.
/// Throws `notFinite(i)`, with nothing scaled, when the gradient of tensor i is not finite.
public func clipGradNorm(
  _ tensorCount: Int, _ tensor: (Int) -> (grad: UnsafeMutablePointer<Float>, count: Int), maxNorm: Double,
  in context: ContextPointer, notFinite: (Int) -> Fault
) throws(Fault) -> Double {
  var longest = 0
  for index in 0..<tensorCount { longest = max(longest, tensor(index).count) }
  var squares = 0.0
  var measure = Arena()
  _ = measure.take(Double.self, stretches(longest))
  try context.withScratch(try measure.total()) { (memory) throws(Fault) in
    var arena = Arena(memory)
    let parts = arena.take(Double.self, stretches(longest))
    for index in 0..<tensorCount {
      let (grad, count) = tensor(index)
      context.runToTheEnd(
        stretches(count), SumOfSquares(kernels: context.kernels, values: grad, count: count, parts: parts))
      var sum = 0.0
      for part in 0..<stretches(count) { sum += parts[part] }
      if !sum.isFinite { throw notFinite(index) }
      squares += sum
    }
    let factor = Float(min(1, maxNorm / (squares.squareRoot() + 1e-6)))
    if factor == 1 { return }
    for index in 0..<tensorCount {
      let (grad, count) = tensor(index)
      context.runToTheEnd(
        stretches(count), Scale(kernels: context.kernels, values: grad, count: count, factor: factor))
    }
  }
  return squares.squareRoot()
}

/// Elements one item of work reads. Fixed: the order of the sum depends on it.
private let stretch = 65_536
private func stretches(_ count: Int) -> Int { (count + stretch - 1) / stretch }

/// parts[item] = sum of squares of one stretch: float32 in a fixed tree over short runs, double from run to run.
private struct SumOfSquares: Job {
  let kernels: UnsafePointer<moei_kernels>
  let values: UnsafePointer<Float>
  let count: Int
  let parts: UnsafeMutablePointer<Double>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let run = 4096
    let end = min((item + 1) * stretch, count)
    var sum = 0.0
    for start in Swift.stride(from: item * stretch, to: end, by: run) {
      sum += Double(kernels.pointee.dot(Int64(min(run, end - start)), values + start, values + start))
    }
    parts[item] = sum
  }
}

private struct Scale: Job {
  let kernels: UnsafePointer<moei_kernels>
  let values: UnsafeMutablePointer<Float>
  let count: Int
  let factor: Float

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let start = item * stretch
    kernels.pointee.scale(Int64(min(stretch, count - start)), factor, values + start, values + start)
  }
}
