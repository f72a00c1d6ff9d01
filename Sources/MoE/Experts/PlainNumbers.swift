import CShims

/// What the row-major products need of other types than float32: weights as floats, and values rounded where the tiled experts
/// store them.
protocol PlainJob: GroupJob {
  var floats: UnsafeMutablePointer<Float>? { get }  // [lanes, H, I] one matrix for each thread; nil in float32
}

extension GroupWork {
  func floats(_ arena: inout Arena) -> UnsafeMutablePointer<Float>? {
    c.weights == .f32 ? nil : arena.take(Float.self, lanes * c.hidden, c.intermediate)
  }
}

extension PlainJob {
  /// An expert's matrix, until the thread's next call.
  func matrix(_ role: Parameters.Role, _ expert: Int, _ lane: Int) -> UnsafePointer<Float> {
    let size = c.hidden * c.intermediate
    let start = parameters.place(ofExpert: expert) * size
    guard let floats else { return UnsafePointer(parameters.data(role)!) + start }
    c.weights.toFloats(parameters.memory(role)!, start, size, floats + lane * size, kernels)
    return UnsafePointer(floats + lane * size)
  }

  func round(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
    c.weights.format.precision.round(values, count, kernels)
  }
}
