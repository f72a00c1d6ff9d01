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
  var elementsPerItem = 1 << 14

  func run(in context: ContextPointer) throws(Fault) {
    if from == nil && dropout == nil && factor == 1 && x == nil { return }
    try context.measure(.norm) { () throws(Fault) in
      try context.run((count + elementsPerItem - 1) / elementsPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let first = item * elementsPerItem
    let part = min(elementsPerItem, count - first)
    if let from { (y + first).update(from: from + first, count: part) }
    dropout?.apply(y + first, count: part, from: firstElement + first)
    if factor != 1 { kernels.pointee.scale(Int64(part), factor, y + first, y + first) }
    if let x { kernels.pointee.add(Int64(part), x + first, y + first) }
  }
}

// MARK: beside norms

extension ResidualSum {
  /// In the items of a norm of as many rows, which have no gaps.
  fileprivate func inItems(of norm: Norm) -> ResidualSum {
    var own = self
    own.elementsPerItem = norm.rowsPerItem * norm.hidden
    return own
  }
}

extension NormForward {
  /// Of what the sum writes.
  func run(after sum: ResidualSum, in context: ContextPointer) throws(Fault) {
    try context.measure(.norm) { () throws(Fault) in
      try context.run(norm.items(rows), InTurn(first: sum.inItems(of: norm), second: self))
    }
  }
}

extension NormBackward {
  /// dx, which may take the place of dy, is added to `d` too; both have no gaps.
  func run(addedTo d: UnsafeMutablePointer<Float>?, in context: ContextPointer) throws(Fault) {
    guard let d, let dx else { return try run(in: context) }
    let sum = ResidualSum(kernels: kernels, count: rows * norm.hidden, dropout: nil, x: UnsafePointer(dx), y: d)
    try run(then: sum.inItems(of: norm), in: context)
  }
}
