import CShims

/// Dropout on what attention and ffn add to the residual: kept with probability 1 - rate and then scaled by 1 / (1 - rate).
/// No mask is stored: whether an element is kept is a function of (seed, stream, step, element).
struct ResidualDropout {
  private let random: Random
  private let threshold: UInt32  // dropped below
  private let scale: Float

  /// nil where nothing is dropped.
  init?(_ c: ModelConfiguration, _ input: ModelInput, seed: UInt64, _ stream: ModelStream, context: ContextPointer) {
    guard input.training && c.dropout > 0 else { return nil }
    random = Random(kernels: context.kernels, seed: seed, stream: stream.rawValue, step: input.step)
    threshold = UInt32(Double(c.dropout) * 0x1p32)
    scale = Float(1 / (1 - Double(c.dropout)))
  }

  /// Forward on values, and backward on their gradients. `first` is a multiple of 4.
  func apply(_ values: UnsafeMutablePointer<Float>, first: Int, count: Int) {
    random.drop(values, count: count, first: UInt64(first / 4), threshold: threshold, scale: scale)
  }
}

/// y = dropout(y) + x, or without x dropout alone; with `from`, of that in place of y.
struct ResidualSum: Job {
  let kernels: UnsafePointer<moei_kernels>
  let count: Int
  var from: UnsafePointer<Float>?
  let dropout: ResidualDropout?
  var x: UnsafePointer<Float>?
  let y: UnsafeMutablePointer<Float>

  /// Elements that one item of work is; a multiple of 4.
  private static var elementsPerItem: Int { 1 << 14 }

  func run(in context: ContextPointer) throws(Fault) {
    if from == nil && dropout == nil && x == nil { return }
    try context.measure(.norm) { () throws(Fault) in
      try context.run((count + Self.elementsPerItem - 1) / Self.elementsPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let first = item * Self.elementsPerItem
    let part = min(Self.elementsPerItem, count - first)
    if let from { (y + first).update(from: from + first, count: part) }
    dropout?.apply(y + first, first: first, count: part)
    if let x { kernels.pointee.add(Int64(part), x + first, y + first) }
  }
}
