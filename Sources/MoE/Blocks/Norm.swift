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

  /// Rows that one item of work normalises, a multiple of 4: few enough that a second job finds them in the cache (InTurn).
  var rowsPerItem: Int { max(4, min(32, (1 << 14) / hidden / 4 * 4)) }
  func items(_ rows: Int) -> Int { (rows + rowsPerItem - 1) / rowsPerItem }
  func rows(ofItem item: Int, of rows: Int) -> Range<Int> { item * rowsPerItem..<min((item + 1) * rowsPerItem, rows) }
}

public struct NormForward: Job {
  let norm: Norm
  let kernels: UnsafePointer<moei_kernels>
  let rows: Int
  let x: PlacedRows
  let weight: UnsafePointer<Float>  // [H]
  let bias: UnsafePointer<Float>?  // [H]
  let y: UnsafeMutablePointer<Float>  // may be x
  let yPlaces: RowPlaces
  let statistics: UnsafeMutablePointer<Float>?  // [rows,2] mean, 1 / root

  init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: PlacedRows, weight: UnsafePointer<Float>,
    bias: UnsafePointer<Float>?, y: UnsafeMutablePointer<Float>, yPlaces: RowPlaces,
    statistics: UnsafeMutablePointer<Float>?
  ) {
    self.norm = norm
    kernels = context.kernels
    self.rows = rows
    self.x = x
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
      norm, context: context, rows: rows, x: PlacedRows(x, places), weight: weight, bias: bias, y: y, yPlaces: places,
      statistics: statistics)
  }

  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.norm) { () throws(Fault) in try context.run(norm.items(rows), self) }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let h = Int64(norm.hidden)
    for row in norm.rows(ofItem: item, of: rows) {
      let x = x[row]
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
  let x: PlacedRows
  let weight: UnsafePointer<Float>  // [H]
  let statistics: UnsafePointer<Float>  // [rows,2]
  let dy: PlacedRows
  let dx: UnsafeMutablePointer<Float>?  // may be dy, and has its places
  let dWeight: UnsafeMutablePointer<Float>?  // [H]
  let dBias: UnsafeMutablePointer<Float>?  // [H]

  init(
    _ norm: Norm, context: ContextPointer, rows: Int, x: PlacedRows, weight: UnsafePointer<Float>,
    statistics: UnsafePointer<Float>, dy: PlacedRows, dx: UnsafeMutablePointer<Float>?,
    dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>?
  ) {
    self.norm = norm
    kernels = context.kernels
    self.rows = rows
    self.x = x
    self.weight = weight
    self.statistics = statistics
    self.dy = dy
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
      norm, context: context, rows: rows, x: PlacedRows(x, places), weight: weight, statistics: statistics,
      dy: PlacedRows(dy, places), dx: dx, dWeight: dWeight, dBias: dBias)
  }

  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.norm, backward: true) { () throws(Fault) in
      try runParameters(in: context)
      if let dx { try context.run(norm.items(rows), NormInputGradient(norm: self, dx: dx)) }
    }
  }

  /// `following`: over the same items, where dx is wanted.
  func run<Following: Job>(then following: Following, in context: ContextPointer) throws(Fault) {
    try context.measure(.norm, backward: true) { () throws(Fault) in
      try runParameters(in: context)
      guard let dx else { return }
      try context.run(norm.items(rows), InTurn(first: NormInputGradient(norm: self, dx: dx), second: following))
    }
  }

  /// First, since dx may take the place of dy.
  private func runParameters(in context: ContextPointer) throws(Fault) {
    if let dWeight { try context.run(columnItems(norm.hidden), NormWeightGradient(norm: self, dWeight: dWeight)) }
    if let dBias { try ColumnSums(kernels: kernels, x: dy, rows: rows, sums: dBias).run(in: context) }
  }
}

private struct NormInputGradient: Job {
  let norm: NormBackward
  let dx: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let kernels = norm.kernels
    let h = norm.norm.hidden
    for row in norm.norm.rows(ofItem: item, of: norm.rows) {
      let (mean, scale) = (norm.statistics[2 * row], norm.statistics[2 * row + 1])
      let (x, dy, place) = (norm.x[row], norm.dy[row], norm.dy.places.place(row))
      var sums: (Float, Float) = (0, 0)  // of g, which RMS norms do not want, and of g n
      if norm.norm.kind == .layer {
        kernels.pointee.normalize_sums(Int64(h), mean, scale, x, norm.weight, dy, &sums.0, &sums.1)
      } else {
        kernels.pointee.normalize_sums(Int64(h), mean, scale, x, norm.weight, dy, nil, &sums.1)
      }
      kernels.pointee.normalize_backward(
        Int64(h), mean, scale, x, norm.weight, dy, sums.0 / Float(h), sums.1 / Float(h), dx + place)
    }
  }
}

private struct NormWeightGradient: Job {
  let norm: NormBackward
  let dWeight: UnsafeMutablePointer<Float>

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = columns(ofItem: item, in: norm.norm.hidden)
    let (xPlaces, dyPlaces) = (norm.x.places, norm.dy.places)
    let inLine = max(1, min(xPlaces.inLine(of: norm.rows), dyPlaces.inLine(of: norm.rows)))
    for row in stride(from: 0, to: norm.rows, by: inLine) {
      norm.kernels.pointee.add_normalized(
        Int64(min(inLine, norm.rows - row)), Int64(columns.count), norm.statistics + 2 * row,
        norm.x[row] + columns.lowerBound, Int64(xPlaces.distanceInLine), norm.dy[row] + columns.lowerBound,
        Int64(dyPlaces.distanceInLine), dWeight + columns.lowerBound)
    }
  }
}
