import CShims

/// What one matrix read over some text, or matrices that read the same: how large each of their inputs was, and where there is
/// memory for it how they went together.
/// Sums of squares are in double, products in float32, tokens ascending, one chain for each number: the same bits for threads and
/// chunks, and for calls in the same order.
struct InputSquares {
  let inputs: Int
  let experts: Int  // 1 of a matrix that all tokens are multiplied by
  let sums: UnsafeMutablePointer<Double>  // [experts + 1, inputs] behind the experts' own those of all together
  let tokens: UnsafeMutablePointer<Int64>  // [experts + 1] that reached it
  /// [experts, inputs, inputs] sums of x_i x_j; [1, inputs, inputs] of what all of a layer's experts read.
  var products: UnsafeMutablePointer<Float>?
  /// Of these others, the tokens.
  var sharedTokens: UnsafeMutablePointer<Int64>?

  /// An expert that fewer tokens reached is packed by what all experts of its layer read.
  static var fewestTokens: Int { 32 }

  var elements: Int { (experts + 1) * inputs }

  func clear() {
    sums.initialize(repeating: 0, count: elements)
    tokens.initialize(repeating: 0, count: experts + 1)
    if !productsAreShared { products?.initialize(repeating: 0, count: experts * inputs * inputs) }
  }

  var productsAreShared: Bool { sharedTokens != nil }
  func product(_ expert: Int) -> UnsafeMutablePointer<Float>? {
    products.map { productsAreShared ? $0 : $0 + expert * inputs * inputs }
  }
  func productTokens(_ expert: Int) -> Int64 { sharedTokens?[0] ?? tokens[expert] }

  /// After calls: what stands behind the experts.
  func addUp() {
    let all = sums + experts * inputs
    all.update(repeating: 0, count: inputs)
    tokens[experts] = 0
    for e in 0..<experts {
      for i in 0..<inputs { all[i] += sums[e * inputs + i] }
      tokens[experts] += tokens[e]
    }
  }

  func hasFew(_ expert: Int) -> Bool { tokens[expert] < Int64(Self.fewestTokens) }

  // MARK: adding

  /// The squares of some inputs of a row, times a factor.
  func add(_ row: UnsafePointer<Float>, times factor: Float = 1, to expert: Int, _ columns: Range<Int>) {
    let own = sums + expert * inputs
    for i in columns {
      let value = Double(row[i] * factor)
      own[i] += value * value
    }
  }

  /// Columns of an item of work, of which each row has `items`.
  fileprivate static var columnsPerItem: Int { 256 }
  fileprivate var items: Int { (inputs + Self.columnsPerItem - 1) / Self.columnsPerItem }
  fileprivate func columns(_ item: Int) -> Range<Int> {
    item * Self.columnsPerItem..<min(inputs, (item + 1) * Self.columnsPerItem)
  }

  /// Rows of tokens that all are multiplied by the matrix, but for padding.
  func add(
    _ rows: StridedRows, _ count: Int, valid: UnsafePointer<UInt8>?, in context: ContextPointer
  ) throws(Fault) {
    let job = TokenSquares(squares: self, rows: rows, count: count, valid: valid)
    try context.run(items, job)
    // Real tokens that stand one behind the other.
    var first = 0
    while first < count {
      var end = first
      while end < count && job.isReal(end) { end += 1 }
      try addProducts(
        StridedRows(rows.start + first * rows.stride, stride: rows.stride), end - first, to: 0, in: context)
      tokens[0] += Int64(end - first)
      first = end + 1
    }
  }

  /// x^T x is the gradient of a matrix, dy^T x, where dy is x.
  func addProducts(_ rows: StridedRows, _ count: Int, to expert: Int, in context: ContextPointer) throws(Fault) {
    guard !productsAreShared, count > 0, let product = product(expert) else { return }
    try LinearBackward.call(
      LinearShape(tokens: count, inputs: inputs, outputs: inputs, weights: .f32), x: rows, weight: product, dy: rows,
      dx: nil, dWeight: product, dBias: nil, in: context)
  }
}

/// An item is some columns.
private struct TokenSquares: Job {
  let squares: InputSquares
  let rows: StridedRows
  let count: Int
  let valid: UnsafePointer<UInt8>?  // [count]

