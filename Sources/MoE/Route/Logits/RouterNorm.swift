import CShims

/// The gate's own RMS norm, of each token by itself (Gemma 4):
///     r = x / sqrt(mean of x^2 + epsilon) * weight * scale
/// weight [H] is trained, or 1. Sums over features are in the kernels' fixed tree, those over tokens in token order.
public struct RouterNorm {
  /// What a layer says of it.
  public struct Options {
    public var hasWeight: Bool
    public var scale: Float
    public var epsilon: Double

    public init(hasWeight: Bool, scale: Float, epsilon: Double) {
      self.hasWeight = hasWeight
      self.scale = scale
      self.epsilon = epsilon
    }
  }

  fileprivate let hidden: Int  // H
  fileprivate let tokens: Int
  fileprivate let options: Options
  fileprivate let kernels: UnsafePointer<moei_kernels>
  fileprivate let weight: UnsafePointer<Float>  // [H]
  private let ones: UnsafeMutablePointer<Float>?  // [H] where no weight is trained
  fileprivate let grad: UnsafeMutablePointer<Float>?  // [H]

  init?(_ arena: inout Arena, _ work: RouteWork) {
    guard let options = work.c.routerNorm else { return nil }
    hidden = work.c.hidden
    tokens = work.tokens
    self.options = options
    kernels = work.kernels
    ones = options.hasWeight ? nil : arena.take(Float.self, work.c.hidden)
    weight = UnsafePointer(ones ?? work.parameters.data(.normWeight)!)
    grad = options.hasWeight ? work.parameters.grad(.normWeight) : nil
  }

  /// In place.
  func run(_ rows: UnsafeMutablePointer<Float>, in context: ContextPointer) throws(Fault) {
    ones?.initialize(repeating: 1, count: hidden)
    try context.run(blocks(of: tokens), NormalizeTokens(norm: self, rows: rows))
  }

  /// 1 / sqrt(mean of x^2 + epsilon)
  fileprivate func inverse(_ row: UnsafePointer<Float>) -> Float {
    let mean = kernels.pointee.sum_of_squares(Int64(hidden), 0, row) / Float(hidden)
    return Float(1 / (Double(mean) + options.epsilon).squareRoot())
  }

  // MARK: backward

  /// d [T,H] of what the gate read becomes that of `rows` [T,H], which were normalised.
  func backward(
    _ d: UnsafeMutablePointer<Float>, _ rows: UnsafePointer<Float>, in context: ContextPointer
  ) throws(Fault) {
    ones?.initialize(repeating: 1, count: hidden)
    try context.run(blocks(of: tokens), ScaleGradients(norm: self, d: d))
    if let grad { try context.run(columnItems(hidden), WeightGradient(norm: self, rows: rows, d: d, grad: grad)) }
    try context.run(blocks(of: tokens), DifferentiateTokens(norm: self, rows: rows, d: d))
  }
}

private struct NormalizeTokens: Job {
  let norm: RouterNorm
  let rows: UnsafeMutablePointer<Float>

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for t in MoE.rows(ofBlock: block, in: norm.tokens) {
      let row = rows + t * norm.hidden
      norm.kernels.pointee.normalize(
        Int64(norm.hidden), 0, norm.inverse(row) * norm.options.scale, row, norm.weight, nil, row)
    }
  }
}

/// d of r / scale.
private struct ScaleGradients: Job {
  let norm: RouterNorm
  let d: UnsafeMutablePointer<Float>

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = MoE.rows(ofBlock: block, in: norm.tokens)
    for i in range.lowerBound * norm.hidden..<range.upperBound * norm.hidden { d[i] *= norm.options.scale }
  }
}

/// d weight += the sum over tokens of d n, n = x / sqrt(...), some features for each item.
private struct WeightGradient: Job {
  let norm: RouterNorm
  let rows: UnsafePointer<Float>
  let d: UnsafePointer<Float>
  let grad: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = columns(ofItem: item, in: norm.hidden)
    for t in 0..<norm.tokens {
      let row = t * norm.hidden
      let statistics: InlineArray<2, Float> = [0, norm.inverse(rows + row)]
      withUnsafePointer(to: statistics) {
        norm.kernels.pointee.add_normalized(
          1, Int64(columns.count), UnsafeRawPointer($0).assumingMemoryBound(to: Float.self),
          rows + row + columns.lowerBound, 0, d + row + columns.lowerBound, 0, grad + columns.lowerBound)
      }
    }
  }
}

/// With g = d weight:  dx = (g - n mean(g n)) / sqrt(...)
private struct DifferentiateTokens: Job {
  let norm: RouterNorm
  let rows: UnsafePointer<Float>
  let d: UnsafeMutablePointer<Float>

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (kernels, h) = (norm.kernels, Int64(norm.hidden))
    for t in MoE.rows(ofBlock: block, in: norm.tokens) {
      let (row, own) = (rows + t * norm.hidden, d + t * norm.hidden)
      let inverse = norm.inverse(row)
      var sum: Float = 0  // of g n
      kernels.pointee.normalize_sums(h, 0, inverse, row, norm.weight, own, nil, &sum)
      kernels.pointee.normalize_backward(h, 0, inverse, row, norm.weight, own, 0, sum / Float(norm.hidden), own)
    }
  }
}
