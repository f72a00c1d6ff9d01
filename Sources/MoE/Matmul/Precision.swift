import CShims

/// The precisions there are.
enum PrecisionKind: Int32 {
  case f32, bf16

  /// Does what the body says in this one: the only place where they are told apart.
  func visit<B: PrecisionBody>(_ body: B) throws(B.Failure) -> B.Result {
    switch self {
    case .f32: try body.run(F32.self)
    case .bf16: try body.run(BF16.self)
    }
  }
}

extension PrecisionKind {
  /// Elements with those that they are filled up with.
  func filledUp(_ count: Int) -> Int { visit(FillUp(count: count)) }
}

private struct FillUp: PrecisionBody {
  let count: Int
  func run<P: Precision>(_: P.Type) -> Int { P.filledUp(count) }
}

protocol PrecisionBody {
  associatedtype Failure: Error
  associatedtype Result
  func run<P: Precision>(_: P.Type) throws(Failure) -> Result
}

/// What `productOfFewRows` fetches while it reads 32 rows of weights: `ahead` bytes further on in each row, and behind its end.
struct ComingRows<Element> {
  let ahead: Int64
  let next: UnsafePointer<Element>  // behind the first 16 rows
  let last: UnsafePointer<Element>  // behind the last 16

  /// The rows themselves, half a KiB before they are read, and then 16 at `next`.
  init(behind rows: UnsafePointer<Element>, stride: Int, next: UnsafePointer<Element>) {
    (ahead, self.next, last) = (512, rows + 16 * stride, next)
  }

  /// 32 other rows, for the rows themselves have come.
  init(beside depth: Int, stride: Int, next: UnsafePointer<Element>) {
    (ahead, self.next, last) = (Int64(depth * MemoryLayout<Element>.stride), next, next + 16 * stride)
  }
}

/// What the tiles of tokens, the panels of weights and the tape consist of. Sums are float32 in both.
protocol Precision {
  associatedtype Element: BitwiseCopyable
  /// Weights whose elements are those of panels as they are stored; nil where there are none.
  static var weights: ElementType? { get }
  typealias Source = UnsafePointer<Element>
  typealias Target = UnsafeMutablePointer<Element>
  typealias Floats = UnsafePointer<Float>
  typealias Kernels = UnsafePointer<moei_kernels>

  /// So many contraction indices are multiplied at once: features, or tokens in the gradients of weights. Tiles and panels are
  /// filled up to a multiple of it.
  static var unit: Int { get }

  /// `columns` columns of some rows, in chunks [chunk][m][32]; see `gather` in moei.h.
  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels)
  /// Whether that is dear, so that tokens are gathered once for all who read them.
  static var gathersOnce: Bool { get }
  /// Puts m rows of so many elements, whole chunks, that were gathered one by one together as a tile.
  static func copyRows(_ m: Int, _ width: Int, _ row: (Int) -> Source, into tile: Target)
  /// As `gather`, but of some of the columns; once all are there `finish` makes of the rows what `gather` of all makes.
  static func gatherPart(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels)
  /// Whether whole rows become something else than their chunks were, by `finish`.
  static var finishesRows: Bool { get }
  static func finish(_ m: Int, _ columns: Int, _ rows: Target, _ kernels: Kernels)
  /// Such columns as sums over tokens read them: [chunk][m / unit][32][unit].
  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels)
  /// panel [depth / unit][32][unit] of `columns` rows, if transposed, or columns of `weights`.
  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels)
  /// C[m, columns] = start + A B
  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels)
  /// The same for some panels of B in blocks.
  static func product(
    _ m: Int, _ depth: Int, _ a: Source, _ code: PanelCode, _ panels: UnsafePointer<moei_code_panel>, count: Int,
    _ kernels: Kernels)
  /// Whether blocks are multiplied by so many rows as they lie: for more they are decoded first.
  static func multiplies(_ code: PanelCode, rows: Int, _ kernels: Kernels) -> Bool
  static func decode(
    _ depth: Int, _ blocks: UnsafeRawPointer, _ code: PanelCode, into panel: Target, _ kernels: Kernels)
  /// Some rows of a matrix in blocks, the first a multiple of 32, as [rows][32] of its columns.
  static func decode(_ rows: Range<Int>, of blocks: BlockColumns, into panel: Target, _ kernels: Kernels)
  /// The most rows of `productOfFewRows`.
  static func fewRows(_ kernels: Kernels) -> Int
  /// C[m, 32] = start + A W^T for few rows of A and 32 rows of weights where they lie; depth is a multiple of 32. What is
  /// `coming` is fetched.
  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    _ coming: ComingRows<Element>, _ kernels: Kernels)
  /// C[rows, columns] += sum over tokens of A^T B, for one chunk of A and one or two of B. On the way what is `wanted` is fetched.
  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, wanted: WantedPlaces?, _ kernels: Kernels)
  /// From the gradient of the experts' inner activations to those of their pre-activations, for one chunk of a tile.
  static func innerGradient(_ call: moei_inner_gradient, _ kernels: Kernels)
  /// Where the floats of one chunk are computed: in the array they belong to, or beside it.
  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float>
  /// From the array to the workplace, and back: nothing where they are the same.
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels)
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels)
  /// What storing makes of pre-activations. The array is one that may be written to.
  static func round(_ n: Int, _ values: UnsafeMutablePointer<Float>, by array: Target, _ kernels: Kernels)
  /// So many elements, and those that they are filled up with.
  static func filledUp(_ count: Int) -> Int
  /// Stores a chunk [m][32] as sums over tokens will read it.
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels)
  /// sum[j] += every row's j-th element of one chunk of a tile [m / unit][32][unit], in ascending order
  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels)
}