  func isReal(_ token: Int) -> Bool { valid.map { $0[token] != 0 } ?? true }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = squares.columns(item)
    for t in 0..<count where isReal(t) {
      squares.add(rows.start + t * rows.stride, to: 0, columns)
    }
  }
}

// MARK: experts

/// Of one group of experts: what gate and up read, where there is any, and what down reads.
struct GroupSquares {
  let inner: InputSquares?
  let down: InputSquares
}

extension GroupWork {
  /// The rows of x that the group's experts read.
  func noteRows(in context: ContextPointer) throws(Fault) {
    guard let squares = squares?.inner else { return }
    try context.run(dispatch.experts.count * squares.items, GatheredSquares(squares: squares, work: self))
    count(in: squares)
  }

  /// The tokens of those whose work is done.
  func count(in squares: InputSquares) {
    for e in dispatch.experts { squares.tokens[e] += Int64(dispatch.count(ofExpert: e)) }
  }
}

/// An item is some columns of one expert's rows of x.
private struct GatheredSquares: Job {
  let squares: InputSquares
  let work: GroupWork

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (expert, columns) = (
      work.dispatch.experts.lowerBound + item / squares.items, squares.columns(item % squares.items)
    )
    let rows = work.dispatch.rows(ofExpert: expert)
    let tokens = work.dispatch.tokens(from: rows.lowerBound)
    let weights = work.c.weightOnInput ? work.dispatch.weights(from: rows.lowerBound) : nil
    for row in 0..<rows.count {
      squares.add(work.x + Int(tokens[row]) * work.c.hidden, times: weights?[row] ?? 1, to: expert, columns)
    }
  }
}

extension TiledInner {
  /// The activations that the second step will read.
  func noteActivations(in context: ContextPointer) throws(Fault) {
    guard let squares = work.squares?.down else { return }
    let (width, experts) = (c.intermediate, dispatch.experts)
    try context.withScratch({ $0.take(Float.self, dispatch.most, width) }) { (rows) throws(Fault) in
      let job = ActivationSquares(inner: self, squares: squares, rows: rows)
      try context.run(experts.count * chunks(of: width), job)
      for e in experts {
        try squares.addProducts(
          StridedRows(job.rows(ofExpert: e), stride: width), dispatch.count(ofExpert: e), to: e, in: context)
      }
    }
    work.count(in: squares)
  }
}

/// An item is 32 columns of one expert's activations, which are put in rows.
private struct ActivationSquares<P: Precision>: Job {
  let inner: TiledInner<P>
  let squares: InputSquares
  let rows: UnsafeMutablePointer<Float>  // [rows of the group or run, I]

  func rows(ofExpert e: Int) -> UnsafeMutablePointer<Float> {
    let dispatch = inner.dispatch
    return rows + (dispatch.rows(ofExpert: e).lowerBound - dispatch.first - dispatch.rowsBefore) * inner.c.intermediate
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let width = inner.c.intermediate
    let (number, chunk) = item.quotientAndRemainder(dividingBy: chunks(of: width))
    let expert = inner.dispatch.experts.lowerBound + number
    let columns = chunk * chunkWidth..<min(width, (chunk + 1) * chunkWidth)
    let piece = ExpertPiece(ofAll: expert, inner.dispatch, inner.kernels, unit: P.unit)
    let out = rows(ofExpert: expert)
    var memory = InlineArray<32, Float>(repeating: 0)
    withUnsafeMutablePointer(to: &memory) {
      let beside = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for tile in piece.range {
        let tileRows = piece.tiles.rows(tile)
        let start = inner.activations + piece.place(chunk, tileRows, width: padded(width))
        for row in 0..<tileRows.count {
          let own = start + row * chunkWidth
          let floats = P.workplace(own, or: beside)
          P.load(chunkWidth, UnsafePointer(own), into: floats, inner.kernels)
          let target = out + (tileRows.lowerBound + row) * width
          (target + columns.lowerBound).update(from: floats, count: columns.count)
          squares.add(UnsafePointer(target), to: expert, columns)
        }
      }
    }
  }
}
