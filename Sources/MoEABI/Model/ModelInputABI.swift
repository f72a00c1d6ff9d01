import CMoE
import MoE

// What a call of a model brings, checked against the model; and what its report wants.

extension ModelInput {
  /// A call that is made.
  init(
    _ input: UnsafePointer<moe_model_input>?, _ model: ModelPointer, _ operands: inout Operands
  ) throws(Fault) {
    let given = try operands.copies(input, "input")
    try self.init(planning: given, model, &operands)
    let c = model.pointee.configuration
    if tokens == 0 { return }
    if c.vocabulary > 0 {
      let ids = try required(given.tokens, "input.tokens")
      for t in 0..<tokens where ids[t] < 0 || ids[t] >= c.vocabulary {
        throw .invalid("input.tokens[\(t)] = \(Int(ids[t])) is not one of vocabulary_size = \(c.vocabulary)")
      }
    } else {
      hidden = try required(given.hidden, "input.hidden")
    }
    if let targets {
      for t in 0..<tokens where (targets[t] < 0 || targets[t] >= c.vocabulary) && targets[t] != ignoreIndex {
        throw .invalid(
          "input.targets[\(t)] = \(Int(targets[t])) is neither one of vocabulary_size = \(c.vocabulary) nor ignore_index = \(Int(ignoreIndex))"
        )
      }
    }
    try requireBits(mask, length * length, "input.mask")
    try requireBits(validMask, tokens, "input.valid_mask")
    try requireBits(lossMask, tokens, "input.loss_mask")
    try requirePositions(c, "input")
  }

  /// Of what a model has room for: those given, or as many as a sequence has tokens.
  func requirePositions(_ c: ModelConfiguration, _ name: StaticString) throws(Fault) {
    let most = c.positions > 0 ? c.positions : Int(Int32.max) + 1
    if let positions {
      for t in 0..<tokens where positions[t] < 0 || positions[t] >= most {
        throw .invalid("\(name).positions[\(t)] = \(Int(positions[t])) is not in 0 ... \(most - 1)")
      }
    } else if validMask != nil && length > most {
      for b in 0..<sequences where count(ofSequence: b) > most {
        throw .invalid(
          "\(name).valid_mask: sequence \(b) has \(count(ofSequence: b)) real tokens, which exceeds max_positions = \(most)"
        )
      }
    }
  }

  /// Positions of the caller's for a model that has any.
  mutating func take(
    positions given: UnsafePointer<Int64>?, _ c: ModelConfiguration, _ name: StaticString, _ operands: inout Operands
  ) throws(Fault) {
    if given != nil && !c.placesTokens {
      throw .invalid(
        "\(name) is not NULL, but max_positions = 0 and rope_theta = 0, without rotary_tables: the model has no positions"
      )
    }
    positions = try operands.reads(optional: given, tokens, name)
  }

  /// A call that is planned and not made: tokens and hidden states may be missing.
  init(planning given: moe_model_input, _ model: ModelPointer, _ operands: inout Operands) throws(Fault) {
    let c = model.pointee.configuration
    let most = Int(Int32.max)
    self.init(sequences: Int(given.n_sequences), length: Int(given.sequence_length))
    // Over ranks one may have none.
    try require(tokens, "input: n_sequences * sequence_length", from: model.pointee.ranks == nil ? 1 : 0, to: most)
    try requireFew(tokens, model, training: given.training == 1)
    if c.positions > 0 && length > c.positions && given.positions == nil && given.valid_mask == nil {
      throw .invalid("input.sequence_length = \(length) exceeds max_positions = \(c.positions)")
    }
    try takeArrays(given, c, &operands)
    training = given.training == 1
    smoothing = given.label_smoothing
    step = given.step
    limit = MoEABI.limit(given.memory_limit)
    if given.chunk_tokens > 0 { chunkTokens = Int(given.chunk_tokens) }
  }

  private mutating func takeArrays(
    _ given: moe_model_input, _ c: ModelConfiguration, _ operands: inout Operands
  ) throws(Fault) {
    if c.vocabulary > 0 {
      if given.hidden != nil { throw .invalid("input.hidden is not NULL, but the model reads tokens") }
      ids = try operands.reads(optional: given.tokens, tokens, "input.tokens")
      targets = try operands.reads(optional: given.targets, tokens, "input.targets")
      ignoreIndex = given.ignore_index
    } else {
      if given.tokens != nil { throw .invalid("input.tokens is not NULL, but the model reads hidden states") }
      if given.targets != nil { throw .invalid("input.targets is not NULL, but vocabulary_size = 0") }
      hidden = try operands.reads(optional: given.hidden, tokens * c.hidden, "input.hidden")
    }
    if targets == nil && given.label_smoothing != 0 {
      throw .invalid("input.label_smoothing = \(given.label_smoothing), but targets is NULL")
    }
    mask = try operands.reads(optional: given.mask, length * length, "input.mask")
    addedMask = try operands.reads(optional: given.added_mask, length * length, "input.added_mask")
    validMask = try operands.reads(optional: given.valid_mask, tokens, "input.valid_mask")
    try take(positions: given.positions, c, "input.positions", &operands)
    lossMask = try operands.reads(optional: given.loss_mask, tokens, "input.loss_mask")
  }

