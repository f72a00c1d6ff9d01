// A packed copy of the experts' weights (Experts/Prepared.swift), as the layer holds it.

extension Layer {
  /// Numbers as in moe_prepared.
  public enum Preparation: Int32 {
    case none = 0
    case f32 = 1
    case bf16 = 2
    case int8 = 3
    case int8A8 = 4
    case int4 = 5
    case int4A8 = 6
    case int4G64 = 7
    case int4G64A8 = 8
    case int4G128 = 9
    case int4G128A8 = 10
    case mxfp4 = 11
    case mxfp4A8 = 12
    case iq4NL = 13
    case iq4NLA8 = 14
    case q4K = 15
    case q4KA8 = 16
    case q6K = 17
    case q6KA8 = 18
    case int8Row = 19
    case int8RowA8 = 20
    case fp8 = 21
    case nvfp4 = 22
    case nvfp4A8 = 23
    case int4BF16 = 24
    case int4BF16A8 = 25
    case int4Zero = 26
    case int4ZeroA8 = 27
    case int4ZeroG64 = 28
    case int4ZeroG64A8 = 29
    case int4ZeroG128 = 30
    case int4ZeroG128A8 = 31
    /// As a file has it, where that is in few bits: while a model is read.
    case stored = 32
    case storedA8 = 33
    case int8A16 = 34
    case int4A16 = 35
    case int4G64A16 = 36
    case int4G128A16 = 37
    case mxfp4A16 = 38
    case iq4NLA16 = 39
    case q4KA16 = 40
    case q6KA16 = 41
    case int8RowA16 = 42
    case fp8A16 = 43
    case nvfp4A16 = 44
    case int4BF16A16 = 45
    case int4ZeroA16 = 46
    case int4ZeroG64A16 = 47
    case int4ZeroG128A16 = 48
    case storedA16 = 49

    public var isStored: Bool { self == .stored || self == .storedA8 || self == .storedA16 }
    /// What becomes of tokens that are multiplied by what a file has, where its form has that.
    var storedTokens: PanelForm.BlockTokens { self == .storedA8 ? .integers : self == .storedA16 ? .halves : .floats }

    /// Refuses what there is nothing to make of in memory.
    public func requireInMemory(_ argument: StaticString) throws(Fault) {
      if !isStored { return }
      let name: StaticString =
        switch storedTokens {
        case .floats: "MOE_PREPARED_STORED"
        case .halves: "MOE_PREPARED_STORED_A16"
        case .integers: "MOE_PREPARED_STORED_A8"
        }
      throw .invalid(
        "\(argument) = \(name) keeps weights as a file has them, and these are numbers in memory: set it in moe_pretrained_options when the model is loaded, or prepare a form of few bits"
      )
    }

    /// The table of forms: each row says all that the engine asks of one.
    public var form: PanelForm? {
      switch self {
      case .none, .stored, .storedA8, .storedA16: nil
      case .f32: .f32
      case .bf16: .bf16
      case .int8: .int8
      case .int8A8: .int8A8
      case .int4: .int4
      case .int4A8: .int4A8
      case .int4G64: .int4G64
      case .int4G64A8: .int4G64A8
      case .int4G128: .int4G128
      case .int4G128A8: .int4G128A8
      case .mxfp4: .mxfp4
      case .mxfp4A8: .mxfp4A8
      case .iq4NL: .iq4NL
      case .iq4NLA8: .iq4NLA8
      case .q4K: .q4K
      case .q4KA8: .q4KA8
      case .q6K: .q6K
      case .q6KA8: .q6KA8
      case .int8Row: .int8Row
      case .int8RowA8: .int8RowA8
      case .fp8: .fp8
      case .nvfp4: .nvfp4
      case .nvfp4A8: .nvfp4A8
      case .int4BF16: .int4BF16
      case .int4BF16A8: .int4BF16A8
      case .int4Zero: .int4Zero
      case .int4ZeroA8: .int4ZeroA8
      case .int4ZeroG64: .int4ZeroG64
      case .int4ZeroG64A8: .int4ZeroG64A8
      case .int4ZeroG128: .int4ZeroG128
      case .int4ZeroG128A8: .int4ZeroG128A8
      case .int8A16: .int8A16
      case .int4A16: .int4A16
      case .int4G64A16: .int4G64A16
      case .int4G128A16: .int4G128A16
      case .mxfp4A16: .mxfp4A16
      case .iq4NLA16: .iq4NLA16
      case .q4KA16: .q4KA16
      case .q6KA16: .q6KA16
      case .int8RowA16: .int8RowA16
      case .fp8A16: .fp8A16
      case .nvfp4A16: .nvfp4A16
      case .int4BF16A16: .int4BF16A16
      case .int4ZeroA16: .int4ZeroA16
      case .int4ZeroG64A16: .int4ZeroG64A16
      case .int4ZeroG128A16: .int4ZeroG128A16
      }
    }

