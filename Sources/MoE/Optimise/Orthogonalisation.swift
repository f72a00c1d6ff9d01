import CShims

/// The orthogonal matrix nearest to a given one, roughly: five steps of Newton and Schulz's iteration, which bring all
/// singular values near 1 [Jordan et al. 2024]. With X = U / (|U| + 1e-7), on its side if U has more rows than columns,
///
///     A = X X^T;   B = b A + c A A;   X = a X + B X
///
/// One matrix at a time, by all threads. Products are this library's own, whoever computes the context's others, so that
/// there is nothing to fail half-way and every context has the same bits: each element is one chain of fused
/// multiply-adds in ascending order.
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
    laneSize = matmul.scratch(tokens: Product.side, width: n)
    lanes = arena.take(Float.self, context.lanes, laneSize)
  }

  /// The result lies in memory of its own, [rows, columns]; `given` is written over.
  func run(in context: ContextPointer) -> UnsafePointer<Float> {
    let norm = sumOfSquares(given, matrix.count, in: context).squareRoot()
    let onItsSide = matrix.rows > matrix.columns
    place(given, in: x, rows: m, columns: n, transposed: onItsSide, Float(1 / (norm + 1e-7)), context)
    var (now, next) = (x, given)
    for _ in 0..<Self.steps {
      multiply(now, now, transposed: true, depth: n, into: gram, columns: m, .init(factor: 1, plus: 0), context)
      multiply(
        gram, gram, transposed: true, depth: m, into: polynomial, columns: m, .init(factor: Self.c, plus: Self.b, gram),
        context)
      multiply(
        polynomial, now, transposed: false, depth: m, into: next, columns: n, .init(factor: 1, plus: Self.a, now),
        context)
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
    _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, transposed: Bool, depth: Int,
    into c: UnsafeMutablePointer<Float>, columns: Int, _ combination: Combination, _ context: ContextPointer
  ) {
    let job = Product(
      matmul: matmul, a: a, b: b, transposed: transposed, depth: depth, c: c, rows: m, columns: columns,
      combination: combination, lanes: lanes, laneSize: laneSize)
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

/// C = combination of A B, or A B^T; a square of C for each item.
private struct Product: Job {
  let matmul: Matmul
  let a: UnsafePointer<Float>  // [rows, depth]
  let b: UnsafePointer<Float>  // [depth, columns], or its transpose
  let transposed: Bool
  let depth: Int
  let c: UnsafeMutablePointer<Float>  // [rows, columns]
  let rows: Int
  let columns: Int
  let combination: Combination
  let lanes: UnsafeMutablePointer<Float>  // [lanes, laneSize]
  let laneSize: Int

  /// Of the squares: packing a panel costs as much as a few rows, and several threads want several squares.
  static var side: Int { 128 }

  private var across: Int { (columns + Self.side - 1) / Self.side }
  var items: Int { (rows + Self.side - 1) / Self.side * across }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (row, column) = (item / across * Self.side, item % across * Self.side)
    let (height, width) = (min(Self.side, rows - row), min(Self.side, columns - column))
    let c = c + row * columns + column
    for i in 0..<height { (c + i * columns).update(repeating: 0, count: width) }
    let scratch = lanes + lane.pointee.index * laneSize
    let a = a + row * depth
    if transposed {
      matmul.addABt(
        height, width, depth, a, lda: depth, b + column * depth, ldb: depth, c, ldc: columns, scratch)
    } else {
      matmul.addAB(height, width, depth, a, lda: depth, b + column, ldb: columns, c, ldc: columns, scratch)
    }
    guard let other = combination.other else { return }
    let kernels = matmul.kernels
    for i in 0..<height {
      let out = c + i * columns
      kernels.pointee.scale(Int64(width), combination.factor, out, out)
      kernels.pointee.add_scaled(Int64(width), combination.plus, other + (row + i) * columns + column, out)
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
