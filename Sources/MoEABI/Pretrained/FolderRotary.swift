import CLayouts
import CMoE
import MoE

/// Rotary positions: rope_parameters as version 5 of transformers writes them, or rope_theta, rope_scaling and partial_rotary_factor.
struct FolderRotary {
  let keys: FolderKeys
  /// The object with the parameters, where there is one.
  private let parameters: JSONValue?
  /// R; the formulas have the part of a head as it is, which may be odd, and one less then.
  private(set) var rotated = 0
  private var part = 0
  private(set) var stretch: RotaryStretch
  /// Of cos and sin.
  private(set) var scale = 1.0
  private(set) var longScale = 1.0
  private(set) var hasLong = false
  /// What the scale of scores is multiplied by.
  private(set) var scoreScale = 1.0

  /// `headSize`: of what turns.
  init(_ keys: FolderKeys, headSize: Int) throws(Fault) {
    self.keys = keys
    var parameters = keys.value("rope_scaling") ?? keys.value("rope_parameters")
    if let found = parameters, found.kind == .object, found.count == 0 { parameters = keys.value("rope_parameters") }
    if let found = parameters, found.kind != .object { throw .invalid("config.json: rope_parameters is no object") }
    self.parameters = parameters
    if Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_NEEDED && parameters == nil {
      throw .invalid("config.json: rope_parameters is missing, which model_type \(keys.family.name) must have")
    }
    stretch = RotaryStretch(theta: keys.family.table.pointee.theta)
    if let theta = try either("rope_theta") { stretch.theta = theta }
    if !(stretch.theta >= 1) { throw .invalid("config.json: rope_theta = \(stretch.theta) is below 1") }
    part = try rotatedSize(headSize)
    rotated = part + part % 2
    if rotated < 2 { throw .invalid("config.json: of heads of \(headSize) numbers none would turn") }
    if rotated > headSize { throw .invalid("config.json: heads of \(headSize) numbers, all of which turn, are odd") }
    try requireKnown()
    try readKind()
  }

  /// Whether theta alone says it all, for heads that turn whole.
  func isPlain(headSize: Int) -> Bool { stretch.kind == .plain && part == headSize && scale == 1 && !hasLong }

  private func rotatedSize(_ headSize: Int) throws(Fault) -> Int {
    if let size = try keys.whole("rotary_dim") {
      if size < 0 || size > headSize || size % 2 != 0 {
        throw .invalid("config.json: rotary_dim = \(size) is not an even number up to \(headSize)")
      }
      return size
    }
    let part = try either("partial_rotary_factor") ?? keys.family.table.pointee.rotated
    if !(part > 0 && part <= 1) {
      throw .invalid("config.json: partial_rotary_factor = \(part) is not above 0 and up to 1")
    }
    return Int(Double(headSize) * part)
  }

  // MARK: values

  private func value(_ name: StaticString) -> JSONValue? {
    parameters?.member(name).flatMap { $0.isNull ? nil : $0 }
  }

  private func number(_ name: StaticString) throws(Fault) -> Double? {
    guard let value = value(name) else { return nil }
    return try keys.number(value, cText(name))
  }

  /// Among the parameters, else among the model's keys.
  private func either(_ name: StaticString) throws(Fault) -> Double? {
    if let number = try number(name) { return number }
    return try keys.number(name)
  }

  private func positive(_ name: StaticString) throws(Fault) -> Double? {
    guard let number = try number(name) else { return nil }
    if !(number >= 0x1p-100 && number <= 0x1p100) { throw .invalid("config.json: \(name) = \(number) is not above 0") }
    return number
  }

  private func needed(_ name: StaticString) throws(Fault) -> Double {
    guard let number = try positive(name) else {
      throw .invalid("config.json: rope_parameters has no \(name), which its rope_type must have")
    }
    return number
  }

  /// Of a key's whole word, "|" between those that are read.
  private func requireKnown() throws(Fault) {
    guard let parameters else { return }
    let known: StaticString =
      "rope_theta|rope_type|type|partial_rotary_factor|factor|original_max_position_embeddings|attention_factor|beta_fast|beta_slow|short_factor|long_factor|low_freq_factor|high_freq_factor|mscale|mscale_all_dim|truncate|mrope_section|mrope_interleaved|short_mscale|long_mscale|alpha"
    try parameters.forEach { (value) throws(Fault) in
      if let key = value.key, !value.isNull, !key.isAmong(cText(known)) {
        throw .invalid("config.json: rope_parameters: \(key) is unknown, and may change the model's numbers")
      }
    }
  }

  // MARK: kinds

