import CShims

/// Each row of H features normalised by itself.
///   LayerNorm  y = (x - mean) / sqrt(variance + epsilon) * weight + bias    [Ba et al. 2016]
///   RMSNorm    y = x / sqrt(mean of x^2 + epsilon) * weight                 [Zhang and Sennrich 2019]
/// Means are sums in the kernels' fixed trees; the variance is that around the mean, in a second pass.
public struct Norm {
  /// Numbers as in moe_norm.
  public enum Kind: Int32 {
    case layer = 0
    case rms = 1
  }

  let kind: Kind
  let hidden: Int  // H
  let epsilon: Double

  public init(_ kind: Kind, hidden: Int, epsilon: Double) {
    self.kind = kind
    self.hidden = hidden
    self.epsilon = epsilon
  }

  /// Rows one item of work normalises.
  static var rowsPerItem: Int { 32 }
}

public struct NormForward: Job {
  let norm: Norm
  let kernels: UnsafePointer<moei_kernels>
  let rows: Int
  let x: UnsafePointer<Float>
  let xPlaces: RowPlaces
  let weight: UnsafePointer<Float>  // [H]
  let bias: UnsafePointer<Float>?  // [H]
  let y: UnsafeMutablePointer<Float>  // may be x
  let yPlaces: RowPlaces
  let statistics: UnsafeMutablePointer<Float>?  // [rows,2] mean, 1 / root

  init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: UnsafePointer<Float>, xPlaces: RowPlaces,
    weight: UnsafePointer<Float>, bias: UnsafePointer<Float>?, y: UnsafeMutablePointer<Float>, yPlaces: RowPlaces,
    statistics: UnsafeMutablePointer<Float>?
  ) {
    self.norm = norm
    kernels = context.kernels
    self.rows = rows
    self.x = x
    self.xPlaces = xPlaces
    self.weight = weight
    self.bias = bias
    self.y = y
    self.yPlaces = yPlaces
    self.statistics = statistics
  }

  /// Rows without gaps.
  public init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: UnsafePointer<Float>, weight: UnsafePointer<Float>,
    bias: UnsafePointer<Float>?, y: UnsafeMutablePointer<Float>, statistics: UnsafeMutablePointer<Float>?
  ) {
    let places = RowPlaces(width: norm.hidden)
    self.init(
      norm, context: context, rows: rows, x: x, xPlaces: places, weight: weight, bias: bias, y: y, yPlaces: places,
      statistics: statistics)
  }

  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.norm) { () throws(Fault) in
      try context.run((rows + Norm.rowsPerItem - 1) / Norm.rowsPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let h = Int64(norm.hidden)
    for row in item * Norm.rowsPerItem..<min((item + 1) * Norm.rowsPerItem, rows) {
      let x = x + xPlaces.place(row)
      let mean = norm.kind == .layer ? kernels.pointee.sum(h, x) / Float(norm.hidden) : 0
      let variance = kernels.pointee.sum_of_squares(h, mean, x) / Float(norm.hidden)
      let scale = Float(1 / (Double(variance) + norm.epsilon).squareRoot())
      kernels.pointee.normalize(h, mean, scale, x, weight, bias, y + yPlaces.place(row))
      if let statistics { (statistics[2 * row], statistics[2 * row + 1]) = (mean, scale) }
    }
  }
}

// MARK: backward

/// With n = (x - mean) / root and g = dy * weight:
///   dx = (g - mean of g - n * mean of (g n)) / root    (RMS: without the mean of g)
///   dweight += sum over rows of dy n;  dbias += sum over rows of dy
public struct NormBackward {
  let norm: Norm
  let kernels: UnsafePointer<moei_kernels>
  let rows: Int
  let x: UnsafePointer<Float>
  let xPlaces: RowPlaces
  let weight: UnsafePointer<Float>  // [H]
  let statistics: UnsafePointer<Float>  // [rows,2]
  let dy: UnsafePointer<Float>
  let dyPlaces: RowPlaces
  let dx: UnsafeMutablePointer<Float>?  // may be dy, and has its places
  let dWeight: UnsafeMutablePointer<Float>?  // [H]
  let dBias: UnsafeMutablePointer<Float>?  // [H]

  init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: UnsafePointer<Float>, xPlaces: RowPlaces,
    weight: UnsafePointer<Float>, statistics: UnsafePointer<Float>, dy: UnsafePointer<Float>, dyPlaces: RowPlaces,
    dx: UnsafeMutablePointer<Float>?, dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>?
  ) {
    self.norm = norm
    kernels = context.kernels
    self.rows = rows
    self.x = x
    self.xPlaces = xPlaces
    self.weight = weight
    self.statistics = statistics
    self.dy = dy
    self.dyPlaces = dyPlaces
    self.dx = dx
    self.dWeight = dWeight
    self.dBias = dBias
  }

  /// Rows without gaps.
  public init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: UnsafePointer<Float>, weight: UnsafePointer<Float>,
    statistics: UnsafePointer<Float>, dy: UnsafePointer<Float>, dx: UnsafeMutablePointer<Float>?,
    dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>?
  ) {
    let places = RowPlaces(width: norm.hidden)
    self.init(
      norm, context: context, rows: rows, x: x, xPlaces: places, weight: weight, statistics: statistics, dy: dy,
      dyPlaces: places, dx: dx, dWeight: dWeight, dBias: dBias)
  }

  /// The parameters' gradients first, since dx may take the place of dy.
  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.norm, backward: true) { () throws(Fault) in
      if let dWeight { try context.run(columnItems(norm.hidden), NormWeightGradient(norm: self, dWeight: dWeight)) }
      if let dBias {
        try ColumnSums(kernels: kernels, x: dy, rows: rows, places: dyPlaces, sums: dBias).run(in: context)
      }
      if let dx {
        try context.run((rows + Norm.rowsPerItem - 1) / Norm.rowsPerItem, NormInputGradient(norm: self, dx: dx))
      }
    }
  }
}

private struct NormInputGradient: Job {
  let norm: NormBackward
  let dx: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let kernels = norm.kernels
    let h = norm.norm.hidden
    for row in item * Norm.rowsPerItem..<min((item + 1) * Norm.rowsPerItem, norm.rows) {
      let (mean, scale) = (norm.statistics[2 * row], norm.statistics[2 * row + 1])
      let (x, place) = (norm.x + norm.xPlaces.place(row), norm.dyPlaces.place(row))
      var sums: (Float, Float) = (0, 0)  // of g and of g n
      kernels.pointee.normalize_sums(Int64(h), mean, scale, x, norm.weight, norm.dy + place, &sums.0, &sums.1)
      kernels.pointee.normalize_backward(
        Int64(h), mean, scale, x, norm.weight, norm.dy + place, norm.norm.kind == .layer ? sums.0 / Float(h) : 0,
        sums.1 / Float(h), dx + place)
    }
  }
}

private struct NormWeightGradient: Job {
  let norm: NormBackward
  let dWeight: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = columns(ofItem: item, in: norm.norm.hidden)
    for row in 0..<norm.rows {
      norm.kernels.pointee.add_normalized(
        Int64(columns.count), norm.statistics[2 * row], norm.statistics[2 * row + 1],
        norm.x + norm.xPlaces.place(row) + columns.lowerBound,
        norm.dy + norm.dyPlaces.place(row) + columns.lowerBound, dWeight + columns.lowerBound)
    }
  }
}
