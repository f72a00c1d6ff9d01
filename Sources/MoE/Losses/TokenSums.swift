import CShims

/// What losses and statistics want of all tokens' probabilities, shares and chances, which are at hand for one wave of
/// tokens at a time: added up in double and in token order, so that how tokens come changes no bit.
struct TokenSums {
  let loads: UnsafeMutablePointer<Double>?  // [E] sums of chances, see SmoothLoad
  private let probability: UnsafeMutablePointer<Double>  // [E] sums; divided by the report
  // Of each of the config's losses, of the call or of the sequence that has begun:
  private let ownCounts: UnsafeMutablePointer<Double>  // [losses,E]
  private let ownValues: UnsafeMutablePointer<Double>  // [losses,E] sums
  private let sequenceLosses: UnsafeMutablePointer<Double>  // [losses] of the sequences that have ended
  private let sequenceSlopes: UnsafeMutablePointer<Float>?  // [losses by sequence, sequences, E], for backward
  private let sequences: Int
  private let ofSequence: UnsafeMutablePointer<Double>  // [E] sums of the sequence that has begun, for its report
  private let places: UnsafeMutablePointer<Int32>  // [K]
  private let best: UnsafeMutablePointer<Float>  // [K]
  private let c: Configuration
  private let call: Call
  private let kernels: UnsafePointer<moei_kernels>
  private let routing: Routing
  private let measures: LogitMeasures

  init(
    _ arena: inout Arena, _ c: Configuration, _ call: Call, kernels: UnsafePointer<moei_kernels>, routing: Routing,
    measures: LogitMeasures, statistics: CallStatistics, slopes: LossSlopes?
  ) {
    (self.c, self.call, self.kernels, self.routing, self.measures) = (c, call, kernels, routing, measures)
    probability = statistics.meanProbability
    loads = measures.chances == nil ? nil : arena.take(Double.self, c.experts)
    ownCounts = arena.take(Double.self, c.lossCount, c.experts)
    ownValues = arena.take(Double.self, c.lossCount, c.experts)
    sequenceLosses = arena.take(Double.self, c.lossCount)
    sequences = call.sequences(apart: true)
    let bySequence = c.lossesBySequence(among: c.lossCount)
    sequenceSlopes =
      slopes == nil || bySequence == 0 ? nil : arena.take(Float.self, bySequence * sequences, c.experts)
    ofSequence = arena.take(Double.self, c.experts)
    places = arena.take(Int32.self, c.lossCount == 0 ? 0 : c.topK)
    best = arena.take(Float.self, c.lossCount == 0 ? 0 : c.topK)
  }

  func start(_ bySequence: SequenceDetails) {
    ofSequence.initialize(repeating: 0, count: c.experts)
    bySequence.clear(sequences, c.experts)
    probability.initialize(repeating: 0, count: c.experts)
    loads?.initialize(repeating: 0, count: c.experts)
    ownCounts.initialize(repeating: 0, count: c.lossCount * c.experts)
    ownValues.initialize(repeating: 0, count: c.lossCount * c.experts)
    sequenceLosses.initialize(repeating: 0, count: c.lossCount)
    sequenceSlopes?.initialize(
      repeating: 0, count: c.lossesBySequence(among: c.lossCount) * sequences * c.experts)
  }

  /// Every array of sums, in one order.
  func forEach(_ body: (UnsafeMutablePointer<Double>, Int) -> Void) {
    body(probability, c.experts)
    if let loads { body(loads, c.experts) }
    body(ownCounts, c.lossCount * c.experts)
    body(ownValues, c.lossCount * c.experts)
    body(sequenceLosses, c.lossCount)
  }

  /// The tokens of a wave.
  func add(_ tokens: Range<Int>, _ bySequence: SequenceDetails) {
    if bySequence.isWanted { add(tokens, to: bySequence) }
    guard c.hasGate else { return }
    add(routing.probabilities, tokens, to: probability)
    if let loads, let chances = measures.chances { add(chances, tokens, to: loads) }
    for term in 0..<c.lossCount {
      guard let family = c.lossKind(term).balanceFamily(topK: c.topK) else { continue }
      if family.bySequence {
        addSequences(tokens, term, family)
      } else {
        add(tokens, term, family)
      }
    }
  }

  private func add(_ rows: TokenRows, _ tokens: Range<Int>, to sums: UnsafeMutablePointer<Double>) {
    for t in tokens where routing.counts(t) {
      let row = rows.of(t)
      for e in 0..<c.experts { sums[e] += Double(row[e]) }
    }
  }

