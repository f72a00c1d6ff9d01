import CShims

/// What queries of layers without rotation are multiplied by, so that attention stays sharp over many keys (Llama 4):
///     1 + a log(1 + floor((position + 1) / floor))
public struct Temperature {
  public let scale: Double  // a
  public let floor: Double  // at least 1

  public init(scale: Double, floor: Double) {
    self.scale = scale
    self.floor = floor
  }

  fileprivate func factor(_ position: Int) -> Float {
    let steps = (Double(position + 1) / floor).rounded(.down)
    return Float(1 + scale * naturalLogarithm(1 + steps))
  }
}

/// Rows of queries times the factors of their positions, in place. The backward is the same.
struct TemperatureJob: Job {
  let temperature: Temperature
  let kernels: UnsafePointer<moei_kernels>
  let positions: UnsafePointer<Int64>?  // [T]
  let sequenceLength: Int
  let tokens: Int  // T
  let width: Int
  let stride: Int
  let rows: UnsafeMutablePointer<Float>  // [T, width]

  private static var tokensPerItem: Int { 64 }

  func run(in context: ContextPointer, backward: Bool = false) throws(Fault) {
    try context.measure(.attention, backward: backward) { () throws(Fault) in
      try context.run((tokens + Self.tokensPerItem - 1) / Self.tokensPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    for t in item * Self.tokensPerItem..<min((item + 1) * Self.tokensPerItem, tokens) {
      let row = rows + t * stride
      let position = positions.map { Int($0[t]) } ?? t % sequenceLength
      kernels.pointee.scale(Int64(width), temperature.factor(position), row, row)
    }
  }
}
