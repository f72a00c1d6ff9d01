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

    /// The table of forms: each row says all that the engine asks of one.
    public var form: PanelForm? {
      switch self {
      case .none: nil
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
      }
    }
  }

  /// Packs the experts' weights for the forward calls to come, or lets go of what was packed.
  public mutating func prepare(_ wanted: Preparation) throws(Fault) {
    let isRead = wanted.form?.isRead(in: context) ?? false
    if let offload { return try useSlots(offload, form: isRead ? wanted : .none) }
    try requireMemory()
    // New memory first: on an error the layer is as it was.
    var memory: UnsafeMutableRawPointer?
    var packed = PreparedGroups(configuration)
    if isRead, let form = wanted.form {
      let allocator = context.pointee.allocator
      func layout(_ arena: inout Arena) -> PreparedGroups {
        PreparedGroups(&arena, configuration, form: form)
      }
      memory = try allocator.allocate(bytes: try Arena.bytes(of: layout))
      var arena = Arena(memory!)
      packed = layout(&arena)
      do throws(Fault) {
        try packed.pack(.layer(parameters, frozen: false), in: context)
      } catch {
        allocator.deallocate(memory)
        throw error
      }
    }
    replacePrepared(packed, memory)
  }

  mutating func replacePrepared(_ packed: PreparedGroups, _ memory: UnsafeMutableRawPointer?) {
    context.pointee.allocator.deallocate(preparedMemory)
    (prepared, preparedMemory) = (packed, memory)
  }
}