  // MARK: the report by sequence

  private func add(_ tokens: Range<Int>, to bySequence: SequenceDetails) {
    call.forSequences(of: tokens, apart: true) { sequence, part in
      let number = sequence.lowerBound / max(sequence.count, 1)
      if c.hasGate {
        add(routing.probabilities, part, to: ofSequence)
        if let counts = bySequence.counts { countLargest(part, counts + number * c.experts) }
      }
      guard part.upperBound == sequence.upperBound else { return }
      let valid = call.counted(in: sequence)
      bySequence.valid?[number] = Int64(valid)
      for e in 0..<c.experts {
        bySequence.probability?[number * c.experts + e] = valid == 0 ? 0 : Float(ofSequence[e] / Double(valid))
      }
      ofSequence.update(repeating: 0, count: c.experts)
    }
  }

  /// counts [E] += the tokens whose most probable expert is e, the lowest among equals.
  private func countLargest(_ tokens: Range<Int>, _ counts: UnsafeMutablePointer<Int64>) {
    for t in tokens where routing.counts(t) {
      let p = routing.probabilities.of(t)
      var best = 0
      for e in 1..<max(c.experts, 1) where p[e] > p[best] { best = e }
      counts[best] += 1
    }
  }

  // MARK: losses of the balance family

  /// [E] of a term of the whole call that counts the largest.
  func counts(_ term: Int) -> UnsafeMutablePointer<Double> { ownCounts + term * c.experts }
  /// [E] sums of a term with means of its own.
  func values(_ term: Int) -> UnsafeMutablePointer<Double> { ownValues + term * c.experts }
  /// Others have the means of the call's probabilities.
  func hasOwnMeans(_ family: BalanceFamily) -> Bool { family.bySequence || family.ofShares && c.hasScoreShares }

  private func add(_ tokens: Range<Int>, _ term: Int, _ family: BalanceFamily) {
    let rows = family.ofShares ? measures.shares : routing.probabilities
    if hasOwnMeans(family) { add(rows, tokens, to: values(term)) }
    guard family.countsLargest else { return }
    let (counts, k) = (counts(term), family.counts == .largest ? 1 : c.topK)
    for t in tokens where routing.counts(t) {
      kernels.pointee.top_k(Int64(c.experts), Int64(k), rows.of(t), places, best)
      for i in 0..<k { counts[Int(places[i])] += 1 }
    }
  }

  private func addSequences(_ tokens: Range<Int>, _ term: Int, _ family: BalanceFamily) {
    call.forSequences(of: tokens, apart: true) { sequence, part in
      add(part, term, family)
      if part.upperBound == sequence.upperBound { end(sequence, term, family) }
    }
  }

  /// The loss of a sequence is known; the next one begins.
  private func end(_ sequence: Range<Int>, _ term: Int, _ family: BalanceFamily) {
    let tokens = Double(call.counted(in: sequence))
    if tokens == 0 { return }
    let (counts, values) = (counts(term), values(term))
    let slopes = slopes(term).map { $0 + sequence.lowerBound / sequence.count * c.experts }
    let coefficient = Double(c.losses![term].coefficient)
    let all = Double(call.ranks?.pointee.all.sequences ?? sequences)
    let factor = Double(c.experts) / (family.divisor(counts, tokens: tokens, c, call) * all)
    for e in 0..<c.experts {
      let slope = factor * counts[e]
      sequenceLosses[term] += slope * (values[e] / tokens)
      slopes?[e] = Float(coefficient * slope / tokens)
    }
    counts.update(repeating: 0, count: c.experts)
    values.update(repeating: 0, count: c.experts)
  }

  /// [sequences,E] of a term by sequence.
  private func slopes(_ term: Int) -> UnsafeMutablePointer<Float>? {
    sequenceSlopes.map { $0 + c.lossesBySequence(among: term) * sequences * c.experts }
  }

  /// The mean over all sequences; adds its slopes.
  func ofSequences(_ term: Int, _ family: BalanceFamily, _ slopes: LossSlopes?) -> Double {
    if let slopes, let own = self.slopes(term) {
      let to = family.ofShares && c.hasScoreShares ? slopes.share : slopes.probability
      for i in 0..<sequences * c.experts { to[i] += own[i] }
    }
    return sequenceLosses[term]
  }
}
