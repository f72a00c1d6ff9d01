import CShims

// One matrix of tokens times some panels of weights. A panel is 32 columns of the second factor, packed [k][32] piece by
// piece of the contraction index. A piece stays in the second-level cache while all tiles of tokens meet it; meanwhile the
// next one comes from memory.

/// Panels of blocks that a single row multiplies at once, so that one's memory comes while the other is computed.
let panelsAtOnce = 2

extension Precision {
  /// Contraction indices of one piece: 64 KiB.
  static var panelDepth: Int { 512 * unit }
  /// Contraction indices that a single tile fetches packed panels ahead by: 8 KiB.
  fileprivate static var fetchedAhead: Int { 8192 / (chunkWidth * MemoryLayout<Element>.size) }
  /// Elements that a packed piece takes.
  static var pieceSize: Int { panelDepth * chunkWidth }
}

/// Where a panel comes from.
struct WeightPanel<P: Precision> {
  private enum Form {
    /// The matrix's rows are the panel's columns (W^T), or its rows (W).
    case matrix(StoredMatrix, transposed: Bool, columns: Int)
    /// Packed already.
    case packed(UnsafePointer<P.Element>)
    /// Packed in blocks.
    case blocks(UnsafeRawPointer, PanelCode)
    /// The same matrix, whose rows the contraction runs over.
    case across(BlockColumns)
  }

  private let form: Form

  /// `weights`: the matrix from element (0, 0) of the panel on; `columns`: up to 32.
  init(_ weights: StoredMatrix, transposed: Bool, columns: Int) {
    // Of a matrix and its transpose in the same memory, the one whose rows have the smaller gaps.
    let turns = weights.rowStride < weights.columnStride
    form = .matrix(turns ? weights.turned : weights, transposed: transposed != turns, columns: columns)
  }

  init(packed panel: UnsafePointer<P.Element>) {
    form = .packed(panel)
  }

  init(blocks panel: UnsafeRawPointer, _ code: PanelCode) {
    form = .blocks(panel, code)
  }

  init(across blocks: BlockColumns) {
    form = .across(blocks)
  }

  /// The rows of W that few rows of A are multiplied by where they lie; nil for other forms and at the matrix's edge, and
  /// where they are no elements of tiles or have gaps.
  fileprivate var rows: (start: UnsafePointer<P.Element>, stride: Int)? {
    guard case .matrix(let weights, transposed: true, columns: chunkWidth) = form, weights.type == P.weights,
      weights.columnStride == 1
    else { return nil }
    return (P.elements(of: weights), weights.rowStride)
  }

  /// Where it lies packed already.
  fileprivate var packed: UnsafePointer<P.Element>? {
    if case .packed(let panel) = form { return panel }
    return nil
  }

  /// Where it lies in blocks.
  fileprivate var blocks: (start: UnsafeRawPointer, code: PanelCode)? {
    if case .blocks(let panel, let code) = form { return (panel, code) }
    return nil
  }

  /// Whether so many rows are multiplied by blocks as they lie.
  fileprivate func staysBlocks(rows: Int, _ kernels: UnsafePointer<moei_kernels>) -> Bool {
    blocks.map { P.multiplies($0.code, rows: rows, kernels) } ?? false
  }

  /// The piece from p on, [depth][32] or blocks, where it lies or in `buffer`. So many rows will be multiplied by it.
  fileprivate func piece(
    _ p: Int, _ depth: Int, rows: Int, buffer: UnsafeMutablePointer<P.Element>, _ kernels: UnsafePointer<moei_kernels>
  ) -> PanelPiece<P> {
    switch form {
    case .packed(let panel): return .elements(panel + p * chunkWidth)
    case .matrix:
      pack(p, depth, into: buffer, kernels)
      return .elements(UnsafePointer(buffer))
    case .blocks(let panel, let code):
      let blocks = panel + code.bytes(p)
      if P.multiplies(code, rows: rows, kernels) { return .blocks(blocks, code) }
      P.decode(depth, blocks, code, into: buffer, kernels)
      return .elements(UnsafePointer(buffer))
    case .across(let blocks):
      P.decode(p..<p + depth, of: blocks, into: buffer, kernels)
      return .elements(UnsafePointer(buffer))
    }
  }