    public var isOfFewBits: Bool { form?.code != nil }
    /// Whether what is kept so is trained over, where it is packed at all.
    public var isFrozen: Bool { self == .none || isStored || isOfFewBits }
  }

  /// Packs the experts' weights for the forward calls to come, or lets go of what was packed.
  public mutating func prepare(_ wanted: Preparation) throws(Fault) { try prepare(wanted, nil) }

  /// `squares` tells what the experts read, where that is known.
  mutating func prepare(_ wanted: Preparation, _ squares: LayerSquares?) throws(Fault) {
    if isOffloaded && squares != nil && wanted.isOfFewBits { throw .calibratesOffloaded }
    let forms = wanted.form.map { LayerForms($0) } ?? LayerForms()
    try configuration.require(forms)
    let isRead = wanted.form?.isRead(in: context) ?? false
    if let offload, filePanels == nil {
      if let released = parameters.released { throw released.packedAlone }
      return try useSlots(offload, isRead ? .packed(forms) : .rows)
    }
    try pack(isRead ? forms : LayerForms(), squares)
  }

  private mutating func pack(_ forms: LayerForms, _ squares: LayerSquares?) throws(Fault) {
    try requireMemory()
    // New memory first: on an error the layer is as it was.
    var memory: UnsafeMutableRawPointer?
    var packed = PreparedGroups(configuration)
    if !forms.isEmpty {
      let allocator = context.pointee.allocator
      let configuration = configuration
      func layout(_ arena: inout Arena) -> PreparedGroups { PreparedGroups(&arena, configuration, forms: forms) }
      memory = try allocator.allocate(bytes: try Arena.bytes(of: layout))
      var arena = Arena(memory!)
      packed = layout(&arena)
      do throws(Fault) {
        try packed.pack(.layer(parameters, frozen: false), squares, in: context)
      } catch {
        allocator.deallocate(memory)
        throw error
      }
    }
    replacePrepared(packed, memory)
  }

  /// Packs what has been read, by what the experts read, and keeps nothing else of it. Of a layer for inference alone.
  mutating func keepPacked(_ forms: LayerForms, _ squares: LayerSquares?) throws(Fault) {
    try pack(forms, squares)
    parameters.release(packed: forms, configuration, context.pointee.allocator)
  }

  /// Of a layer for inference alone, whose parameters are about to be read: memory for panels in these forms, which are nobody's copy, and
  /// for all that is not packed. On an error it is as it was, but for memory that parameters have.
  mutating func makeRoom(_ forms: LayerForms) throws(Fault) {
    try configuration.require(forms)
    let allocator = context.pointee.allocator
    try parameters.allocate(withoutPacked: forms, configuration, allocator)
    if forms.isEmpty { return replacePrepared(PreparedGroups(configuration), nil) }
    let configuration = configuration
    func layout(_ arena: inout Arena) -> PreparedGroups { PreparedGroups(&arena, configuration, forms: forms) }
    let memory = try allocator.allocate(bytes: try Arena.bytes(of: layout))
    var arena = Arena(memory)
    replacePrepared(layout(&arena), memory)
    for index in 0..<configuration.groupCount {
      prepared.of(configuration.groups[index])?.clearSamples(experts: configuration.groups[index].experts)
    }
    parameters.release(packed: forms, configuration, allocator)
  }

  mutating func replacePrepared(_ packed: PreparedGroups, _ memory: UnsafeMutableRawPointer?) {
    context.pointee.allocator.deallocate(preparedMemory)
    (prepared, preparedMemory) = (packed, memory)
    parameters.notePacked(packed.frozenForms, configuration)
  }
}
