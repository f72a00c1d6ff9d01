/// What a call sums up over tokens for its losses and its report, continued from rank to rank: the same chains of additions as in one
/// process.
struct SumsOfRanks {
  private let memory: UnsafeMutablePointer<Double>
  private let count: Int

  init(_ arena: inout Arena, _ c: Configuration, _ stages: ForwardStages) {
    var count = 2 * c.experts  // computed and dropped
    func add(_: UnsafeMutablePointer<Double>, _ n: Int) { count += n }
    stages.route.tokenSums.forEach(add)
    stages.statistics.sums.forEach(add)
    self.count = count
    memory = arena.take(Double.self, count)
  }

  /// Afterwards the statistics are those of all tokens.
  func addUp(
    over ranks: RanksPointer, _ c: Configuration, _ call: Call, _ stages: ForwardStages, _ bySequence: SequenceDetails
  ) throws(Fault) {
    let (statistics, first) = (stages.statistics, ranks.pointee.all.first)
    let losses = Losses(c, call, stages.route, statistics, nil)
    statistics.clear()
    try ranks.chain(memory, bytes: count * MemoryLayout<Double>.stride) { isFirst in
      if !isFirst { take(stages, c) }
      stages.route.tokenSums.add(0..<call.tokens, bySequence)
      losses.addTokens()
      if let entropies = stages.route.entropies { losses.addMeasures(from: first, entropies: entropies) }
      put(stages, c)
    }
    take(stages, c)
    let ofBlocks = statistics.sums.ofBlocks
    ofBlocks[0].add(ofBlocks[1])
  }

  private func put(_ stages: ForwardStages, _ c: Configuration) {
    var place = memory
    func put(_ sums: UnsafeMutablePointer<Double>, _ n: Int) {
      place.update(from: sums, count: n)
      place += n
    }
    stages.route.tokenSums.forEach(put)
    stages.statistics.sums.forEach(put)
    for e in 0..<c.experts {
      place[e] = Double(stages.statistics.computed[e])
      place[c.experts + e] = Double(stages.statistics.dropped[e])
    }
  }

  private func take(_ stages: ForwardStages, _ c: Configuration) {
    var place = memory
    func take(_ sums: UnsafeMutablePointer<Double>, _ n: Int) {
      sums.update(from: place, count: n)
      place += n
    }
    stages.route.tokenSums.forEach(take)
    stages.statistics.sums.forEach(take)
    for e in 0..<c.experts {
      stages.statistics.computed[e] = Int64(place[e])
      stages.statistics.dropped[e] = Int64(place[c.experts + e])
    }
  }
}

extension Losses {
  /// Adds the measures of each token, block by block as one process with all tokens has them: these are called `first` and so on.
  fileprivate func addMeasures(from first: Int, entropies: UnsafePointer<Float>) {
    let sums = statistics.sums.ofBlocks  // of the blocks that are done, and of the one that has begun
    for t in 0..<routing.tokens {
      if (first + t) % rowsPerBlock == 0 {
        sums[0].add(sums[1])
        sums[1] = BlockSums()
      }
      guard routing.counts(t) else { continue }
      let logSumExp = Double(routing.logSumExp![t])
      sums[1].add(BlockSums(squares: logSumExp * logSumExp, entropy: Double(entropies[t])))
    }
  }
}
