import CShims

extension InvertedDropout {
  /// Of what attention and ffn add to the residual; nil where nothing is dropped.
  init?(_ c: ModelConfiguration, _ input: ModelInput, seed: UInt64, _ stream: ModelStream, context: ContextPointer) {
    guard input.training && c.dropout > 0 else { return nil }
    let random = Random(kernels: context.kernels, seed: seed, stream: stream.rawValue, step: input.step)
    self.init(rate: c.dropout, random)
  }
}

/// y = factor * dropout(y) + x, or without x the first term alone; with `from`, of that in place of y.
struct ResidualSum: Job {
  let kernels: UnsafePointer<moei_kernels>
  let count: Int
  var from: UnsafePointer<Float>?
  let dropout: InvertedDropout?
  /// Number of the first element where some are dropped.
  var firstElement = 0
  var factor: Float = 1
  var x: UnsafePointer<Float>?
  let y: UnsafeMutablePointer<Float>

  /// Elements that one item of work is; a multiple of 4.
  private static var elementsPerItem: Int { 1 << 14 }

  func run(in context: ContextPointer) throws(Fault) {
    if from == nil && dropout == nil && factor == 1 && x == nil { return }
    try context.measure(.norm) { () throws(Fault) in
      try context.run((count + Self.elementsPerItem - 1) / Self.elementsPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let first = item * Self.elementsPerItem
    let part = min(Self.elementsPerItem, count - first)
    if let from { (y + first).update(from: from + first, count: part) }
    dropout?.apply(y + first, count: part, from: firstElement + first)
    if factor != 1 { kernels.pointee.scale(Int64(part), factor, y + first, y + first) }
    if let x { kernels.pointee.add(Int64(part), x + first, y + first) }
  }
}