  /// Part number `part` of `count` of its first `depth` contraction indices, where they are blocks.
  fileprivate func part(_ part: Int, of count: Int, _ depth: Int) -> UnsafeRawBufferPointer? {
    guard let (panel, code) = blocks else { return nil }
    let bytes = code.bytes(depth)
    let first = bytes * part / count
    return UnsafeRawBufferPointer(start: panel + first, count: bytes * (part + 1) / count - first)
  }

  /// The piece from p on of a matrix.
  func pack(
    _ p: Int, _ depth: Int, into panel: UnsafeMutablePointer<P.Element>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    guard case .matrix(let weights, let transposed, let columns) = form else { return }
    P.pack(
      columns, depth, transposed ? weights.from(column: p) : weights.from(row: p), transposed: transposed, into: panel,
      kernels)
  }

  /// The cache lines of the piece at p, for the first two tiles that are multiplied before it is needed: one half each of
  /// 32 rows of panelDepth elements, of panelDepth rows of 32, or of as many packed rows; the only tile takes both. A tile takes
  /// 512 steps. Elements of half a tile's are all in the first half. Of blocks those of as many steps as a tile takes now.
  fileprivate func ahead(_ p: Int, half: Int, isOnly: Bool, tileSteps: Int) -> moei_ahead? {
    let line = 64
    let steps = chunkWidth / P.unit  // of a chunk
    switch form {
    case .matrix(let weights, let transposed, _):
      let isWhole = weights.type == P.weights
      if half > 0 && !isWhole || weights.columnStride != 1 { return nil }
      let (start, row) = (weights.address, weights.type.bytes(weights.rowStride))
      if transposed {
        // A step is a row, a chunk is a line; the other half is the rows' second half, or the other rows.
        let other = steps == chunkWidth ? P.panelDepth / chunkWidth * line : steps * row
        return ahead(
          start, weights.type.bytes(p) + half * other, row: row, chunk: line, beside: isOnly && isWhole ? other : 0)
      }
      let perRow = chunkWidth * MemoryLayout<P.Element>.size / line  // lines
      let other = perRow == 2 ? line : P.panelDepth / 2 * row
      return ahead(
        start, p * row + half * other, row: row, chunk: steps * row, beside: isOnly && isWhole ? other : 0)
    case .packed(let panel):
      // Every other line.
      let first = p * chunkWidth * MemoryLayout<P.Element>.size
      return ahead(
        UnsafeRawPointer(panel), first + half * line, row: 2 * line, chunk: steps * 2 * line, beside: isOnly ? line : 0)
    case .blocks(let panel, let code):
      // A line for each step, by the second tile behind those of the first.
      let (lines, bytes) = (tileSteps * line, code.bytes(P.panelDepth))
      if half * lines >= bytes { return nil }
      return ahead(
        panel, code.bytes(p) + half * lines, row: line, chunk: steps * line, beside: isOnly && lines < bytes ? lines : 0
      )
    case .across: return nil
    }
  }

  private func ahead(_ start: UnsafeRawPointer, _ first: Int, row: Int, chunk: Int, beside: Int) -> moei_ahead {
    moei_ahead(first: start + first, row: Int64(row), chunk: Int64(chunk), beside: Int64(beside))
  }
}

/// Some contraction indices of a panel.
private enum PanelPiece<P: Precision> {
  case elements(UnsafePointer<P.Element>)
  case blocks(UnsafeRawPointer, PanelCode)
}

/// C = start + A B for some tiles of rows and up to `panelsAtOnce` panels of B.
struct PanelProducts<P: Precision> {
  let kernels: UnsafePointer<moei_kernels>
  let tiles: Tiles
  let range: Range<Int>  // of tiles
  let depth: Int  // k
  let packed: UnsafeMutablePointer<P.Element>  // [pieceSize]

  typealias Source = UnsafePointer<P.Element>
  typealias Floats = UnsafePointer<Float>

