import CMoE
import MoE

// Rotary positions of a model: the tables of the caller's, or one made of rope_theta.

/// The configuration with its rotary tables, which live as long as `body` runs.
func withRotaries(
  _ config: moe_model_config, _ c: inout ModelConfiguration, _ body: (ModelConfiguration) throws(Fault) -> Void
) throws(Fault) {
  let count = Int(config.n_rotary_tables)
  if config.rope_theta != 0 {
    if count > 0 {
      throw .invalid(
        "rope_theta = \(config.rope_theta) beside n_rotary_tables = \(count): set it to 0, since tables have their own")
    }
    try require(config.rope_theta, "rope_theta", atLeast: 1)
    if c.headSize % 2 != 0 { throw .invalid("head_size = \(c.headSize) is odd, but rope_theta turns pairs") }
    var own = RotaryValues(theta: config.rope_theta)
    try withUnsafePointer(to: &own) { (own) throws(Fault) in
      (c.rotaries, c.rotaryCount) = (own, 1)
      try body(c)
    }
    return
  }
  if count == 0 {
    if config.rotary_tables != nil { throw .invalid("rotary_tables is not NULL, but n_rotary_tables = 0") }
    return try body(c)
  }
  if config.rotary_tables == nil { throw .invalid("n_rotary_tables = \(count), but rotary_tables is NULL") }
  let tables = try required(config.rotary_tables, "rotary_tables")
  for number in 0..<count {
    do throws(Fault) {
      try tables[number].requireBounds(Bounds("config"))
      try tables[number].requireUse(c)
    } catch {
      throw error.inElement(number, of: "rotary_tables")
    }
  }
  // The same layout, in the engine's name.
  c.rotaries = UnsafeRawPointer(tables).assumingMemoryBound(to: RotaryValues.self)
  c.rotaryCount = count
  try body(c)
}

extension moe_rotary_table {
  fileprivate func requireUse(_ c: ModelConfiguration) throws(Fault) {
    let size = rotary_size == 0 ? c.headSize : Int(rotary_size)
    if size % 2 != 0 { throw .invalid("rotary_size = \(size) is odd, but pairs turn") }
    if size > c.headSize { throw .invalid("rotary_size = \(size) exceeds head_size = \(c.headSize)") }
    if frequencies == nil {
      try require(theta, "theta", atLeast: 1)
    } else if theta != 0 {
      throw .invalid("theta = \(theta) beside frequencies, which take its place: set it to 0")
    }
    try requireFrequencies(frequencies, size / 2, "frequencies")
    try requireFrequencies(long_frequencies, size / 2, "long_frequencies")
    try requireFloat(scale, "scale")
    try requireFloat(long_scale, "long_scale")
    if long_frequencies == nil {
      if long_scale != 0 { throw .invalid("long_scale = \(long_scale), but long_frequencies is NULL") }
      if original_length != 0 {
        throw .invalid("original_length = \(Int(original_length)), but long_frequencies is NULL")
      }
    } else if original_length == 0 {
      throw .invalid("original_length = 0, but long_frequencies is not NULL: from which position on are they used?")
    }
  }
}

/// Angles of all positions fit what sines are taken of.
private func requireFrequencies(_ frequencies: UnsafePointer<Double>?, _ count: Int, _ name: StaticString) throws(Fault)
{
  guard let frequencies = try optional(UnsafeMutablePointer(mutating: frequencies), name) else { return }
  for i in 0..<count where !(frequencies[i].magnitude <= RotaryAngles.greatest) {
    throw .invalid("\(name)[\(i)] = \(frequencies[i]) is not in -1048576 ... 1048576 radians per position")
  }
}
