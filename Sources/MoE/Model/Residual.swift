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

/// Two jobs over items of the same rows: the second finds in the cache what the first has just read or written.
struct InTurn<First: Job, Second: Job>: Job {
  let first: First
  let second: Second

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    first.run(item, lane)
    second.run(item, lane)
  }
}

extension ResidualSum {
  /// y += x in the items of a norm.
  init(
    kernels: UnsafePointer<moei_kernels>, _ norm: Norm, rows: Int, x: UnsafePointer<Float>,
    y: UnsafeMutablePointer<Float>
  ) {
    self.init(kernels: kernels, count: rows * norm.hidden, dropout: nil, x: x, y: y)
    elementsPerItem = norm.rowsPerItem * norm.hidden
  }
}

extension NormForward {
  /// Of what a sum writes, without gaps.
  func run(after sum: ResidualSum, in context: ContextPointer) throws(Fault) {
    var sum = sum
    sum.elementsPerItem = norm.rowsPerItem * norm.hidden
    try context.measure(.norm) { () throws(Fault) in
      try context.run(norm.items(rows), InTurn(first: sum, second: self))
    }
  }
}
