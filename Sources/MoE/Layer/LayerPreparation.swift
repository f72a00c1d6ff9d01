// A packed copy of the experts' weights (Experts/Prepared.swift), as the layer holds it.

extension Layer {
  /// Numbers as in moe_prepared.
  public enum Preparation: Int32 {
    case none = 0
    case f32 = 1
    case bf16 = 2

    /// Of the packed copy.
    public var type: ElementType? {
      switch self {
      case .none: nil
      case .f32: .f32
      case .bf16: .bf16
      }
    }
  }

  /// Packs the experts' weights for the forward calls to come, or lets go of what was packed.
  public mutating func prepare(_ wanted: Preparation) throws(Fault) {
    if let offload { return try useSlots(offload, form: context.packsWeights ? wanted : .none) }
    try requireMemory()
    // New memory first: on an error the layer is as it was.
    var memory: UnsafeMutableRawPointer?
    var packed = PreparedGroups(configuration)
    if let type = wanted.type, context.packsWeights {
      let allocator = context.pointee.allocator
      func layout(_ arena: inout Arena) -> PreparedGroups {
        PreparedGroups(&arena, configuration, type: type)
      }
      memory = try allocator.allocate(bytes: try Arena.bytes(of: layout))
      var arena = Arena(memory!)
      packed = layout(&arena)
      packed.pack(.layer(parameters, frozen: false), in: context)
    }
    replacePrepared(packed, memory)
  }

  mutating func replacePrepared(_ packed: PreparedGroups, _ memory: UnsafeMutableRawPointer?) {
    context.pointee.allocator.deallocate(preparedMemory)
    (prepared, preparedMemory) = (packed, memory)
  }
}
