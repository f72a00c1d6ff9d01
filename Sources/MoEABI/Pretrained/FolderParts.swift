import CMoE
import MoE

/// How the options want a folder's matrices kept, in memory of the folder's own.
struct FolderParts {
  private let parts: UnsafeMutablePointer<PreparedPart>
  private let count: Int
  let forms: PartForms

  init(_ options: moe_pretrained_options, in context: ContextPointer) throws(Fault) {
    count = Int(options.n_prepared_parts)
    let isTrained = options.inference_only == 0
    let others = Layer.Preparation(rawValue: options.prepared) ?? .none
    if isTrained && !others.isFrozen {
      throw .invalid("options.prepared = \(Int(options.prepared)) needs inference_only = 1: \(Self.whyInference)")
    }
    if count > 0 && options.prepared_parts == nil {
      throw .invalid("options.n_prepared_parts = \(count), but prepared_parts is NULL")
    }
    if count > 0 { _ = try required(options.prepared_parts, "options.prepared_parts") }
    var (text, hasFewBits) = (0, others.isOfFewBits)
    for index in 0..<count {
      let part = options.prepared_parts[index]
      try part.requireBounds(Bounds("prepared_parts"))
      let own = Layer.Preparation(rawValue: part.prepared) ?? .none
      if own.isOfFewBits { hasFewBits = true }
      if isTrained && !own.isFrozen {
        throw .invalid(
          "options.prepared_parts[\(index)].prepared = \(Int(part.prepared)) needs inference_only = 1: \(Self.whyInference)"
        )
      }
      text += textLength(try required(part.pattern, "prepared_parts.pattern")) + 1
    }
    if options.calibration != nil && !hasFewBits {
      try requireFewBits(options.prepared, "options.calibration", "options.prepared")
    }
    let bytes = count * MemoryLayout<PreparedPart>.stride
    let memory = UnsafeMutableRawPointer(try context.memory(UInt8.self, count: bytes + text))
    parts = memory.bindMemory(to: PreparedPart.self, capacity: count)
    var free = (memory + bytes).bindMemory(to: CChar.self, capacity: text)
    for index in 0..<count {
      let part = options.prepared_parts[index]
      let length = textLength(part.pattern) + 1
      free.initialize(from: part.pattern, count: length)
      (parts + index).initialize(
        to: PreparedPart(
          pattern: UnsafePointer(free), preparation: Layer.Preparation(rawValue: part.prepared) ?? .none))
      free += length
    }
    forms = PartForms(others, parts: UnsafePointer(parts), count: count)
  }

  private static var whyInference: StaticString {
    "training changes these weights, of which few bits alone stay as they are"
  }

  func free(_ context: ContextPointer) { context.release(parts) }

  /// Refuses patterns that nothing has, and forms that the model's weights cannot have.
  func require(for model: Model) throws(Fault) {
    try model.require(UnsafePointer(parts), count: count)
    for index in 0..<count { try require(parts[index].preparation, model) }
    try require(forms.others, model)
  }

  private func require(_ preparation: Layer.Preparation, _ model: Model) throws(Fault) {
    if preparation.isStored { return }
    _ = try Layer.Preparation(preparation.rawValue, of: model.configuration.weights, "model")
  }
}