  private mutating func readKind() throws(Fault) {
    let type = value("rope_type") ?? value("type")
    let name = type?.text ?? JSONText(cText("default"))
    func isCalled(_ words: StaticString) -> Bool { name.isAmong(cText(words)) }
    if isCalled("default|mrope") { return }
    if isCalled("linear") {
      stretch.kind = .linear
      stretch.factor = try needed("factor")
    } else if isCalled("llama3") {
      stretch.kind = .llama3
      stretch.factor = try needed("factor")
      (stretch.lowFactor, stretch.highFactor) = (try needed("low_freq_factor"), try needed("high_freq_factor"))
      stretch.originalLength = try originalLength()
    } else if isCalled("yarn") {
      try readYarn()
    } else if isCalled("longrope|su") {
      try readLong()
    } else if isCalled("ntk_alpha") || (isCalled("dynamic") && value("alpha") != nil) {
      // A base that fits longer contexts, the same for all lengths (Hunyuan).
      if part <= 2 { throw .invalid("config.json: rope_parameters: alpha needs more than 2 numbers that turn") }
      let power = Double(part) / Double(part - 2)
      stretch.theta *= RotaryStretch.power(try needed("alpha"), power)
      if !stretch.theta.isFinite { throw .invalid("config.json: rope_parameters: alpha makes rope_theta infinite") }
    } else {
      throw .invalid(
        "config.json: rope_type = \(name) is not supported: default, linear, llama3, yarn and longrope are")
    }
  }

  /// The key of the model comes first, as transformers has it.
  private func originalLength() throws(Fault) -> Double {
    var length = try keys.number("original_max_position_embeddings")
    if length == nil { length = try number("original_max_position_embeddings") }
    if length == nil { length = try keys.number("max_position_embeddings") }
    guard let length, length >= 1, length <= 0x1p31 else {
      throw .invalid("config.json: original_max_position_embeddings is not 1 to 2^31")
    }
    return length
  }

  private func stretchFactor(_ original: Double) throws(Fault) -> Double {
    if let factor = try positive("factor") { return factor }
    guard let most = try keys.number("max_position_embeddings") else {
      throw .invalid("config.json: rope_parameters has no factor, and there is no max_position_embeddings")
    }
    return most / original
  }

  private mutating func readYarn() throws(Fault) {
    stretch.kind = .yarn
    stretch.originalLength = try originalLength()
    stretch.factor = try stretchFactor(stretch.originalLength)
    if let fast = try number("beta_fast"), fast != 0 { stretch.betaFast = try needed("beta_fast") }
    if let slow = try number("beta_slow"), slow != 0 { stretch.betaSlow = try needed("beta_slow") }
    stretch.truncates = parameters?.member("truncate").map { $0.kind != .no && !$0.isNull } ?? true
    let (m, all) = (try number("mscale") ?? 0, try number("mscale_all_dim") ?? 0)
    if let given = try positive("attention_factor") {
      scale = given
    } else if m != 0 && all != 0 {
      scale = RotaryStretch.yarnScale(stretch.factor, m) / RotaryStretch.yarnScale(stretch.factor, all)
    } else {
      scale = RotaryStretch.yarnScale(stretch.factor)
    }
    if Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_LATENT && all != 0 {
      let own = RotaryStretch.yarnScale(stretch.factor, all)
      scoreScale = own * own
    }
  }

  private mutating func readLong() throws(Fault) {
    stretch.kind = .longrope
    stretch.originalLength = try originalLength()
    let factor = try stretchFactor(stretch.originalLength)
    hasLong = true
    try requireDivisors("short_factor")
    try requireDivisors("long_factor")
    scale = try positive("attention_factor") ?? RotaryStretch.longScale(factor, stretch.originalLength)
    longScale = scale
    if Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_PHIMOE {
      (scale, longScale) = (try needed("short_mscale"), try needed("long_mscale"))
    }
  }

  private func requireDivisors(_ name: StaticString) throws(Fault) {
    guard let list = value(name), list.kind == .array, list.count == rotated / 2 else {
      throw .invalid("config.json: \(name) of rope_parameters is no list of \(rotated / 2) numbers")
    }
    try list.forEach { (value) throws(Fault) in
      if !(try keys.number(value, cText(name)) >= 0x1p-100) {
        throw .invalid("config.json: \(name) = \(value.text) is not above 0")
      }
    }
  }

  // MARK: the table

  /// `frequencies`: [rotated] those of short positions, then those of long ones.
  func fill(_ table: inout moe_rotary_table, _ frequencies: UnsafeMutablePointer<Double>) {
    table = moe_rotary_table()
    table.rotary_size = Int64(rotated)
    table.scale = scale
    if stretch.kind == .plain && part == rotated {
      table.theta = stretch.theta
      return
    }
    fill(frequencies, "short_factor")
    table.frequencies = UnsafePointer(frequencies)
    guard hasLong else { return }
    // PhiMoE's class takes the short factors at every length.
    let isPhi = Int(keys.family.table.pointee.rope_rule) == MOEI_ROPE_PHIMOE
    fill(frequencies + rotated / 2, isPhi ? "short_factor" : "long_factor")
    table.long_frequencies = UnsafePointer(frequencies + rotated / 2)
    table.long_scale = longScale
    table.original_length = Int64(stretch.originalLength)
  }

  private func fill(_ frequencies: UnsafeMutablePointer<Double>, _ name: StaticString) {
    // LongRoPE's divisors stand where the frequencies will.
    var index = 0
    if stretch.kind == .longrope {
      value(name)?.forEach { value in
        frequencies[index] = value.number ?? 1
        index += 1
      }
    }
    stretch.fill(frequencies, rotated: part) { frequencies[$0] }
  }
}
