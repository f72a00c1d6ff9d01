import CShims

// From a stored matrix to panels, and a sample of its values that tells later whether it is still what was packed.

extension PanelForm {
  /// Panel number `chunk` of a matrix [rows, depth]: 32 outputs. False where the form cannot hold them. `weighted`: scales of
  /// blocks are chosen by the importance of errors that is in there.
  func pack(
    _ matrix: StoredMatrix, rows: Int, depth: Int, chunk: Int, into panel: UnsafeMutableRawPointer,
    _ kernels: UnsafePointer<moei_kernels>, weighted: WeightedScratch? = nil
  ) -> Bool {
    let own = matrix.from(row: chunk * chunkWidth)
    let columns = min(chunkWidth, rows - chunk * chunkWidth)
    switch contents {
    case .blocks(let code, _):
      guard let weighted else { return code.encode(own, rows: columns, depth: depth, into: panel, kernels) }
      return WeightedEncoding(
        code: code, matrix: own, rows: columns, depth: depth, kernels: kernels, scratch: weighted
      ).run(into: panel)
    case .elements(let type):
      type.format.precision.visit(
        PackElements(matrix: own, columns: columns, depth: depth, panel: panel, kernels: kernels))
      return true
    }
  }

  /// Some contraction indices of a panel, from its beginning on, as `rows` rows of floats, `stride` apart. Panels of bfloat16 are not
  /// decoded: contexts that cannot multiply them make none.
  func decode(
    _ panel: UnsafeRawPointer, rows: Int, depth: Int, into matrix: UnsafeMutablePointer<Float>, stride: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    if let code { return code.decode(panel, rows: rows, depth: depth, into: matrix, stride: stride, kernels) }
    let floats = panel.assumingMemoryBound(to: Float.self)
    for row in 0..<rows {
      for p in 0..<depth { matrix[row * stride + p] = floats[p * chunkWidth + row] }
    }
  }

  /// One row of a panel as floats; of elements as above.
  func read(
    row: Int, of panel: UnsafeRawPointer, depth: Int, into floats: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    guard let code else {
      let elements = panel.assumingMemoryBound(to: Float.self)
      for p in 0..<depth { floats[p] = elements[p * chunkWidth + row] }
      return
    }
    var memory = InlineArray<1024, Float>(repeating: 0)
    withUnsafeMutablePointer(to: &memory) {
      let square = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for p in stride(from: 0, to: depth, by: chunkWidth) {
        let count = min(chunkWidth, depth - p)
        code.decode(panel, from: p, count, into: square, kernels)
        for i in 0..<count { floats[p + i] = square[i * chunkWidth + row] }
      }
    }
  }

  /// A packed panel as the products of a precision read it.
  func panel<P: Precision>(_: P.Type, _ place: UnsafeRawPointer) -> WeightPanel<P> {
    if let code { return WeightPanel(blocks: place, code) }
    return WeightPanel(packed: place.assumingMemoryBound(to: P.Element.self))
  }

  /// What becomes of tokens that are multiplied as floats: decoded blocks are float32.
  var precision: PrecisionKind {
    switch contents {
    case .elements(let type): type.format.precision
    case .blocks: .f32
    }
  }
}

/// Piece by piece.
private struct PackElements: PrecisionBody {
  let matrix: StoredMatrix
  let columns: Int
  let depth: Int
  let panel: UnsafeMutableRawPointer
  let kernels: UnsafePointer<moei_kernels>

  func run<P: Precision>(_: P.Type) {
    let own = WeightPanel<P>(matrix, transposed: true, columns: columns)
    let panel = panel.assumingMemoryBound(to: P.Element.self)
    for p in stride(from: 0, to: depth, by: P.panelDepth) {
      own.pack(p, min(P.panelDepth, depth - p), into: panel + p * chunkWidth, kernels)
    }
  }
}

extension StoredMatrix {
  static var sampleCount: Int { 16 }

  /// Where number i of a sample is: elements of a matrix [rows, columns] at equal distances, from the first to the last.
  static func samplePlace(_ i: Int, rows: Int, columns: Int) -> (row: Int, column: Int) {
    let place = i * (rows * columns - 1) / (sampleCount - 1)
    return (place / columns, place % columns)
  }

  private func samplePart(_ i: Int, rows: Int, columns: Int) -> StoredMatrix {
    let place = Self.samplePlace(i, rows: rows, columns: columns)
    return from(row: place.row).from(column: place.column)
  }

  func sample(
    rows: Int, columns: Int, into samples: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    for i in 0..<Self.sampleCount {
      samplePart(i, rows: rows, columns: columns).read(0, 1, into: samples + i, kernels)
    }
  }

  /// What `sample` will read, far apart in memory, comes all at once.
  func fetchSample(rows: Int, columns: Int) {
    for i in 0..<Self.sampleCount { moei_prefetch(samplePart(i, rows: rows, columns: columns).address) }
  }
}