  /// `a`: a tile's rows of A, in chunks. `c`: a tile's rows of C for one panel. `start`: 32 floats that every row of C
  /// begins with, or nil to go on from what is there. `next`: the panel that will come after these.
  func run(
    _ panels: Int, _ panel: (Int) -> WeightPanel<P>, next: () -> WeightPanel<P>?, a: (Range<Int>) -> Source,
    start: (Int) -> Floats?, c: (Int, Range<Int>) -> UnsafeMutablePointer<Float>, cStride: Int,
    columns: (Int) -> Int = { _ in chunkWidth }
  ) {
    if range.isEmpty { return }
    var done = 0
    if range.count == 1 {
      done =
        multiplyPacked(panels, panel, a: a, start: start, c: c, cStride: cStride, columns: columns)
        ?? multiplyBlocks(panels, panel, a: a, start: start, c: c, cStride: cStride, columns: columns)
        ?? multiplyFewRows(panels, panel, next: next, a: a, start: start, c: c, cStride: cStride)
      if done == depth { return }
    }
    let rows = tiles.rows(range.lowerBound).count * range.count
    for i in 0..<panels {
      let (own, following) = (panel(i), i + 1 < panels ? panel(i + 1) : next())
      let columns = columns(i)
      // Blocks that are multiplied as they lie are read from end to end: nothing is packed, so that nothing has to stay in a cache.
      let staysBlocks = own.staysBlocks(rows: rows, kernels)
      let step = staysBlocks ? max(1, depth) : P.panelDepth
      for p in stride(from: done, to: depth, by: step) {
        let depth = min(step, self.depth - p)
        let last = p + step >= self.depth
        let piece = own.piece(p, depth, rows: rows, buffer: packed, kernels)
        let coming = last ? following : own
        for tile in range {
          let rows = tiles.rows(tile)
          let half = tile - range.lowerBound
          let (here, out) = (a(rows) + p * rows.count, c(i, rows))
          let common = p == 0 ? start(i) : nil
          if common != nil { fetch(out, rows: rows.count, cStride) }
          let first = beginning(common, out, cStride)
          let targets = StridedTargets(out, stride: cStride)
          switch piece {
          case .blocks(let blocks, let code):
            let nothing = UnsafeRawBufferPointer(start: blocks, count: 0)
            var one = moei_code_panel(
              blocks, first, targets, columns, next: coming?.part(half, of: range.count, depth) ?? nothing)
            P.product(rows.count, depth, here, code, &one, count: 1, kernels)
          case .elements(let elements):
            let ahead =
              half < 2
              ? coming?.ahead(
                last ? 0 : p + step, half: half, isOnly: range.count == 1, tileSteps: P.filledUp(depth) / P.unit) : nil
            P.product(
              rows.count, columns, depth, here, elements, start: first, targets,
              ahead ?? tokensAhead(i == 0 ? tile + 1 : range.upperBound, p, a), kernels)
          }
        }
      }
    }
  }

  /// What a tile's rows of C begin with: 32 floats that they have in common, or what is there.
  private func beginning(_ common: Floats?, _ c: UnsafeMutablePointer<Float>, _ stride: Int) -> StridedRows {
    StridedRows(common ?? Floats(c), stride: common == nil ? stride : 0)
  }

  /// What is about to be written: its lines come while the sums are computed, instead of making the stores wait.
  private func fetch(_ c: UnsafeMutablePointer<Float>, rows: Int, _ stride: Int) {
    for row in 0..<rows {
      moei_prefetch_to_write(c + row * stride)
      moei_prefetch_to_write(c + row * stride + chunkWidth / 2)
    }
  }

  /// A single tile meets packed panels once, and reads them from end to end. Returns how many contraction indices are done: all, or nil.
  private func multiplyPacked(
    _ panels: Int, _ panel: (Int) -> WeightPanel<P>, a: (Range<Int>) -> Source, start: (Int) -> Floats?,
    c: (Int, Range<Int>) -> UnsafeMutablePointer<Float>, cStride: Int, columns: (Int) -> Int
  ) -> Int? {
    for i in 0..<panels where panel(i).packed == nil { return nil }
    let rows = tiles.rows(range.lowerBound)
    let isFetched = rows.count > Int(kernels.pointee.rows_unfetched)
    for i in 0..<panels {
      let out = c(i, rows)
      let ahead = isFetched ? panel(i).ahead(P.fetchedAhead, half: 0, isOnly: true, tileSteps: 0) : nil
      P.product(
        rows.count, columns(i), depth, a(rows), panel(i).packed!,
        start: beginning(start(i), out, cStride),
        StridedTargets(out, stride: cStride), ahead ?? nothingAhead, kernels)
    }
    return depth
  }