extension Precision {
  static func gatherPart(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    gather(m, columns, tokens, x, xRow: xRow, weights: weights, into: out, kernels)
  }
  static var gathersOnce: Bool { false }
  static func copyRows(_ m: Int, _ width: Int, _ row: (Int) -> Source, into tile: Target) {
    for chunk in stride(from: 0, to: width, by: chunkWidth) {
      for r in 0..<m { (tile + chunk * m + r * chunkWidth).update(from: row(r) + chunk, count: chunkWidth) }
    }
  }
  static var finishesRows: Bool { false }
  static func finish(_ m: Int, _ columns: Int, _ rows: Target, _ kernels: Kernels) {}
}

// Integers decode nothing, and what runs over the outputs of blocks is float32.
extension Precision {
  static func multiplies(_ code: PanelCode, rows: Int, _ kernels: Kernels) -> Bool { true }
  static func decode(
    _ depth: Int, _ blocks: UnsafeRawPointer, _ code: PanelCode, into panel: Target, _ kernels: Kernels
  ) {}
  static func decode(_ rows: Range<Int>, of blocks: BlockColumns, into panel: Target, _ kernels: Kernels) {}
}

extension Precision {
  static func elements(of matrix: StoredMatrix) -> Source {
    matrix.data.assumingMemoryBound(to: Element.self) + matrix.first
  }

  /// Packs weights of any format and in any strides; those that are not panels' own elements, or have gaps between them, go
  /// by way of floats.
  static func pack(
    _ columns: Int, _ depth: Int, _ matrix: StoredMatrix, transposed: Bool, into panel: Target, _ kernels: Kernels
  ) {
    if matrix.type != weights || matrix.columnStride != 1 {
      return packFloats(columns, depth, matrix, transposed: transposed, into: panel, kernels)
    }
    pack(
      columns, depth, elements(of: matrix), rowStride: matrix.rowStride, transposed: transposed, into: panel, kernels)
  }

  /// By way of floats, 32 contraction indices at a time.
  @inline(never) private static func packFloats(
    _ columns: Int, _ depth: Int, _ matrix: StoredMatrix, transposed: Bool, into panel: Target, _ kernels: Kernels
  ) {
    // [32][32] as floats, then as elements; the same memory in float32.
    var memory = InlineArray<1536, Float>(repeating: 0)
    withUnsafeMutablePointer(to: &memory) {
      let floats = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      let elements = UnsafeMutableRawPointer(unit == 1 ? floats : floats + 1024).assumingMemoryBound(to: Element.self)
      for p in stride(from: 0, to: depth, by: chunkWidth) {
        let step = min(chunkWidth, depth - p)
        let (rows, width) = transposed ? (columns, step) : (step, columns)
        for row in 0..<rows {
          let (first, column) = transposed ? (row, p) : (p + row, 0)
          matrix.read(
            first * matrix.rowStride + column * matrix.columnStride, width, into: floats + row * chunkWidth, kernels)
          store(width, floats + row * chunkWidth, into: elements + row * chunkWidth, kernels)
        }
        pack(
          columns, step, Source(elements), rowStride: chunkWidth, transposed: transposed,
          into: panel + p * chunkWidth, kernels)
      }
    }
  }

  static func filledUp(_ count: Int) -> Int { (count + unit - 1) / unit * unit }

  static func round(_ n: Int, _ values: UnsafeMutablePointer<Float>, by array: Target, _ kernels: Kernels) {
    store(n, values, into: array, kernels)
    load(n, Source(array), into: values, kernels)
  }
}

