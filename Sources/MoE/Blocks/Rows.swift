import CShims

/// Where the rows of an array lie: every token has `perToken` of them side by side, `width` floats each, and the next
/// token's begin `stride` floats further on. So a block may work on a part of wider rows, or on each head by itself.
struct RowPlaces {
  let width: Int
  let perToken: Int
  let stride: Int

  init(width: Int, perToken: Int = 1, stride: Int? = nil) {
    self.width = width
    self.perToken = perToken
    self.stride = stride ?? width * perToken
  }

  /// Of row number `row` among the rows of all tokens.
  func place(_ row: Int) -> Int {
    perToken == 1 ? row * stride : row / perToken * stride + row % perToken * width
  }

  /// So many of `rows` rows follow each other at equal distances: all, or those of a token.
  func inLine(of rows: Int) -> Int { perToken == 1 ? rows : perToken }
  var distanceInLine: Int { perToken == 1 ? stride : width }
}

/// Rows that are read.
struct PlacedRows {
  let start: UnsafePointer<Float>
  let places: RowPlaces

  init(_ start: UnsafePointer<Float>, _ places: RowPlaces) {
    self.start = start
    self.places = places
  }

  subscript(row: Int) -> UnsafePointer<Float> { start + places.place(row) }
}

/// Sums over rows are shared out by columns, so that each runs through the rows in ascending order whoever computes it.
let columnsPerItem = 64

func columnItems(_ width: Int) -> Int { (width + columnsPerItem - 1) / columnsPerItem }

func columns(ofItem item: Int, in width: Int) -> Range<Int> {
  item * columnsPerItem..<min((item + 1) * columnsPerItem, width)
}

/// sums[j] += x[r][j] for the rows r in ascending order.
struct ColumnSums: Job {
  let kernels: UnsafePointer<moei_kernels>
  let x: PlacedRows  // [rows, width]
  let rows: Int
  let sums: UnsafeMutablePointer<Float>  // [width]

  func run(in context: ContextPointer) throws(Fault) { try context.run(columnItems(x.places.width), self) }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = columns(ofItem: item, in: x.places.width)
    for row in 0..<rows {
      kernels.pointee.add(Int64(columns.count), x[row] + columns.lowerBound, sums + columns.lowerBound)
    }
  }
}
