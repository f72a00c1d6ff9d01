/// One way to keep packed weights: a row of the table that Layer.Preparation is.
public struct PanelForm: Equatable {
  enum Contents: Equatable {
    /// Panels of elements, as the tiles of that type read them.
    case elements(ElementType)
    /// Panels of blocks.
    case blocks(PanelCode, times: BlockTokens)
  }

  /// What becomes of tokens that blocks are multiplied by. The raw type is for the linker, see ExpertForm.
  enum BlockTokens: Int32 { case floats, halves, integers }

  /// As in moe_prepared.
  public let constant: StaticString
  let contents: Contents

  public static func == (a: PanelForm, b: PanelForm) -> Bool { a.contents == b.contents }

  static var f32: PanelForm { PanelForm(constant: "MOE_PREPARED_F32", contents: .elements(.f32)) }
  static var bf16: PanelForm { PanelForm(constant: "MOE_PREPARED_BF16", contents: .elements(.bf16)) }
  /// Of elements, with the values of that type.
  static func keeping(_ type: ElementType) -> PanelForm { type.format.precision == .bf16 ? .bf16 : .f32 }

  /// Where the weights become blocks, and not elements.
  var code: PanelCode? {
    guard case .blocks(let code, _) = contents else { return nil }
    return code
  }

  /// What becomes of tokens that are multiplied with it. The raw type is for the linker, see ExpertForm.
  enum Tokens: Int32 {
    /// Of float32, or of bfloat16.
    case floats, halves
    /// Of bfloat16, for blocks: with a tape they are float32.
    case blockHalves
    /// Integers under a scale for 32 features, or for a row.
    case integers, rowIntegers
  }

  var tokens: Tokens {
    switch contents {
    case .elements(let type): type.format.precision == .f32 ? .floats : .halves
    case .blocks(_, times: .floats): .floats
    case .blocks(_, times: .halves): .blockHalves
    case .blocks(let code, times: .integers): code.hasRowScales ? .rowIntegers : .integers
    }
  }

  /// Bytes of a panel of 32 outputs.
  func panelBytes(_ depth: Int) -> Int {
    switch contents {
    case .elements(let type): type.bytes(type.format.precision.filledUp(depth)) * chunkWidth
    case .blocks(let code, _): code.bytes(depth)
    }
  }

  /// Refuses a matrix whose rows of so many inputs are not made of whole blocks.
  func require(_ depth: Int, inputsOf matrix: StaticString) throws(Fault) {
    try require(depth, inputsOfNamed: UnsafeRawPointer(matrix.utf8Start).assumingMemoryBound(to: CChar.self))
  }
  func require(_ depth: Int, inputsOfNamed matrix: UnsafePointer<CChar>) throws(Fault) {
    guard let code else { return }
    if case .blocks(_, times: .integers) = contents, code.hasRowScales, depth > PanelCode.mostInARow {
      throw .invalid(
        "\(constant) sums at most \(PanelCode.mostInARow) inputs as integers, but \(matrix) has \(depth): prepare another form, such as MOE_PREPARED_INT8_A8"
      )
    }
    if depth % code.unit == 0 { return }
    throw .invalid(
      "\(constant) keeps \(code.unit) inputs of an output together, but \(matrix) has \(depth), no multiple of that: prepare another form, such as MOE_PREPARED_INT4"
    )
  }

  /// Whether products of such a context read it. Blocks are read by all: values differ from the weights', so that doing
  /// without would be another layer.
  public func isRead(in context: ContextPointer) -> Bool { code != nil || context.packsWeights }

  /// The form of one matrix of a model whose weights are of type `weights`. Where these keep their values all matrices do, whatever
  /// type they have: an output that is tied to an embedding may have another.
  func keeping(_ type: ElementType, amongWeightsOf weights: ElementType) -> PanelForm {
    if code != nil || changesValues(of: weights) { return self }
    return .keeping(type)
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
