import CShims

/// Batch normalisation of what the gate reads [Ioffe and Szegedy 2015], as torch.nn.BatchNorm1d:
///     n = (x - mean) / sqrt(variance + epsilon),   out = n * weight + bias
/// with mean and biased variance over the call's tokens in training, and the running ones in evaluation. Sums over tokens
/// run in token order, in double, some features for each item.
struct BatchNorm: RouteStage {
  let work: RouteWork
  let plan: Exploration.BatchNorm

  var training: Bool { work.draws.training }

  /// Features of one item.
  static var width: Int { 64 }
  var items: Int { (c.hidden + Self.width - 1) / Self.width }
  func features(_ item: Int) -> Range<Int> { item * Self.width..<min((item + 1) * Self.width, c.hidden) }

  var mean: UnsafeMutablePointer<Float> { routing.norm }  // [H]
  var variance: UnsafeMutablePointer<Float> { routing.norm + c.hidden }  // [H] unbiased, of the call's tokens
  var inverse: UnsafeMutablePointer<Float> { routing.norm + 2 * c.hidden }  // [H] 1 / sqrt(variance + epsilon)

  /// Statistics of `rows` [T,H], or the running ones.
  func measure(_ rows: UnsafePointer<Float>, in context: ContextPointer) throws(Fault) {
    if training && routing.validCount.pointee > 0 {
      try context.run(items, MeasureFeatures(norm: self, rows: rows))
    } else {
      for f in 0..<c.hidden {
        mean[f] = parameters.data(.runningMean)![f]
        inverse[f] = 1 / (parameters.data(.runningVariance)![f] + plan.epsilon).squareRoot()
      }
    }
  }

  // MARK: backward

  /// d [T,H] becomes the gradient of `rows`, which were normalised.
  func backward(
    _ d: UnsafeMutablePointer<Float>, _ rows: UnsafePointer<Float>, in context: ContextPointer
  ) throws(Fault) {
    try context.run(items, DifferentiateFeatures(norm: self, rows: rows, d: d))
  }
}

private struct MeasureFeatures: Job {
  let norm: BatchNorm
  let rows: UnsafePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (routing, h) = (norm.routing, norm.c.hidden)
    let count = Double(routing.validCount.pointee)
    for f in norm.features(item) {
      var (sum, squares) = (0.0, 0.0)
      for t in 0..<routing.tokens where routing.isValid(t) { sum += Double(rows[t * h + f]) }
      let mean = sum / count
      for t in 0..<routing.tokens where routing.isValid(t) {
        let difference = Double(rows[t * h + f]) - mean
        squares += difference * difference
      }
      let variance = squares / count
      norm.mean[f] = Float(mean)
      norm.inverse[f] = Float(1 / (variance + Double(norm.plan.epsilon)).squareRoot())
      norm.variance[f] = Float(squares / max(count - 1, 1))
    }
  }
}

struct NormalizeRows: Job {
  let norm: BatchNorm
  let rows: UnsafeMutablePointer<Float>

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (weight, bias) = (norm.parameters.data(.normWeight)!, norm.parameters.data(.normBias)!)
    for t in MoE.rows(ofBlock: block, in: norm.routing.tokens) {
      let row = rows + t * norm.c.hidden
      for f in 0..<norm.c.hidden { row[f] = (row[f] - norm.mean[f]) * norm.inverse[f] * weight[f] + bias[f] }
    }
  }
}

/// With n normalised and g = d * weight:  in training  dx = (g - mean(g) - n mean(g n)) / deviation,  else g / deviation.
private struct DifferentiateFeatures: Job {
  let norm: BatchNorm
  let rows: UnsafePointer<Float>
  let d: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (routing, h) = (norm.routing, norm.c.hidden)
    let count = Double(max(routing.validCount.pointee, 1))
    for f in norm.features(item) {
      let (mean, inverse) = (norm.mean[f], norm.inverse[f])
      let weight = norm.parameters.data(.normWeight)![f]
      var (sum, products) = (0.0, 0.0)
      for t in 0..<routing.tokens where routing.isRouted(t) {
        sum += Double(d[t * h + f])
        products += Double(d[t * h + f]) * Double((rows[t * h + f] - mean) * inverse)
      }
      if let grad = norm.parameters.grad(.normBias) { grad[f] += Float(sum) }
      if let grad = norm.parameters.grad(.normWeight) { grad[f] += Float(products) }
      let (meanGradient, meanProduct) = norm.training ? (Float(sum / count), Float(products / count)) : (0, 0)
      for t in 0..<routing.tokens where routing.isRouted(t) {
        // The means are not padding's.
        let n = (rows[t * h + f] - mean) * inverse
        let ofMeans = routing.isValid(t) ? meanGradient + n * meanProduct : 0
        d[t * h + f] = (d[t * h + f] - ofMeans) * inverse * weight
      }
    }
  }
}
