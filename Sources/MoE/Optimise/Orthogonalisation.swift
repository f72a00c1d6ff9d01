import CShims

/// The orthogonal matrix nearest to a given one, roughly: five steps of Newton and Schulz's iteration, which bring all
/// singular values near 1 [Jordan et al. 2024]. With X = U / (|U| + 1e-7), on its side if U has more rows than columns,
///
///     A = X X^T;   B = b A + c A A;   X = a X + B X
///
/// The first two products are symmetric, bit for bit: an element's chain is that of its mirror image with factors swapped. So
/// half of them is computed, and the other half is its image.
///
/// One matrix at a time, by all threads. Products are this library's own, whoever computes the context's others, so that
/// there is nothing to fail half-way, and each element is one chain of fused multiply-adds in ascending order, whatever the number
/// of threads.
struct Orthogonalisation {
  private let matrix: Optimizer.Matrix
  private let m: Int  // the smaller dimension
  private let n: Int
  private let matmul: Matmul
  /// [count], the matrix that is given, in its own order.
  let given: UnsafeMutablePointer<Float>
  private let x: UnsafeMutablePointer<Float>  // [m,n]
  private let gram: UnsafeMutablePointer<Float>  // [m,m]
  private let polynomial: UnsafeMutablePointer<Float>  // [m,m]
  private let lanes: UnsafeMutablePointer<Float>  // [lanes, laneSize]
  private let laneSize: Int

  private static var steps: Int { 5 }
  private static var a: Float { 3.4445 }
  private static var b: Float { -4.7750 }
  private static var c: Float { 2.0315 }

  init(_ arena: inout Arena, _ matrix: Optimizer.Matrix, in context: ContextPointer) {
    self.matrix = matrix
    m = min(matrix.rows, matrix.columns)
    n = max(matrix.rows, matrix.columns)
    let kernels = context.kernels
    matmul = Matmul(backend: kernels.pointee.has_tiles != 0 ? .native : .reference, kernels: kernels)
    given = arena.take(Float.self, m, n)
    x = arena.take(Float.self, m, n)
    gram = arena.take(Float.self, m, m)
    polynomial = arena.take(Float.self, m, m)
    laneSize = matmul.scratch(tokens: Product.largestSide, width: n)
    lanes = arena.take(Float.self, context.lanes, laneSize)
  }

  /// The result lies in memory of its own, [rows, columns]; `given` is written over.
  func run(in context: ContextPointer) -> UnsafePointer<Float> {
    let norm = sumOfSquares(given, matrix.count, in: context).squareRoot()
    let onItsSide = matrix.rows > matrix.columns
    place(given, in: x, rows: m, columns: n, transposed: onItsSide, Float(1 / (norm + 1e-7)), context)
    var (now, next) = (x, given)
    for _ in 0..<Self.steps {
      multiply(now, nil, depth: n, into: gram, columns: m, .init(factor: 1, plus: 0), context)
      multiply(
        gram, nil, depth: m, into: polynomial, columns: m, .init(factor: Self.c, plus: Self.b, gram), context)
      multiply(
        polynomial, now, depth: m, into: next, columns: n, .init(factor: 1, plus: Self.a, now), context)
      swap(&now, &next)
    }
    if !onItsSide { return UnsafePointer(now) }
    place(now, in: next, rows: n, columns: m, transposed: true, 1, context)
    return UnsafePointer(next)
  }

  private func place(
    _ from: UnsafePointer<Float>, in to: UnsafeMutablePointer<Float>, rows: Int, columns: Int, transposed: Bool,
    _ scale: Float, _ context: ContextPointer
  ) {
    let job = Placing(from: from, to: to, rows: rows, columns: columns, transposed: transposed, scale: scale)
    context.runToTheEnd(job.items, job)
  }

  private func multiply(
    _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>?, depth: Int,
    into c: UnsafeMutablePointer<Float>, columns: Int, _ combination: Combination, _ context: ContextPointer
  ) {
    let job = Product(
      matmul: matmul, a: a, b: b, depth: depth, c: c, rows: m, columns: columns, combination: combination,
      lanes: lanes, laneSize: laneSize, laneCount: context.lanes)
    context.runToTheEnd(job.items, job)
  }
}

/// factor * product + plus * other
private struct Combination {
  let factor: Float
  let plus: Float
  let other: UnsafePointer<Float>?

  init(factor: Float, plus: Float, _ other: UnsafePointer<Float>? = nil) {
    self.factor = factor
    self.plus = plus
    self.other = other
  }
}

