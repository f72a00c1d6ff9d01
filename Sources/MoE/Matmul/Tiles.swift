import CShims

// How our own kernels see a matrix with one row for each token: cut into tiles of some rows and chunks of 32 columns,
// [tile][chunk][row][32]. A product's result has this form, and so the next product reads it as it is.

/// Columns are filled up to a multiple of this.
let chunkWidth = 32

func chunks(of width: Int) -> Int { (width + chunkWidth - 1) / chunkWidth }
func padded(_ width: Int) -> Int { chunks(of: width) * chunkWidth }

/// What the chains of one chunk begin with: the bias, or 0; 0 beyond the matrix's edge.
func fillStart(_ chunk: UnsafeMutablePointer<Float>, with bias: UnsafePointer<Float>?, _ columns: Int) {
  chunk.update(repeating: 0, count: chunkWidth)
  if let bias { chunk.update(from: bias, count: columns) }
}

/// Rows cut into as few tiles as their greatest height allows, all about equally high: a tile of few rows would leave the
/// multipliers waiting. Heights are multiples of a unit, but for the last tile's.
struct Tiles {
  let rows: Int
  let count: Int
  private let unit: Int
  private let height: Int  // in units
  private let tall: Int  // so many tiles have `height` units, the others one fewer

  init(rows: Int, maxHeight: Int, unit: Int) {
    self.rows = rows
    self.unit = unit
    let units = (rows + unit - 1) / unit
    let most = maxHeight / unit
    count = (units + most - 1) / most
    height = count == 0 ? 0 : (units + count - 1) / count
    tall = units - count * (height - 1)
  }

  /// First row of a tile; of `count`, the end.
  func start(_ tile: Int) -> Int { min(rows, (tile * height - max(0, tile - tall)) * unit) }
  func rows(_ tile: Int) -> Range<Int> { start(tile)..<start(tile + 1) }
  func rows(_ tiles: Range<Int>) -> Range<Int> { start(tiles.lowerBound)..<start(tiles.upperBound) }

  /// As the kernels take them.
  func part(_ tiles: Range<Int>) -> moei_tiles {
    moei_tiles(
      count: Int32(tiles.count), tall: Int32(min(max(tall - tiles.lowerBound, 0), tiles.count)), height: Int32(height))
  }
}

/// Rows of floats, `stride` apart.
public struct StridedRows {
  let start: UnsafePointer<Float>
  let stride: Int

  public init(_ start: UnsafePointer<Float>, stride: Int) {
    self.start = start
    self.stride = stride
  }
}

/// Rows of floats that are written.
public struct StridedTargets {
  let start: UnsafeMutablePointer<Float>
  let stride: Int

  public init(_ start: UnsafeMutablePointer<Float>, stride: Int) {
    self.start = start
    self.stride = stride
  }
}

/// One chunk of 32 columns of tiled rows: a factor of sums over these rows.
struct TileChunk<Element> {
  let start: UnsafePointer<Element>  // of the tiles
  let width: Int  // elements of a row
  let chunk: Int

  init(_ start: UnsafePointer<Element>, width: Int, _ chunk: Int) {
    self.start = start
    self.width = width
    self.chunk = chunk
  }
}