extension PrecisionKind {
  /// Values as arrays of tokens hold them.
  func round(_ values: UnsafeMutablePointer<Float>, _ count: Int, _ kernels: UnsafePointer<moei_kernels>) {
    visit(Rounding(values: values, count: count, kernels: kernels))
  }
}

private struct Rounding: PrecisionBody {
  let values: UnsafeMutablePointer<Float>
  let count: Int
  let kernels: UnsafePointer<moei_kernels>

  func run<P: Precision>(_: P.Type) {
    if P.weights == .f32 { return }
    let stretch = 256  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(of: P.Element.self, capacity: stretch) { rounded in
      for first in Swift.stride(from: 0, to: count, by: stretch) {
        P.round(min(stretch, count - first), values + first, by: rounded.baseAddress!, kernels)
      }
    }
  }
}

enum F32: Precision {
  typealias Element = Float
  static var weights: ElementType? { .f32 }
  static var unit: Int { 1 }
  static func multiplies(_ code: PanelCode, rows: Int, _ kernels: Kernels) -> Bool { rows < 3 }

  static func product(
    _ m: Int, _ depth: Int, _ a: Source, _ code: PanelCode, _ panels: UnsafePointer<moei_code_panel>, count: Int,
    _ kernels: Kernels
  ) {
    code.kernels(kernels).pointee.product(Int64(code.inputs), Int64(m), Int64(depth), a, Int64(count), panels)
  }

  static func decode(
    _ depth: Int, _ blocks: UnsafeRawPointer, _ code: PanelCode, into panel: Target, _ kernels: Kernels
  ) {
    code.kernels(kernels).pointee.decode(Int64(code.inputs), 0, Int64(depth), blocks, panel)
  }

  static func decode(_ rows: Range<Int>, of blocks: BlockColumns, into panel: Target, _ kernels: Kernels) {
    blocks.decode(rows, into: panel, kernels)
  }

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    gather(m, columns, tokens, x, xRow: xRow, weights: weights, into: out, kernels)
  }

  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels
  ) {
    if transposed {
      kernels.pointee.pack_transposed(Int64(columns), Int64(depth), weights, Int64(rowStride), panel)
    } else {
      kernels.pointee.pack(Int64(columns), Int64(depth), weights, Int64(rowStride), panel)
    }
  }

  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels
  ) {
    kernels.pointee.product(
      Int64(m), Int64(columns), Int64(depth), a, b, start.start, Int64(start.stride), c.start,
      Int64(c.stride), ahead.first, ahead.row, ahead.chunk, ahead.beside)
  }

  static func fewRows(_ kernels: Kernels) -> Int { Int(kernels.pointee.few_rows) }

  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    _ coming: ComingRows<Element>, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_few_rows(
      Int64(m), Int64(depth / chunkWidth), a, weights, Int64(rowStride), start.start, Int64(start.stride),
      c.start, Int64(c.stride), coming.ahead, coming.next, coming.last)
  }

  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, wanted: WantedPlaces?, _ kernels: Kernels
  ) {
    kernels.pointee.product_over_tokens(
      Int64(rows), Int64(columns), tiles, a.start, Int64(a.width), Int64(a.chunk), b.start, Int64(b.width),
      Int64(b.chunk), c.start, Int64(c.stride), next, wanted?.first, Int64(wanted?.count ?? 0))
  }

  static func innerGradient(_ call: moei_inner_gradient, _ kernels: Kernels) {
    withUnsafePointer(to: call) { kernels.pointee.inner_gradient($0) }
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    array
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {}
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {}

  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels
  ) {
    for row in 0..<m { kernels.pointee.add(Int64(columns), chunk + row * chunkWidth, sum) }
  }
}

/// bfloat16, the upper half of a float32: two products at once, half the memory.
enum BF16: Precision {
  typealias Element = UInt16
  static var weights: ElementType? { .bf16 }
  static var unit: Int { 2 }
  static var gathersOnce: Bool { true }
  /// Where the processor multiplies pairs: others would turn the decoded ones into floats again.
  static func multiplies(_ code: PanelCode, rows: Int, _ kernels: Kernels) -> Bool {
    rows < 5 && code.kernels(kernels).pointee.product_of_pairs != nil
  }

  static func product(
    _ m: Int, _ depth: Int, _ a: Source, _ code: PanelCode, _ panels: UnsafePointer<moei_code_panel>, count: Int,
    _ kernels: Kernels
  ) {
    code.kernels(kernels).pointee.product_of_pairs?(
      Int64(code.inputs), Int64(m), Int64(depth), a, Int64(count), panels)
  }

