import CShims

/// One way to keep packed weights: a row of the table that Layer.Preparation is.
public struct PanelForm: Equatable {
  enum Contents: Equatable {
    /// Panels of elements, as the tiles of that type read them.
    case elements(ElementType)
    /// Panels of blocks; `integers`: tokens become integers too.
    case blocks(PanelCode, integers: Bool)
  }

  /// As in moe_prepared.
  public let constant: StaticString
  let contents: Contents

  public static func == (a: PanelForm, b: PanelForm) -> Bool { a.contents == b.contents }

  static var f32: PanelForm { PanelForm(constant: "MOE_PREPARED_F32", contents: .elements(.f32)) }
  static var bf16: PanelForm { PanelForm(constant: "MOE_PREPARED_BF16", contents: .elements(.bf16)) }

  /// Where the weights become blocks, and not elements.
  var code: PanelCode? {
    guard case .blocks(let code, _) = contents else { return nil }
    return code
  }

  /// Bytes of a panel of 32 outputs.
  func panelBytes(_ depth: Int) -> Int {
    switch contents {
    case .elements(let type): type.bytes(type.format.precision.filledUp(depth)) * chunkWidth
    case .blocks(let code, _): code.bytes(depth)
    }
  }

  /// Whether products of such a context read it. Blocks are read by all: values differ from the weights', so that doing
  /// without would be another layer.
  public func isRead(in context: ContextPointer) -> Bool { code != nil || context.packsWeights }

  /// The form of one matrix of a model whose weights are of type `weights`. Where these keep their values all matrices do, whatever
  /// type they have: an output that is tied to an embedding may have another.
  func keeping(_ type: ElementType, amongWeightsOf weights: ElementType) -> PanelForm {
    if code != nil || changesValues(of: weights) { return self }
    return type.format.precision == .bf16 ? .bf16 : .f32
  }

  /// Whether nothing changes the weights any more: values of blocks are trained over, and not themselves.
  public var isFrozen: Bool { code != nil }

  /// Whether forward computes something else than backward would, with weights of that type.
  func changesValues(of weights: ElementType) -> Bool {
    switch contents {
    case .elements(let type): type.format.precision != weights.format.precision
    case .blocks: true
    }
  }
}

/// Weights of few bits in blocks of 32 outputs and 32 contraction indices (see moei_code).
struct PanelCode: Equatable {
  /// Which kernels. A raw type as in ExpertForm.
  enum Kind: Int32 { case int8, int4 }

  let kind: Kind
  let blockBytes: Int
  /// Contraction indices under one scale, a multiple of 32.
  let group: Int

  func kernels(_ kernels: UnsafePointer<moei_kernels>) -> moei_code {
    switch kind {
    case .int8: kernels.pointee.int8
    case .int4: kernels.pointee.int4
    }
  }

  func bytes(_ depth: Int) -> Int { chunks(of: depth) * blockBytes }

  /// The first `rows` rows of a matrix as a panel. False where a scale is not finite.
  func encode(
    _ matrix: StoredMatrix, rows: Int, depth: Int, into panel: UnsafeMutableRawPointer,
    _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    let encode = self.kernels(kernels).encode
    var isFinite = true
    for p in stride(from: 0, to: depth, by: group) {
      let count = min(group, depth - p)
      let blocks = panel + bytes(p)
      let part = matrix.from(column: p)
      if part.type == .f32 && part.columnStride == 1 {
        let floats = F32.elements(of: part)
        isFinite = encode(Int64(rows), Int64(count), floats, Int64(part.rowStride), blocks) != 0 && isFinite
      } else {
        isFinite = encodeByFloats(part, rows, count, blocks, kernels) && isFinite
      }
    }
    return isFinite
  }

  /// What lies under one scale in each row, as floats first.
  @inline(never) private func encodeByFloats(
    _ matrix: StoredMatrix, _ rows: Int, _ count: Int, _ blocks: UnsafeMutableRawPointer,
    _ kernels: UnsafePointer<moei_kernels>
  ) -> Bool {
    var memory = InlineArray<4096, Float>(repeating: 0)  // [32, at most 128]
    return withUnsafeMutablePointer(to: &memory) {
      let floats = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for row in 0..<rows { matrix.read(row * matrix.rowStride, count, into: floats + row * group, kernels) }
      return self.kernels(kernels).encode(Int64(rows), Int64(count), floats, Int64(group), blocks) != 0
    }
  }

  /// A panel as `rows` rows of floats, `stride` apart.
  func decode(
    _ panel: UnsafeRawPointer, rows: Int, depth: Int, into matrix: UnsafeMutablePointer<Float>, stride: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    var memory = InlineArray<1024, Float>(repeating: 0)
    withUnsafeMutablePointer(to: &memory) {
      let square = UnsafeMutableRawPointer($0).assumingMemoryBound(to: Float.self)
      for p in Swift.stride(from: 0, to: depth, by: chunkWidth) {
        let count = min(chunkWidth, depth - p)
        self.kernels(kernels).decode(Int64(count), panel + bytes(p), square)
        for row in 0..<rows {
          for i in 0..<count { matrix[row * stride + p + i] = square[i * chunkWidth + row] }
        }
      }
    }
  }
}
