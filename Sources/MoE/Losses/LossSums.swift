/// What losses and the report want of all tokens beside [T,E] arrays: counts, which are exact, and sums in double, in token order. Kept
/// apart from what is made of it, since the tokens of several ranks are added up one rank after another.
struct LossSums {
  private let start: UnsafeMutablePointer<Double>  // one array, so that the structure is small
  private let experts: Int
  private let hasWeights: Bool

  init(_ arena: inout Arena, _ c: Configuration) {
    experts = c.experts
    hasWeights = c.hasLossesOfWeights
    start = arena.take(Double.self, Self.ofAllBlocks + (BalanceFamily.Counts.ofChoices + 1) * c.experts)
  }

  private static var ofAllBlocks: Int { 2 * MemoryLayout<BlockSums>.stride / MemoryLayout<Double>.stride }
  private var count: Int { Self.ofAllBlocks + (BalanceFamily.Counts.ofChoices + (hasWeights ? 1 : 0)) * experts }

  func clear() { start.initialize(repeating: 0, count: count) }

  /// Of all blocks, then of the one that has begun.
  var ofBlocks: UnsafeMutablePointer<BlockSums> {
    UnsafeMutableRawPointer(start).assumingMemoryBound(to: BlockSums.self)
  }
  /// [E]
  func of(_ kind: BalanceFamily.Counts) -> UnsafeMutablePointer<Double> {
    start + Self.ofAllBlocks + Int(kind.rawValue) * experts
  }
  /// [E] of the weights in use
  var weights: UnsafeMutablePointer<Double> { start + Self.ofAllBlocks + BalanceFamily.Counts.ofChoices * experts }

  /// All of it.
  func forEach(_ body: (UnsafeMutablePointer<Double>, Int) -> Void) { body(start, count) }
}

extension Losses {
  /// Adds the call's tokens to the sums.
  func addTokens() {
    statistics.count(routing)
    for raw in UInt8(0)..<UInt8(BalanceFamily.Counts.ofChoices) {
      let kind = BalanceFamily.Counts(rawValue: raw)!
      if isWanted(kind) { count(kind) }
    }
    if c.hasLossesOfWeights { addWeights() }
  }

  private func isWanted(_ kind: BalanceFamily.Counts) -> Bool {
    if kind == .distinct && c.hasGate { return true }  // of the balance loss, which every report has
    for i in 0..<c.lossCount {
      switch c.lossKind(i) {
      case .variance where kind == .every: return true
      case .l1Balanced where kind == .weighed: return true
      case let loss: if loss.balanceFamily(topK: c.topK)?.counts == kind { return true }
      }
    }
    return false
  }

  /// [E] over the tokens that count, of the weights in use.
  private func addWeights() {
    let sums = statistics.sums.weights
    for t in 0..<routing.tokens where routing.counts(t) {
      for pair in t * routing.slots..<t * routing.slots + routing.choices where routing.indices[pair].isExpert {
        sums[Int(routing.indices[pair])] += Double(routing.weights[pair])
      }
    }
  }
}