  /// A single tile multiplies panels of one code together. Returns how many contraction indices are done: all, or nil where they are no
  /// blocks, or are decoded for so many rows.
  private func multiplyBlocks(
    _ panels: Int, _ panel: (Int) -> WeightPanel<P>, a: (Range<Int>) -> Source, start: (Int) -> Floats?,
    c: (Int, Range<Int>) -> UnsafeMutablePointer<Float>, cStride: Int, columns: (Int) -> Int
  ) -> Int? {
    let rows = tiles.rows(range.lowerBound)
    for i in 0..<panels where !panel(i).staysBlocks(rows: rows.count, kernels) { return nil }
    func own(_ i: Int, _ blocks: UnsafeRawPointer) -> moei_code_panel {
      let out = c(i, rows)
      return moei_code_panel(
        blocks, beginning(start(i), out, cStride), StridedTargets(out, stride: cStride), columns(i), next: nil)
    }
    var i = 0
    while i < panels, let (blocks, code) = panel(i).blocks {
      var some = InlineArray<2, moei_code_panel>(repeating: own(i, blocks))  // panelsAtOnce
      var count = 1
      while count < panelsAtOnce, i + count < panels, let (blocks, other) = panel(i + count).blocks, other == code {
        some[count] = own(i + count, blocks)
        count += 1
      }
      withUnsafePointer(to: &some) {
        P.product(
          rows.count, depth, a(rows), code, UnsafeRawPointer($0).assumingMemoryBound(to: moei_code_panel.self),
          count: count, kernels)
      }
      i += count
    }
    return depth
  }

  /// A tile of few rows, whose weights are not worth packing. Returns how many contraction indices are done: whole chunks, or
  /// none.
  private func multiplyFewRows(
    _ panels: Int, _ panel: (Int) -> WeightPanel<P>, next: () -> WeightPanel<P>?, a: (Range<Int>) -> Source,
    start: (Int) -> Floats?, c: (Int, Range<Int>) -> UnsafeMutablePointer<Float>, cStride: Int
  ) -> Int {
    guard depth >= chunkWidth else { return 0 }
    let rows = tiles.rows(range.lowerBound)
    guard rows.count <= P.fewRows(kernels) else { return 0 }
    for i in 0..<panels where panel(i).rows == nil { return 0 }
    let done = depth / chunkWidth * chunkWidth
    for i in 0..<panels {
      let (weights, stride) = panel(i).rows!
      let out = c(i, rows)
      let coming = i + 1 < panels ? panel(i + 1) : next()
      P.productOfFewRows(
        rows.count, done, a(rows), weights, rowStride: stride,
        start: beginning(start(i), out, cStride),
        StridedTargets(out, stride: cStride),
        ComingRows(behind: weights, stride: stride, next: coming?.rows?.start ?? weights), kernels)
    }
    return done
  }

  private var nothingAhead: moei_ahead { moei_ahead(first: packed, row: 0, chunk: 0, beside: 0) }

  /// The cache lines of a tile of A from p on; none at the end.
  private func tokensAhead(_ tile: Int, _ p: Int, _ a: (Range<Int>) -> Source) -> moei_ahead {
    if tile == range.upperBound { return nothingAhead }
    let rows = tiles.rows(tile)
    let line: Int64 = 64
    return moei_ahead(first: a(rows) + p * rows.count, row: line, chunk: line * Int64(chunkWidth / P.unit), beside: 0)
  }
}

extension moei_code_panel {
  fileprivate init(
    _ blocks: UnsafeRawPointer, _ start: StridedRows, _ c: StridedTargets, _ columns: Int, next: UnsafeRawBufferPointer?
  ) {
    self.init(
      blocks: blocks, start: start.start, start_stride: Int64(start.stride), c: c.start, c_stride: Int64(c.stride),
      columns: Int64(columns), next: next?.baseAddress, next_bytes: Int64(next?.count ?? 0))
  }
}

extension Range where Bound == Int {
  /// Cut into runs of at most `size`.
  func forEachRun(of size: Int, _ body: (Range<Int>) -> Void) {
    for start in stride(from: lowerBound, to: upperBound, by: size) {
      body(start..<Swift.min(start + size, upperBound))
    }
  }
}
