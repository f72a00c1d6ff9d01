/// Sums of reports over many calls. Counts are exact; means over tokens are summed in double, each call with as much
/// weight as it has valid tokens.
public struct Statistics {
  /// The scalars of one call's report, or of many together.
  public struct Scalars {
    public var valid: Int64 = 0
    public var dropped: Int64 = 0
    public var balanceLoss = 0.0
    public var zLoss = 0.0
    public var auxLoss = 0.0
    public var entropy = 0.0

    public init() {}

    fileprivate mutating func addMeans(of other: Scalars, times weight: Double) {
      balanceLoss += weight * other.balanceLoss
      zLoss += weight * other.zLoss
      auxLoss += weight * other.auxLoss
      entropy += weight * other.entropy
    }
  }

  fileprivate let context: ContextPointer
  public let experts: Int
  let counts: UnsafeMutablePointer<Int64>  // [E]
  let dropped: UnsafeMutablePointer<Int64>  // [E]
  let probability: UnsafeMutablePointer<Double>  // [E], summed over tokens
  private var probabilityTokens = 0.0  // of the calls that had probabilities
  private var sums = Scalars()

  fileprivate init(
    _ context: ContextPointer, experts: Int, counts: UnsafeMutablePointer<Int64>,
    dropped: UnsafeMutablePointer<Int64>, probability: UnsafeMutablePointer<Double>
  ) {
    self.context = context
    self.experts = experts
    self.counts = counts
    self.dropped = dropped
    self.probability = probability
    reset()
  }

  public mutating func reset() {
    counts.initialize(repeating: 0, count: experts)
    dropped.initialize(repeating: 0, count: experts)
    probability.initialize(repeating: 0, count: experts)
    probabilityTokens = 0
    sums = Scalars()
  }

  /// Adds one call; its arrays are [E]. Refused whole when a count is negative or a sum leaves 63 bits.
  public mutating func add(
    _ call: Scalars, counts more: UnsafePointer<Int64>, dropped moreDropped: UnsafePointer<Int64>?,
    probability mean: UnsafePointer<Float>?
  ) throws(Fault) {
    if !fits(call.valid, sums.valid) { throw .doesNotAdd("n_valid", call.valid) }
    if !fits(call.dropped, sums.dropped) { throw .doesNotAdd("n_dropped", call.dropped) }
    for e in 0..<experts {
      if !fits(more[e], counts[e]) { throw .doesNotAdd("tokens_per_expert", more[e]) }
      if let n = moreDropped?[e], !fits(n, dropped[e]) { throw .doesNotAdd("dropped_per_expert", n) }
    }

    let weight = Double(call.valid)
    sums.valid += call.valid
    sums.dropped += call.dropped
    sums.addMeans(of: call, times: weight)
    for e in 0..<experts { counts[e] += more[e] }
    if let moreDropped { for e in 0..<experts { dropped[e] += moreDropped[e] } }
    if let mean {
      for e in 0..<experts { probability[e] += weight * Double(mean[e]) }
      probabilityTokens += weight
    }
  }

  /// The calls so far as one; fills the arrays [E] that are given. Means are 0 where there were no tokens.
  public func read(
    counts out: UnsafeMutablePointer<Int64>?, dropped outDropped: UnsafeMutablePointer<Int64>?,
    probability mean: UnsafeMutablePointer<Float>?
  ) -> Scalars {
    out?.update(from: counts, count: experts)
    outDropped?.update(from: dropped, count: experts)
    if let mean {
      for e in 0..<experts { mean[e] = probabilityTokens == 0 ? 0 : Float(probability[e] / probabilityTokens) }
    }
    var call = Scalars()
    call.valid = sums.valid
    call.dropped = sums.dropped
    if sums.valid > 0 { call.addMeans(of: sums, times: 1 / Double(sums.valid)) }
    return call
  }

  /// What a training state holds beside the arrays: tokens, dropped choices; sums.
  static var wholeSums: Int { 2 }
  static var realSums: Int { 5 }

  func getSums(_ whole: UnsafeMutablePointer<Int64>, _ real: UnsafeMutablePointer<Double>) {
    (whole[0], whole[1]) = (sums.valid, sums.dropped)
    (real[0], real[1], real[2], real[3]) = (sums.balanceLoss, sums.zLoss, sums.auxLoss, sums.entropy)
    real[4] = probabilityTokens
  }

  mutating func setSums(_ whole: UnsafePointer<Int64>, _ real: UnsafePointer<Double>) {
    (sums.valid, sums.dropped) = (whole[0], whole[1])
    (sums.balanceLoss, sums.zLoss, sums.auxLoss, sums.entropy) = (real[0], real[1], real[2], real[3])
    probabilityTokens = real[4]
  }

  public var load: Load { Load(counts, experts: experts) }
}

private func fits(_ more: Int64, _ sum: Int64) -> Bool { more >= 0 && more <= .max - sum }

extension Fault {
  fileprivate static func doesNotAdd(_ name: StaticString, _ value: Int64) -> Fault {
    .invalid("report: \(name) has \(Int(value)), which is negative or too large to be added up")
  }
}

// MARK: life

public typealias StatisticsPointer = UnsafeMutablePointer<Statistics>

extension UnsafeMutablePointer where Pointee == Statistics {
  public static func create(experts: Int, in context: ContextPointer) throws(Fault) -> StatisticsPointer {
    let parts = try context.pointee.allocator.make { StatisticsParts(&$0, experts: experts) }
    parts.statistics.initialize(
      to: Statistics(
        context, experts: experts, counts: parts.counts, dropped: parts.dropped, probability: parts.probability))
    context.retain()
    return parts.statistics
  }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

/// One block of memory: the handle, then its sums.
private struct StatisticsParts {
  let statistics: StatisticsPointer
  let counts: UnsafeMutablePointer<Int64>
  let dropped: UnsafeMutablePointer<Int64>
  let probability: UnsafeMutablePointer<Double>

  init(_ arena: inout Arena, experts: Int) {
    statistics = arena.take(Statistics.self, 1)
    counts = arena.take(Int64.self, experts)
    dropped = arena.take(Int64.self, experts)
    probability = arena.take(Double.self, experts)
  }
}