  /// The call that filled the tape must be this one.
  func requireSame(as forward: ModelInput) throws(Fault) {
    if sequences != forward.sequences || length != forward.length {
      throw .invalid(
        "input: \(sequences) sequences of \(length) tokens, but forward had \(forward.sequences) of \(forward.length)")
    }
    if step != forward.step { throw .invalid("input.step = \(step), but forward had \(forward.step)") }
    if training != forward.training { throw .invalid("input.training is not as in forward") }
    if (targets == nil) != (forward.targets == nil) { throw .invalid("input.targets are not as in forward") }
    if ignoreIndex != forward.ignoreIndex { throw .invalid("input.ignore_index is not as in forward") }
    if smoothing != forward.smoothing { throw .invalid("input.label_smoothing is not as in forward") }
    if (mask == nil) != (forward.mask == nil) { throw .invalid("input.mask is not as in forward") }
    if (addedMask == nil) != (forward.addedMask == nil) { throw .invalid("input.added_mask is not as in forward") }
    if (validMask == nil) != (forward.validMask == nil) { throw .invalid("input.valid_mask is not as in forward") }
    if (positions == nil) != (forward.positions == nil) { throw .invalid("input.positions are not as in forward") }
    if (lossMask == nil) != (forward.lossMask == nil) { throw .invalid("input.loss_mask is not as in forward") }
    if chunkTokens != forward.chunkTokens { throw .invalid("input.chunk_tokens is not as in forward") }
    if hidden != forward.hidden { throw .invalid("input.hidden is not the array that forward had") }
  }
}

/// Pairs of tokens and choices are counted in 32 bits, and so are the numbers of noise.
func requireFew(_ tokens: Int, _ model: ModelPointer, training: Bool) throws(Fault) {
  // Those of MoE layers are alike; dense ones have one choice.
  guard let layer = model.pointee.moeConfiguration else { return }
  if tokens > Int(Int32.max) / layer.slots {
    throw .invalid("\(tokens) tokens with \(layer.slots) choices each exceed 2^31 - 1 choices")
  }
  if layer.exploration.noise != .none && training && tokens > Int(UInt32.max) / layer.experts {
    throw .invalid("\(tokens) tokens times n_experts = \(layer.experts) exceed 2^32 numbers of noise")
  }
}

func requireBits(_ mask: UnsafePointer<UInt8>?, _ count: Int, _ name: StaticString) throws(Fault) {
  guard let mask else { return }
  for i in 0..<count where mask[i] > 1 { throw .invalid("\(name)[\(i)] = \(Int(mask[i])) is neither 0 nor 1") }
}

/// The reports of the layers: the caller's array, whose elements are as far apart as the caller's struct is large.
struct LayerReports {
  private let start: UnsafeMutableRawPointer?
  private let distance: Int
  private let count: Int

  init(_ reports: UnsafeMutablePointer<moe_report>?, count: Int) throws(Fault) {
    start = try optional(reports, "report.layers").map { UnsafeMutableRawPointer($0) }
    self.count = count
    guard let reports else {
      distance = 0
      return
    }
    distance = try requireSize(UnsafePointer(reports), "report.layers[0]")
    for n in 0..<count {
      let size = try requireSize(UnsafePointer(pointer(n)!), "report.layers")
      if size != distance {
        throw .invalid("report.layers[\(n)]: struct_size = \(size) differs from layers[0]'s \(distance)")
      }
    }
  }

  /// The structs themselves.
  var structs: UnsafeMutableRawPointer? { start }
  var bytes: UInt { byteCount(count, distance) }

  private func pointer(_ n: Int) -> UnsafeMutablePointer<moe_report>? {
    start.map { ($0 + n * distance).assumingMemoryBound(to: moe_report.self) }
  }

  /// Where the arrays of layer n's report go.
  func details(_ n: Int) -> Layer.Details {
    pointer(n).map { Layer.Details($0.pointee) } ?? Layer.Details()
  }

  func set(_ n: Int, _ report: Report) { pointer(n)?.pointee.set(report) }
}