/// C = combination of A B, or of A A^T, which is symmetric: then so is what it is combined with. A square of C for each item.
private struct Product: Job {
  let matmul: Matmul
  let a: UnsafePointer<Float>  // [rows, depth]
  let b: UnsafePointer<Float>?  // [depth, columns]; nil is A^T
  let depth: Int
  let c: UnsafeMutablePointer<Float>  // [rows, columns]
  let rows: Int
  let columns: Int
  let combination: Combination
  let lanes: UnsafeMutablePointer<Float>  // [lanes, laneSize]
  let laneSize: Int
  private let side: Int  // of the squares
  let items: Int

  static var largestSide: Int { rowsPerBlock }

  /// Packing a panel costs as much as a few rows, so squares are large; several threads want several of them, and of a
  /// symmetric product those on the diagonal are computed whole.
  /// Of more than ten parameters: those of a product and of the threads' scratch, each kept as it is.
  init(
    matmul: Matmul, a: UnsafePointer<Float>, b: UnsafePointer<Float>?, depth: Int, c: UnsafeMutablePointer<Float>,
    rows: Int, columns: Int, combination: Combination, lanes: UnsafeMutablePointer<Float>, laneSize: Int,
    laneCount: Int
  ) {
    func squares(_ side: Int) -> Int { ((rows + side - 1) / side) * ((columns + side - 1) / side) }
    let small = Self.largestSide / 2
    side = b != nil && squares(Self.largestSide) >= 4 * laneCount ? Self.largestSide : small
    let down = (rows + side - 1) / side
    items = b == nil ? down * (down + 1) / 2 : squares(side)
    (self.matmul, self.a, self.b, self.depth, self.c) = (matmul, a, b, depth, c)
    (self.rows, self.columns, self.combination) = (rows, columns, combination)
    (self.lanes, self.laneSize) = (lanes, laneSize)
  }

  /// Where a square begins: row after row or, of a symmetric product, row after row up to the diagonal.
  private func place(_ item: Int) -> (row: Int, column: Int) {
    if b != nil {
      let across = (columns + side - 1) / side
      return (item / across * side, item % across * side)
    }
    var (row, column) = (0, item)
    while column > row {
      row += 1
      column -= row
    }
    return (row * side, column * side)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (row, column) = place(item)
    let (height, width) = (min(side, rows - row), min(side, columns - column))
    let square = c + row * columns + column
    for i in 0..<height { (square + i * columns).update(repeating: 0, count: width) }
    let scratch = lanes + lane.pointee.index * laneSize
    let own = a + row * depth
    if let b {
      matmul.addAB(height, width, depth, own, lda: depth, b + column, ldb: columns, square, ldc: columns, scratch)
    } else {
      matmul.addABt(
        height, width, depth, own, lda: depth, a + column * depth, ldb: depth, square, ldc: columns, scratch)
    }
    if let other = combination.other {
      let kernels = matmul.kernels
      for i in 0..<height {
        let out = square + i * columns
        kernels.pointee.scale(Int64(width), combination.factor, out, out)
        kernels.pointee.add_scaled(Int64(width), combination.plus, other + (row + i) * columns + column, out)
      }
    }
    if b == nil && row != column { mirror(row, column, height, width) }
  }

  /// The square's image on the other side of the diagonal.
  private func mirror(_ row: Int, _ column: Int, _ height: Int, _ width: Int) {
    let block = 16  // whose lines stay in the cache
    for first in stride(from: row, to: row + height, by: block) {
      for j in column..<column + width {
        for i in first..<min(first + block, row + height) { c[j * columns + i] = c[i * columns + j] }
      }
    }
  }
}

/// to = scale * from, or its transpose; some rows of `to` for each item.
private struct Placing: Job {
  let from: UnsafePointer<Float>
  let to: UnsafeMutablePointer<Float>  // [rows, columns]
  let rows: Int
  let columns: Int
  let transposed: Bool
  let scale: Float

  private static var rowsAtOnce: Int { 64 }
  var items: Int { (rows + Self.rowsAtOnce - 1) / Self.rowsAtOnce }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let some = item * Self.rowsAtOnce..<min((item + 1) * Self.rowsAtOnce, rows)
    if transposed {
      for j in 0..<columns { for i in some { to[i * columns + j] = scale * from[j * rows + i] } }
    } else {
      for i in some { for j in 0..<columns { to[i * columns + j] = scale * from[i * columns + j] } }
    }
  }
}
