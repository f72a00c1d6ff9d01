import CShims

/// Products with one matrix through the seam of row-major products: OpenBLAS, or the plain reference. All three are cut
/// into the same blocks for any number of threads, since OpenBLAS's bits depend on them.
struct PlainLinear {
  let shape: LinearShape
  private let factors: UnsafeMutablePointer<Float>  // [lanes, 2, block, block], of other numbers than float32

  init(_ arena: inout Arena, _ shape: LinearShape, context: ContextPointer) {
    self.shape = shape
    let copies = shape.weights != .f32 || shape.panels != nil
    factors = arena.take(Float.self, copies ? context.lanes * 2 * rowsPerBlock : 0, rowsPerBlock)
  }

  /// An array of tokens: as it is, or rounded.
  private func tokens(_ rows: StridedRows) -> PlainFactor {
    PlainFactor(matrix: StoredMatrix(rows.start, .f32, rowStride: rows.stride), rounds: shape.precision)
  }

  private func matrix(_ weight: UnsafeRawPointer) -> PlainFactor {
    PlainFactor(
      matrix: StoredMatrix(weight, shape.weights, rowStride: shape.inputs), panels: shape.panels, rounds: .f32)
  }

  func forward(
    _ tokens: Int, _ x: StridedRows, _ weight: UnsafeRawPointer, _ bias: UnsafePointer<Float>?, _ y: StridedTargets,
    in context: ContextPointer
  ) throws(Fault) {
    try PlainProduct(
      kind: .forward, matmul: context.matmul, factors: factors, a: self.tokens(x), b: matrix(weight), bias: bias,
      c: y, rows: tokens, columns: shape.outputs, depth: shape.inputs
    ).run(in: context)
  }

  // MARK: backward

  func backward(
    _ tokens: Int, _ x: StridedRows, _ weight: UnsafeRawPointer, _ dy: StridedRows, _ dx: StridedTargets?,
    _ dWeight: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    if let dx {
      try PlainProduct(
        kind: .input, matmul: context.matmul, factors: factors, a: self.tokens(dy), b: matrix(weight), bias: nil,
        c: dx, rows: tokens, columns: shape.inputs, depth: shape.outputs
      ).run(in: context)
    }
    if let dWeight {
      try PlainProduct(
        kind: .weight, matmul: context.matmul, factors: factors, a: self.tokens(dy), b: self.tokens(x), bias: nil,
        c: StridedTargets(dWeight, stride: shape.inputs), rows: shape.outputs, columns: shape.inputs, depth: tokens
      ).run(in: context)
    }
  }
}

/// A row-major matrix that a product reads.
private struct PlainFactor {
  let matrix: StoredMatrix
  /// Blocks that are decoded in its place.
  var panels: PanelMatrixPointer?
  let rounds: PrecisionKind  // tokens; weights are as they are

  /// Some rows and columns, at most a block of each, as floats: where they lie, or in `copy`.
  func part(
    _ rows: Range<Int>, _ columns: Range<Int>, copy: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) -> (start: UnsafePointer<Float>, stride: Int) {
    if let panels {
      panels.pointee.decode(rows, columns, into: copy, stride: rowsPerBlock, kernels)
      return (UnsafePointer(copy), rowsPerBlock)
    }
    let stride = matrix.rowStride
    if matrix.type == .f32 && rounds == .f32 {
      return (F32.elements(of: matrix.from(rows.lowerBound * stride + columns.lowerBound)), stride)
    }
    for row in rows {
      let to = copy + (row - rows.lowerBound) * rowsPerBlock
      matrix.type.toFloats(matrix.data, row * stride + columns.lowerBound, columns.count, to, kernels)
      rounds.round(to, columns.count, kernels)
    }
    return (UnsafePointer(copy), rowsPerBlock)
  }
}

/// One of the three products. An item is one block of rows and columns of C.
private struct PlainProduct: Job {
  enum Kind: Int32 {
    case forward  // C = bias + A B^T
    case input  // C = A B
    case weight  // C += A^T B
  }

  let kind: Kind
  let matmul: Matmul
  let factors: UnsafeMutablePointer<Float>
  let a: PlainFactor
  let b: PlainFactor
  let bias: UnsafePointer<Float>?
  let c: StridedTargets
  let rows: Int
  let columns: Int
  let depth: Int

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: rows) * blocks(of: columns), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let block = (down: item / blocks(of: columns), across: item % blocks(of: columns))
    let rows = MoE.rows(ofBlock: block.down, in: rows)
    let columns = MoE.rows(ofBlock: block.across, in: columns)
    let (m, n) = (rows.count, columns.count)
    let out = c.start + rows.lowerBound * c.stride + columns.lowerBound
    if kind != .weight {
      for row in 0..<m {
        if let bias {
          (out + row * c.stride).update(from: bias + columns.lowerBound, count: n)
        } else {
          (out + row * c.stride).update(repeating: 0, count: n)
        }
      }
    }
    let size = rowsPerBlock * rowsPerBlock
    let aCopy = factors + lane.pointee.index * 2 * size
    let bCopy = aCopy + size
    for step in 0..<blocks(of: depth) {
      if lane.pointee.shouldStop() { return }
      let range = MoE.rows(ofBlock: step, in: depth)
      let k = range.count
      let a =
        kind == .weight
        ? a.part(range, rows, copy: aCopy, matmul.kernels) : a.part(rows, range, copy: aCopy, matmul.kernels)
      let b =
        kind == .forward
        ? b.part(columns, range, copy: bCopy, matmul.kernels) : b.part(range, columns, copy: bCopy, matmul.kernels)
      switch kind {
      case .forward: matmul.addABt(m, n, k, a.start, lda: a.stride, b.start, ldb: b.stride, out, ldc: c.stride)
      case .input: matmul.addAB(m, n, k, a.start, lda: a.stride, b.start, ldb: b.stride, out, ldc: c.stride)
      case .weight: matmul.addAtB(m, n, k, a.start, lda: a.stride, b.start, ldb: b.stride, out, ldc: c.stride)
      }
    }
  }
}
