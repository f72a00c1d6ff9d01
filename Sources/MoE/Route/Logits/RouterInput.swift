import CShims

// What the gate reads: x, or x after jitter, a norm and dropout. Without these nothing is copied.

/// A change of elements one by one, which backward does to their gradients as forward does to them. Elements are `first` ..<
/// first + count of the array that `values` are from.
protocol ElementChange {
  func apply(_ values: UnsafeMutablePointer<Float>, first: Int, count: Int)
}

/// Every element times a number from 1 - jitter to 1 + jitter [Switch 2021].
struct Jitter: ElementChange {
  let random: Random
  let size: Float
  private let given: UnsafePointer<Float>?  // [T,H] of the whole call
  private let base: Int  // of the first element

  init?(_ c: Configuration, _ draws: Draws) {
    guard draws.training && c.exploration.jitter > 0 else { return nil }
    random = draws.of(.jitter)
    given = draws.given.jitter
    size = c.exploration.jitter
    base = draws.firstToken * c.hidden
  }

  func apply(_ values: UnsafeMutablePointer<Float>, first: Int, count: Int) {
    if let given {
      for i in 0..<count { values[i] *= 1 + size * given[base + first + i] }
      return
    }
    let stretch = 256  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(of: Float.self, capacity: stretch) { factors in
      for from in stride(from: 0, to: count, by: stretch) {
        let n = min(stretch, count - from)
        random.fillUniform(factors.baseAddress!, from: base + first + from, count: n, bound: size)
        for i in 0..<n { values[from + i] *= 1 + factors[i] }
      }
    }
  }
}

/// Dropout on an array of the gate's.
struct RouterDropout: ElementChange {
  private let dropout: InvertedDropout
  private let base: Int  // of the first element

  init?(_ c: Configuration, _ draws: Draws, onLogits: Bool) {
    guard draws.training && c.exploration.dropout > 0 && c.exploration.dropoutOnLogits == onLogits else { return nil }
    dropout = InvertedDropout(rate: c.exploration.dropout, draws.of(.routerDropout))
    base = draws.firstToken * (onLogits ? c.experts : c.hidden)
  }

  func apply(_ values: UnsafeMutablePointer<Float>, first: Int, count: Int) {
    dropout.apply(values, count: count, from: base + first)
  }
}

/// x [T,H] with jitter, for the experts too.
struct JitteredTokens: Job {
  let rows: UnsafePointer<Float>  // [T,H]
  private let c: Configuration
  private let x: UnsafePointer<Float>
  private let own: UnsafeMutablePointer<Float>?
  private let jitter: Jitter?
  private let tokens: Int

  init(_ arena: inout Arena, _ c: Configuration, _ draws: Draws, x: UnsafePointer<Float>, tokens: Int) {
    self.c = c
    self.x = x
    self.tokens = tokens
    jitter = c.exploration.jitterExperts ? Jitter(c, draws) : nil
    own = jitter == nil ? nil : arena.take(Float.self, tokens, c.hidden)
    rows = own.map { UnsafePointer($0) } ?? x
  }

  func run(in context: ContextPointer) throws(Fault) {
    if jitter != nil { try context.run(blocks(of: tokens), self) }
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = MoE.rows(ofBlock: block, in: tokens)
    let (first, count) = (range.lowerBound * c.hidden, range.count * c.hidden)
    (own! + first).update(from: x + first, count: count)
    jitter!.apply(own! + first, first: first, count: count)
  }

  // MARK: backward

  /// dx of x itself, in place, for one block.
  func backward(_ block: Int, _ dx: UnsafeMutablePointer<Float>) {
    let range = MoE.rows(ofBlock: block, in: tokens)
    jitter?.apply(dx + range.lowerBound * c.hidden, first: range.lowerBound * c.hidden, count: range.count * c.hidden)
  }
}

struct RouterInput: RouteStage, Job {
  let work: RouteWork
  let rows: UnsafePointer<Float>  // [T,H], x itself where there is nothing to do
  let own: UnsafeMutablePointer<Float>?
  let jitter: Jitter?
  let rowNorm: RouterNorm?
  let dropout: RouterDropout?

  private var tokens: Int { work.tokens }
  private var norm: BatchNorm? { c.exploration.batchNorm.map { BatchNorm(work: work, plan: $0) } }

  init(
    _ arena: inout Arena, _ work: RouteWork
  ) {
    self.work = work
    let c = work.c
    jitter = c.exploration.jitterExperts ? nil : Jitter(c, work.draws)
    rowNorm = RouterNorm(&arena, work)
    dropout = RouterDropout(c, work.draws, onLogits: false)
    let changes = jitter != nil || c.exploration.batchNorm != nil || rowNorm != nil || dropout != nil
    own = changes ? arena.take(Float.self, work.tokens, c.hidden) : nil
    rows = own.map { UnsafePointer($0) } ?? work.x
  }

  /// `again`: in backward, where the statistics are known and running ones stay as they are.
  func run(in context: ContextPointer, again: Bool) throws(Fault) {
    guard let own else { return }
    try context.run(blocks(of: tokens), self)
    if let norm {
      if !again { try norm.measure(own, in: context) }
      try context.run(blocks(of: tokens), NormalizeRows(norm: norm, rows: own))
    }
    if let rowNorm { try rowNorm.run(own, in: context) }
    try change(own, by: dropout, in: context)
  }

  /// The gate's own copy of x.
  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = MoE.rows(ofBlock: block, in: tokens)
    let (first, count) = (range.lowerBound * c.hidden, range.count * c.hidden)
    (own! + first).update(from: work.x + first, count: count)
    jitter?.apply(own! + first, first: first, count: count)
  }

  // MARK: backward

  /// From the gradient of what the gate read to that of x, in place; and those of the batch norm's parameters.
  func backward(_ dRows: UnsafeMutablePointer<Float>, in context: ContextPointer) throws(Fault) {
    try change(dRows, by: dropout, in: context)
    if let norm {
      try context.run(blocks(of: tokens), self)  // what was normalised, once more
      try norm.backward(dRows, own!, in: context)
    }
    if let rowNorm {
      try context.run(blocks(of: tokens), self)  // as above
      try rowNorm.backward(dRows, own!, in: context)
    }
    try change(dRows, by: jitter, in: context)
  }

  private func change<C: ElementChange>(
    _ rows: UnsafeMutablePointer<Float>, by change: C?, in context: ContextPointer
  ) throws(Fault) {
    guard let change else { return }
    try context.run(blocks(of: tokens), ChangeRows(change: change, rows: rows, hidden: c.hidden, tokens: tokens))
  }
}

/// A change of each element by its place, for all rows of an array [T,H].
private struct ChangeRows<C: ElementChange>: Job {
  let change: C
  let rows: UnsafeMutablePointer<Float>
  let hidden: Int
  let tokens: Int

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let range = MoE.rows(ofBlock: block, in: tokens)
    let first = range.lowerBound * hidden
    change.apply(rows + first, first: first, count: range.count * hidden)
  }
}
