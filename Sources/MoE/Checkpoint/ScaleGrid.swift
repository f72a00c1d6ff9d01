/// How scales share out a matrix: so many rows and columns have one, and there are `groups` along the columns.
struct ScaleGrid {
  var rows: Int
  var columns: Int
  var groups: Int

  init(rows: Int, columns: Int, groups: Int) { (self.rows, self.columns, self.groups) = (rows, columns, groups) }

  /// Of scales for a matrix [rows, columns]. `block`: what is likely where several sizes would do; 0: nothing is. `isSaid`: config.json
  /// has it.
  init(
    _ scales: StoredTensor, _ rows: Int, _ columns: Int, _ block: (rows: Int, columns: Int), isSaid: Bool = false,
    of weights: StoredTensor
  ) throws(Fault) {
    try Self.requireType(scales)
    let shape = scales.shape
    // A vector is one scale for each row, or for all.
    let (down, along) = shape.rank == 2 ? (shape[0], shape[1]) : (shape.rank == 1 ? shape[0] : 1, 1)
    guard rows > 0, columns > 0, shape.rank <= 2, let ownRows = Self.size(rows, down, block.rows, isSaid),
      let ownColumns = Self.size(columns, along, block.columns, isSaid)
    else {
      throw .invalid(
        "\(scales.name): \(shape) does not share out \(weights.name) of \(rows) by \(columns) weights")
    }
    (self.rows, self.columns, groups) = (ownRows, ownColumns, along)
  }

  static func requireType(_ scales: StoredTensor) throws(Fault) {
    switch scales.type {
    case .f32, .bf16, .f16, .f8E4M3, .f8E8M0, .u8: break
    default: throw .invalid("\(scales.name): \(scales.typeName) is not what scales are written in")
    }
  }

  /// How many of `all` each of `parts` has.
  private static func size(_ all: Int, _ parts: Int, _ likely: Int, _ isSaid: Bool) -> Int? {
    if parts < 1 || parts > all { return nil }
    if likely > 0 && (all - 1) / likely + 1 == parts { return likely }
    return all % parts == 0 && !(likely > 0 && isSaid) ? all / parts : nil
  }
}

extension QuantisedMatrix {
  init(
    scheme: Scheme, _ rows: Int, _ columns: Int, bits: Int, _ grid: ScaleGrid, _ numbers: StoredTensor,
    _ scales: StoredTensor
  ) {
    (self.scheme, self.rows, self.columns, self.bits) = (scheme, rows, columns, bits)
    (blockRows, blockColumns, groups) = (grid.rows, grid.columns, grid.groups)
    (self.numbers, self.scales) = (Part(numbers), Part(scales))
    (zeros, order, divisor, factor) = (nil, nil, nil, nil)
  }
}

extension ErrorText.StringInterpolation {
  mutating func appendInterpolation(_ shape: StoredShape) {
    appendLiteral("[")
    for dimension in 0..<shape.rank {
      if dimension > 0 { appendLiteral(", ") }
      appendInterpolation(shape[dimension])
    }
    appendLiteral("]")
  }
}
