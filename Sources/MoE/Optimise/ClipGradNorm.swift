import CShims

/// Scales all gradients by `clipFactor`, norm being taken over all tensors together, and returns the norm.
/// Throws `notFinite(i)`, with nothing scaled, when the gradient of tensor i is not finite.
public func clipGradNorm(
  _ tensorCount: Int, _ tensor: (Int) -> (grad: UnsafeMutablePointer<Float>, count: Int), maxNorm: Double,
  in context: ContextPointer, notFinite: (Int) -> Fault
) throws(Fault) -> Double {
  let norm = try gradNorm(tensorCount, tensor, in: context, notFinite: notFinite)
  let factor = clipFactor(norm: norm, maxNorm: maxNorm)
  for index in 0..<tensorCount {
    let (grad, count) = tensor(index)
    scale(grad, count, by: factor, in: context)
  }
  return norm
}

func scale(_ values: UnsafeMutablePointer<Float>, _ count: Int, by factor: Float, in context: ContextPointer) {
  if factor == 1 { return }
  let stretch = stretchOfSquares(count)
  context.runToTheEnd(
    (count + stretch - 1) / stretch,
    Scale(kernels: context.kernels, values: values, count: count, stretch: stretch, factor: factor))
}

/// What gradients of this norm are multiplied by.
func clipFactor(norm: Double, maxNorm: Double) -> Float { Float(min(1, maxNorm / (norm + 1e-6))) }

/// The 2-norm over all tensors together. Throws `notFinite(i)` when the gradient of tensor i is not finite.
func gradNorm(
  _ tensorCount: Int, _ tensor: (Int) -> (grad: UnsafeMutablePointer<Float>, count: Int), in context: ContextPointer,
  notFinite: (Int) -> Fault
) throws(Fault) -> Double {
  var squares = 0.0
  for index in 0..<tensorCount {
    let (grad, count) = tensor(index)
    let sum = sumOfSquares(grad, count, in: context)
    if !sum.isFinite { throw notFinite(index) }
    squares += sum
  }
  return squares.squareRoot()
}

func sumOfSquares(_ values: UnsafePointer<Float>, _ count: Int, in context: ContextPointer) -> Double {
  let stretch = stretchOfSquares(count)
  let items = (count + stretch - 1) / stretch
  return withUnsafeTemporaryAllocation(of: Double.self, capacity: mostItems) { parts in
    context.runToTheEnd(
      items,
      SumOfSquares(
        kernels: context.kernels, values: values, count: count, stretch: stretch, parts: parts.baseAddress!))
    var sum = 0.0
    for item in 0..<items { sum += parts[item] }
    return sum
  }
}

/// So many partial sums fit the stack: clipping needs no memory that could be refused.
private let mostItems = 128

/// Elements one item of work reads. It depends on the count alone, as the order of the sum does.
func stretchOfSquares(_ count: Int) -> Int { max(65_536, (count + mostItems - 1) / mostItems) }

/// Elements whose squares are summed in float32.
let runOfSquares = 4096

/// The sum of squares of a run: float32 in a fixed tree.
func squares(_ values: UnsafePointer<Float>, _ count: Int, _ kernels: UnsafePointer<moei_kernels>) -> Double {
  let squares = kernels.pointee.dot(Int64(count), values, values)
  // Squares that leave float32's range, upwards or downwards, are summed again in double.
  if squares.isFinite && squares > 1e-27 { return Double(squares) }
  var sum = 0.0
  for i in 0..<count { sum += Double(values[i]) * Double(values[i]) }
  return sum
}

/// parts[item] = sum of squares of one stretch: float32 in a fixed tree over short runs, double from run to run.
private struct SumOfSquares: Job {
  let kernels: UnsafePointer<moei_kernels>
  let values: UnsafePointer<Float>
  let count: Int
  let stretch: Int
  let parts: UnsafeMutablePointer<Double>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let end = min((item + 1) * stretch, count)
    var sum = 0.0
    for start in Swift.stride(from: item * stretch, to: end, by: runOfSquares) {
      sum += squares(values + start, min(runOfSquares, end - start), kernels)
    }
    parts[item] = sum
  }
}

private struct Scale: Job {
  let kernels: UnsafePointer<moei_kernels>
  let values: UnsafeMutablePointer<Float>
  let count: Int
  let stretch: Int
  let factor: Float

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let start = item * stretch
    kernels.pointee.scale(Int64(min(stretch, count - start)), factor, values + start, values + start)
  }
}
