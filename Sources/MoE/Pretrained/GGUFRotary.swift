import CLayouts

// Heads and rotary positions of a GGUF file's model.

extension GGUFConfiguration {
  mutating func writeHeads() throws(Fault) {
    if architecture.headsRule == MOEI_HEADS_LATENT { return try writeLatentHeads() }
    let heads = try size("attention.head_count")
    let keyHeads = try optionalSize("attention.head_count_kv")
    whole("num_key_value_heads", keyHeads ?? heads)
    let head = try headSize()
    if let values = try optionalSize("attention.value_length"), values != head {
      throw .invalid(
        "\(architecture.name).attention.value_length = \(values) is not attention.key_length = \(head): \(header.path)")
    }
    whole("head_dim", head)
  }

  /// Of queries and keys.
  private func headSize() throws(Fault) -> Int {
    if let own = try optionalSize("attention.key_length") { return own }
    let (hidden, heads) = (try size("embedding_length"), try size("attention.head_count"))
    if hidden % heads != 0 {
      throw .invalid(
        "\(architecture.name).attention.head_count = \(heads) does not divide embedding_length = \(hidden), and there is no attention.key_length: \(header.path)"
      )
    }
    return hidden / heads
  }

  /// Files from before keys and values were split have their sizes under the usual names.
  private mutating func writeLatentHeads() throws(Fault) {
    let turned = try size("rope.dimension_count")
    let keys = try size("attention.key_length_mla", or: "attention.key_length")
    let values = try size("attention.value_length_mla", or: "attention.value_length")
    if keys <= turned {
      throw .invalid(
        "\(architecture.name).attention.key_length_mla = \(keys) is not above rope.dimension_count = \(turned): \(header.path)"
      )
    }
    whole("qk_rope_head_dim", turned)
    whole("qk_nope_head_dim", keys - turned)
    whole("v_head_dim", values)
    if gate == 2 { return }
    // DeepSeek-V2 chooses among groups where there are some.
    key("topk_method")
    if header.whole(architecture, "expert_group_count") ?? 1 > 1 {
      text("group_limited_greedy")
    } else {
      text("greedy")
    }
  }

  private func size(_ name: StaticString, or older: StaticString) throws(Fault) -> Int {
    if let size = try optionalSize(name) { return size }
    return try size(older)
  }

  // MARK: positions

  mutating func writeTurn() throws(Fault) {
    try object("rope_parameters") { (own) throws(Fault) in
      own.key("rope_theta")
      if let theta = try own.numbers(cText("rope.freq_base")) {
        own.number(theta)
      } else {
        own.number(10000, isSingle: true)
      }
      try own.writeTurnedPart()
      try own.writeStretch()
    }
    // A key of the model's own.
    if architecture.turnRule == MOEI_TURN_SIZE, let part = try optionalSize("rope.dimension_count") {
      whole("rotary_dim", part)
    }
  }

  private mutating func writeTurnedPart() throws(Fault) {
    if architecture.headsRule == MOEI_HEADS_LATENT || architecture.turnRule == MOEI_TURN_SIZE { return }
    let head = try headSize()
    let part = try optionalSize("rope.dimension_count") ?? head
    if part > head || (part != head && architecture.turnRule != MOEI_TURN_PART) {
      throw .invalid(
        "\(architecture.name).rope.dimension_count = \(part) is not that of its heads, \(head) numbers: \(header.path)")
    }
    if architecture.turnRule == MOEI_TURN_PART {
      key("partial_rotary_factor")
      number(Double(part) / Double(head), isSingle: false)
    }
  }

  private mutating func writeStretch() throws(Fault) {
    let kind = value("rope.scaling.type")?.text
    if let short = checkpoint.tensor(cText("rope_factors_short.weight")) { return try writeFactors(short) }
    if let factors = checkpoint.tensor(cText("rope_freqs.weight")) {
      try writeDivisors(factors, factors)
      return scale("attention_factor", 1)
    }
    if let kind, kind == "yarn" { return try writeYarn() }
    if let kind, !(kind == "none"), !(kind == "linear") {
      throw .invalid("\(architecture.name).rope.scaling.type = \(kind) is not supported: \(header.path)")
    }
    var factor = try numbers(cText("rope.scaling.factor"))
    if factor == nil { factor = try numbers(cText("rope.scale_linear")) }
    guard let factor, factor.number != 1, factor.number != 0, kind.map({ $0 == "linear" }) ?? true else {
      key("rope_type")
      return text("default")
    }
    key("rope_type")
    text("linear")
    key("factor")
    number(factor)
  }

  /// Long positions have factors of their own; scores are scaled as the file says.
  private mutating func writeFactors(_ short: StoredTensor) throws(Fault) {
    guard let long = checkpoint.tensor(cText("rope_factors_long.weight")) else {
      throw .invalid("rope_factors_long.weight: the GGUF file has no such tensor beside \(short.name): \(header.path)")
    }
    try writeDivisors(short, long)
    let factor = try number("rope.scaling.attn_factor") ?? 1
    if architecture.turnRule != MOEI_TURN_SCALED { return scale("attention_factor", factor) }
    scale("short_mscale", factor)
    scale("long_mscale", factor)
  }

  private mutating func writeDivisors(_ short: StoredTensor, _ long: StoredTensor) throws(Fault) {
    key("rope_type")
    text("longrope")
    try numbers("short_factor", of: short)
    try numbers("long_factor", of: long)
    let longest = try optionalSize("context_length") ?? 1
    let original = try optionalSize("rope.scaling.original_context_length") ?? longest
    whole("original_max_position_embeddings", original)
    scale("factor", max(1, Double(longest) / Double(original)))
  }

  private mutating func scale(_ name: StaticString, _ value: Double) {
    key(name)
    number(value, isSingle: true)
  }

  private mutating func writeYarn() throws(Fault) {
    key("rope_type")
    text("yarn")
    try copy("rope.scaling.factor", "factor")
    whole("original_max_position_embeddings", try size("rope.scaling.original_context_length"))
    try copy("rope.scaling.yarn_attn_factor", "attention_factor")
    try copy("rope.scaling.yarn_beta_fast", "beta_fast")
    try copy("rope.scaling.yarn_beta_slow", "beta_slow")
    if architecture.turnRule == MOEI_TURN_UNROUNDED { flag("truncate", false) }
    if architecture.turnRule == MOEI_TURN_LATENT, let multiplier = try number("rope.scaling.yarn_log_multiplier") {
      // 0.1 of both.
      scale("mscale", Double(Float(10 * multiplier)))
      scale("mscale_all_dim", Double(Float(10 * multiplier)))
    }
  }

  private mutating func copy(_ name: StaticString, _ own: StaticString) throws(Fault) {
    guard let value = try numbers(cText(name)) else { return }
    key(own)
    number(value)
  }
}
