import CShims

/// What attention wants of numbers beside products: its softmax between them.
protocol AttentionPrecision: Precision {
  static func number(_ element: Element) -> Float
  /// See `TileProducts.pack`.
  static func packRows(
    _ columns: Int, _ depth: Int, _ x: Floats, stride: Int, into panel: Target, _ scratch: Target, _ kernels: Kernels)
  /// C[m,n] += A B for few rows of A and k rows of B where they lie, n a multiple of 32; as much of `next` is fetched.
  static func addFewRows(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ b: RowsInPlace<Element>, _ c: StridedTargets,
    next: RowsInPlace<Element>, _ kernels: Kernels)
  /// Whether these leave the even ones of 32 columns in front of the odd ones.
  static var partsColumns: Bool { get }
  /// From scores [keys][32] to weights [keys / unit][32][unit]: `attention_weights` in moei.h.
  static func attentionWeights(
    _ keys: Int, _ scale: Float, bias: Floats?, kept: Floats?, _ scores: UnsafeMutablePointer<Float>,
    into weights: Target, _ sums: AttentionSums, _ kernels: Kernels)
  /// From scores, and the gradient of weights, to weights, and the gradient of scores.
  static func attentionGradients(_ call: moei_attention_slopes, _ kernels: Kernels)
}

extension ContextPointer {
  /// What products of attention multiply where this is wanted: bfloat16 takes an instruction for pairs, without which floats are
  /// rounded.
  func attentionPrecision(_ wanted: PrecisionKind) -> PrecisionKind {
    wanted == .bf16 && packsWeights && kernels.pointee.has_pairs != 0 ? .bf16 : .f32
  }
}

extension AttentionPrecision {
  /// m rows of x, which are stored as they are multiplied, in chunks [chunk][m][32].
  static func gatherRounded(_ m: Int, _ columns: Int, _ x: Source, stride: Int, into out: Target) {
    for chunk in 0..<chunks(of: columns) {
      let (first, place) = (x + chunk * chunkWidth, out + chunk * m * chunkWidth)
      let width = min(chunkWidth, columns - chunk * chunkWidth)
      for row in 0..<m {
        let own = place + row * chunkWidth
        if width == chunkWidth {
          own.update(from: first + row * stride, count: chunkWidth)
          continue
        }
        own.update(from: first + row * stride, count: width)
        UnsafeMutableRawPointer(own + width).initializeMemory(
          as: UInt8.self, repeating: 0, count: (chunkWidth - width) * MemoryLayout<Element>.size)
      }
    }
  }

  /// Such rows as sums over them read them: [chunk][m / unit][32][unit].
  static func gatherRoundedTokens(
    _ m: Int, _ columns: Int, _ x: Source, stride: Int, into out: Target, _ kernels: Kernels
  ) {
    for chunk in 0..<chunks(of: columns) {
      let first = chunk * chunkWidth
      pack(
        min(chunkWidth, columns - first), m, x + first, rowStride: stride, transposed: false,
        into: out + first * filledUp(m), kernels)
    }
  }

  /// Puts 0 in the place of one of `count` rows as sums over rows read them, `width` numbers to a row.
  static func clearRow(_ row: Int, of count: Int, _ rows: Target, _ width: Int) {
    for chunk in 0..<chunks(of: width) {
      let first = rows + chunk * filledUp(count) * chunkWidth + row / unit * unit * chunkWidth + row % unit
      for column in 0..<chunkWidth {
        UnsafeMutableRawPointer(first + column * unit).initializeMemory(
          as: UInt8.self, repeating: 0, count: MemoryLayout<Element>.size)
      }
    }
  }
}

/// Keys or values where they lie, as they are multiplied.
struct RowsInPlace<Element> {
  let start: UnsafePointer<Element>
  let stride: Int
}

/// The running softmax of 32 queries.
struct AttentionSums {
  let maximum: UnsafeMutablePointer<Float>  // [32]
  let total: UnsafeMutablePointer<Float>  // [32]
  let factor: UnsafeMutablePointer<Float>  // [32]: what is to be scaled down by it
}

extension F32: AttentionPrecision {
  static func number(_ element: Float) -> Float { element }
  static var partsColumns: Bool { false }

  static func addFewRows(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ b: RowsInPlace<Element>, _ c: StridedTargets,
    next: RowsInPlace<Element>, _ kernels: Kernels
  ) {
    kernels.pointee.add_few_rows(
      Int64(m), Int64(n), Int64(k), a, Int64(chunkWidth), b.start, Int64(b.stride), c.start, Int64(c.stride),
      next.start, Int64(next.stride))
  }

  static func packRows(
    _ columns: Int, _ depth: Int, _ x: Floats, stride: Int, into panel: Target, _ scratch: Target, _ kernels: Kernels
  ) {
    kernels.pointee.pack_transposed(Int64(columns), Int64(depth), x, Int64(stride), panel)
  }

  static func attentionWeights(
    _ keys: Int, _ scale: Float, bias: Floats?, kept: Floats?, _ scores: UnsafeMutablePointer<Float>,
    into weights: Target, _ sums: AttentionSums, _ kernels: Kernels
  ) {
    kernels.pointee.attention_weights(
      Int64(keys), scale, bias, kept, scores, sums.maximum, sums.total, sums.factor)
  }

  static func attentionGradients(_ call: moei_attention_slopes, _ kernels: Kernels) {
    withUnsafePointer(to: call) { kernels.pointee.attention_gradients($0) }
  }
}

extension BF16: AttentionPrecision {
  static func number(_ element: UInt16) -> Float { Float(bitPattern: UInt32(element) << 16) }
  static var partsColumns: Bool { true }

  static func addFewRows(
    _ m: Int, _ n: Int, _ k: Int, _ a: Source, _ b: RowsInPlace<Element>, _ c: StridedTargets,
    next: RowsInPlace<Element>, _ kernels: Kernels
  ) {
    kernels.pointee.add_few_rows_of_pairs(
      Int64(m), Int64(n), Int64(k), UnsafeRawPointer(a).assumingMemoryBound(to: UInt32.self), Int64(chunkWidth / unit),
      b.start, Int64(b.stride), c.start, Int64(c.stride), next.start, Int64(next.stride))
  }

  static func packRows(
    _ columns: Int, _ depth: Int, _ x: Floats, stride: Int, into panel: Target, _ scratch: Target, _ kernels: Kernels
  ) {
    gather(columns, depth, nil, x, xRow: stride, weights: nil, into: scratch, kernels)
    for first in Swift.stride(from: 0, to: depth, by: chunkWidth) {
      pack(
        columns, min(chunkWidth, depth - first), scratch + first * columns, rowStride: chunkWidth, transposed: true,
        into: panel + first * chunkWidth, kernels)
    }
  }

  static func attentionWeights(
    _ keys: Int, _ scale: Float, bias: Floats?, kept: Floats?, _ scores: UnsafeMutablePointer<Float>,
    into weights: Target, _ sums: AttentionSums, _ kernels: Kernels
  ) {
    kernels.pointee.attention_weights_bf16(
      Int64(keys), scale, bias, kept, scores, UnsafeMutableRawPointer(weights).assumingMemoryBound(to: UInt32.self),
      sums.maximum, sums.total, sums.factor)
  }

  static func attentionGradients(_ call: moei_attention_slopes, _ kernels: Kernels) {
    withUnsafePointer(to: call) { kernels.pointee.attention_gradients_bf16($0) }
  }
}
