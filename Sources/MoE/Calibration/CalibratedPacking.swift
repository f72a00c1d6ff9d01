import CShims

/// What the packing of matrices that read the same takes from a calibration, and the memory for it.
struct CalibratedPacking {
  private let squares: InputSquares
  private let scratch: UnsafeMutablePointer<UInt8>  // [lanes, scratchBytes]
  private let scratchBytes: Int
  /// [inputs, inputs] Of all experts, or of the one that each lane packs.
  private let factors: UnsafeMutablePointer<Float>?
  /// Whether an expert's matrix is packed as a whole by one thread, which has products of its own.
  let isByExpert: Bool

  init(_ arena: inout Arena, _ squares: InputSquares, lanes: Int) {
    var one = Arena()
    _ = WeightedScratch(&one, depth: squares.inputs)
    (self.squares, scratchBytes) = (squares, one.bytes)
    scratch = arena.take(UInt8.self, lanes, one.bytes)
    let isByExpert = squares.products != nil && !squares.productsAreShared && squares.experts > 1
    self.isByExpert = isByExpert
    let count = isByExpert ? lanes : 1
    factors = squares.products == nil ? nil : arena.take(Float.self, count * squares.inputs, squares.inputs)
  }

  /// Before the first item: what all of them read.
  func begin(_ kernels: UnsafePointer<moei_kernels>) {
    if !isByExpert { makeFactor(expert: 0, in: factors, kernels) }
  }

  /// For a thread that packs rows of an expert's matrix.
  func weighted(expert: Int, lane: Int, _ kernels: UnsafePointer<moei_kernels>) -> WeightedScratch {
    var arena = Arena(UnsafeMutableRawPointer(scratch + lane * scratchBytes))
    var own = WeightedScratch(&arena, depth: squares.inputs)
    Importance(squares: squares, expert: expert).fill(own.importance)
    let size = squares.inputs * squares.inputs
    let factor = factors.map { isByExpert ? $0 + lane * size : $0 }
    if isByExpert { makeFactor(expert: expert, in: factor, kernels) }
    // Its first number is 0 where there is none.
    if let factor, factor[0] > 0 { own.factor = UnsafePointer(factor) }
    return own
  }

  private func makeFactor(
    expert: Int, in factor: UnsafeMutablePointer<Float>?, _ kernels: UnsafePointer<moei_kernels>
  ) {
    guard let factor, let products = squares.product(expert) else { return }
    factor[0] = 0
    let tokens = squares.productTokens(expert)
    if tokens < Int64(InputSquares.fewestTokens) { return }
    ErrorFactor(products: products, tokens: tokens, inputs: squares.inputs, kernels: kernels).make(factor)
  }
}

/// R of  S + l I = R R^T, R upper triangular [inputs, inputs], whose lower half is not written: S the sums of x x^T, which say how
/// an error of one weight is made up for by others. An error d of a row of weights costs
///     d S d^T = |d R|^2,  and column j of d R has the errors of weights 0 ... j alone.
/// l is a hundredth of the mean of S's diagonal, and more where tokens are few.
private struct ErrorFactor {
  let products: UnsafePointer<Float>  // [inputs, inputs]
  let tokens: Int64
  let inputs: Int
  let kernels: UnsafePointer<moei_kernels>

  /// Without a first number above 0 where sums are not finite, or all 0.
  func make(_ r: UnsafeMutablePointer<Float>) {
    let n = inputs
    var sum = 0.0
    for i in 0..<n { sum += Double(products[i * n + i]) }
    let scale = Float(Double(n) / sum)
    guard sum > 0 && scale > 0 && scale.isFinite else { return }
    let damping = Float(Importance.floor * (1 + Double(n) / Double(tokens)))
    for j in stride(from: n - 1, through: 0, by: -1) {
      let (rowOfJ, rest) = (r + j * n, n - 1 - j)
      let square =
        products[j * n + j] * scale + damping - kernels.pointee.dot(Int64(rest), rowOfJ + j + 1, rowOfJ + j + 1)
      let own = max(square, damping).squareRoot()
      for i in 0..<j {
        let row = r + i * n
        row[j] = (products[i * n + j] * scale - kernels.pointee.dot(Int64(rest), row + j + 1, rowOfJ + j + 1)) / own
      }
      rowOfJ[j] = own
    }
    if !r[0].isFinite { r[0] = 0 }
  }
}
