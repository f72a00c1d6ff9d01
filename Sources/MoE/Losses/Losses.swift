// Losses that keep the router healthy, and the statistics that show whether it is. Sums over tokens run in ascending
// order and in double, so that they do not depend on how the tokens were divided; those over [T,E] arrays run while a
// wave of tokens is routed (TokenSums.swift). Each loss gives its value and adds to
// the slopes that its gradient is made from; backward has only to apply them. LossTerm.swift lists them.

/// Losses and statistics of one call.
public struct Report {
  public var balanceLoss: Float = 0
  public var zLoss: Float = 0
  public var auxLoss: Float = 0
  public var entropy: Float = 0
  public var valid = 0
  public var dropped = 0
  public var load = Load()
}

extension Report {
  /// `slopes` where there will be a backward.
  init(
    _ c: Configuration, _ call: Call, _ route: RouterForward, _ statistics: CallStatistics, _ slopes: LossSlopes?
  ) {
    let routing = route.routing
    statistics.losses.initialize(repeating: 0, count: c.lossCount)
    slopes?.clear(c)
    let losses = Losses(c, call, route, statistics, slopes)
    // Over several ranks that has been done, from rank to rank.
    if call.ranks == nil {
      statistics.clear()
      losses.addTokens()
      losses.addBlocks(route.sums)
    }
    dropped = statistics.droppedTotal
    load = Load(statistics.computed, experts: c.experts)
    valid = routing.countedCount.pointee
    if valid == 0 { return }
    if c.hasGate { for e in 0..<c.experts { statistics.meanProbability[e] /= Double(valid) } }
    entropy = Float(statistics.sums.ofBlocks.pointee.entropy / Double(valid))
    var objective = 0.0
    func add(_ kind: LossTerm.Kind, _ coefficient: Float, term: Int? = nil) -> Float {
      let value = losses.value(kind, Double(coefficient), term: term)
      objective += Double(coefficient) * value
      return Float(value)
    }
    if c.hasGate {
      balanceLoss = add(.balance, c.balanceCoefficient)
      zLoss = add(.z, c.zCoefficient)
    }
    for i in 0..<c.lossCount { statistics.losses[i] = add(c.lossKind(i), c.losses![i].coefficient, term: i) }
    auxLoss = Float(objective)
  }
}

/// What the losses of a call with T > 0 tokens that count are made from.
struct Losses {
  let c: Configuration
  let call: Call
  let routing: Routing
  let firstTaken: UnsafePointer<Int32>?  // [T] where experts choose
  let sums: TokenSums
  let statistics: CallStatistics
  let slopes: LossSlopes?

  init(
    _ c: Configuration, _ call: Call, _ route: RouterForward, _ statistics: CallStatistics, _ slopes: LossSlopes?
  ) {
    (self.c, self.call, routing, firstTaken) = (c, call, route.routing, route.firstTaken)
    (sums, self.statistics, self.slopes) = (route.tokenSums, statistics, slopes)
  }

  /// The sum of logsumexp^2.
  var squares: Double { statistics.sums.ofBlocks.pointee.squares }
  var valid: Double { Double(routing.countedCount.pointee) }
  /// Those that do not count among them.
  var allTokens: Double { Double(call.ranks?.pointee.all.tokens ?? routing.tokens) }

  /// Adds what blocks of tokens have summed up.
  fileprivate func addBlocks(_ blockSums: UnsafePointer<BlockSums>) {
    if !c.hasGate { return }
    for block in 0..<blocks(of: routing.tokens) { statistics.sums.ofBlocks.pointee.add(blockSums[block]) }
  }
}