  static func decode(
    _ depth: Int, _ blocks: UnsafeRawPointer, _ code: PanelCode, into panel: Target, _ kernels: Kernels
  ) {
    code.kernels(kernels).pointee.decode_pairs(Int64(code.inputs), Int64(depth), blocks, words(panel))
  }

  static func gather(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather_bf16(Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, out)
  }

  static func gatherTokens(
    _ m: Int, _ columns: Int, _ tokens: UnsafePointer<Int32>?, _ x: Floats, xRow: Int, weights: Floats?,
    into out: Target, _ kernels: Kernels
  ) {
    kernels.pointee.gather_token_pairs(
      Int64(m), Int64(columns), tokens, x, Int64(xRow), weights, words(out))
  }

  static func pack(
    _ columns: Int, _ depth: Int, _ weights: Source, rowStride: Int, transposed: Bool, into panel: Target,
    _ kernels: Kernels
  ) {
    if transposed {
      kernels.pointee.pack_pairs_transposed(Int64(columns), Int64(depth), weights, Int64(rowStride), words(panel))
    } else {
      kernels.pointee.pack_pairs(Int64(columns), Int64(depth), weights, Int64(rowStride), words(panel))
    }
  }

  static func product(
    _ m: Int, _ columns: Int, _ depth: Int, _ a: Source, _ b: Source, start: StridedRows, _ c: StridedTargets,
    _ ahead: moei_ahead, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_pairs(
      Int64(m), Int64(columns), Int64(filledUp(depth) / unit), words(a), words(b), start.start,
      Int64(start.stride), c.start, Int64(c.stride), ahead.first, ahead.row, ahead.chunk, ahead.beside)
  }

  static func fewRows(_ kernels: Kernels) -> Int { Int(kernels.pointee.few_rows_of_pairs) }

  static func productOfFewRows(
    _ m: Int, _ depth: Int, _ a: Source, _ weights: Source, rowStride: Int, start: StridedRows, _ c: StridedTargets,
    _ coming: ComingRows<Element>, _ kernels: Kernels
  ) {
    kernels.pointee.product_of_few_rows_of_pairs(
      Int64(m), Int64(depth / chunkWidth), words(a), weights, Int64(rowStride), start.start,
      Int64(start.stride), c.start, Int64(c.stride), coming.ahead, coming.next, coming.last)
  }

  static func productOverTokens(
    _ rows: Int, _ columns: Int, _ tiles: moei_tiles, _ a: TileChunk<Element>, _ b: TileChunk<Element>,
    _ c: StridedTargets, next: Floats, wanted: WantedPlaces?, _ kernels: Kernels
  ) {
    kernels.pointee.product_over_token_pairs(
      Int64(rows), Int64(columns), tiles, words(a.start), Int64(a.width), Int64(a.chunk), words(b.start),
      Int64(b.width), Int64(b.chunk), c.start, Int64(c.stride), next, wanted?.first, Int64(wanted?.count ?? 0))
  }

  static func innerGradient(_ call: moei_inner_gradient, _ kernels: Kernels) {
    withUnsafePointer(to: call) { kernels.pointee.inner_gradient_bf16($0) }
  }

  static func workplace(_ array: Target, or beside: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<Float> {
    beside
  }
  static func load(_ n: Int, _ array: Source, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {
    kernels.pointee.from_bf16(Int64(n), array, values)
  }
  static func store(_ n: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {
    kernels.pointee.to_bf16(Int64(n), values, array)
  }
  static func round(_ n: Int, _ values: UnsafeMutablePointer<Float>, by array: Target, _ kernels: Kernels) {
    kernels.pointee.round_to_bf16(Int64(n), values, array)
  }
  static func storeTokens(_ m: Int, _ values: UnsafeMutablePointer<Float>, into array: Target, _ kernels: Kernels) {
    gatherTokens(m, chunkWidth, nil, values, xRow: chunkWidth, weights: nil, into: array, kernels)
  }

  static func addTokens(
    _ m: Int, _ columns: Int, _ chunk: Source, to sum: UnsafeMutablePointer<Float>, _ kernels: Kernels
  ) {
    for pair in 0..<filledUp(m) / unit {
      kernels.pointee.add_token_pairs(Int64(columns), words(chunk) + pair * chunkWidth, sum)
    }
  }

  private static func words(_ p: Source) -> UnsafePointer<UInt32> {
    UnsafeRawPointer(p).assumingMemoryBound(to: UInt32.self)
  }
  private static func words(_ p: Target) -> UnsafeMutablePointer<UInt32> {
    UnsafeMutableRawPointer(p).assumingMemoryBound(to: UInt32.self)
  }
}
