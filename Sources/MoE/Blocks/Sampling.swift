import CShims

/// How the next token is drawn from its logits z. The repetition penalty changes those of tokens that have been
/// [Keskar et al. 2019]. At temperature 0 it is the largest, the lowest index among equals; else p = softmax(z / temperature),
/// of which the top k, of these the fewest, most likely ones that hold a share of at least topP [Holtzman et al. 2019], and
/// of these the ones that are at least minP times as likely as the most likely one [Nguyen et al. 2024], are left. The token
/// is the first with which the sum over those left, most likely first (by index, where neither top k nor top p chooses),
/// exceeds u times the sum over all of them; u is uniform in [0, 1).
public struct Sampling {
  let temperature: Double
  let topK: Int  // 0 = all
  let topP: Double  // 1 = all, 0 = the most likely alone
  let minP: Double  // 0 = all
  let penalty: Float  // 1 = none
  var seed: UInt64

  public init(temperature: Double, topK: Int, topP: Double, minP: Double, penalty: Float, seed: UInt64) {
    self.temperature = temperature
    self.topK = topK
    self.topP = topP
    self.minP = minP
    self.penalty = penalty
    self.seed = seed
  }

  public func token(
    _ z: UnsafePointer<Float>, _ vocabulary: Int, draw: UInt64, after history: TokenHistory, in context: ContextPointer
  ) throws(Fault) -> Int32 {
    let kernels = context.kernels
    let bad = Int(kernels.pointee.first_not_finite(Int64(vocabulary), z))
    if bad < vocabulary { throw Fault(.notFinite, "logits[\(bad)] = \(Double(z[bad])) is NaN or plus infinity") }
    let penalises = penalty != 1 && !history.isEmpty
    if temperature == 0 && !penalises { return try best(z, vocabulary, kernels).token }

    var token: Int32 = 0
    try context.withScratch({
      (
        $0.take(Float.self, penalises ? vocabulary : 0),
        Candidates(&$0, temperature == 0 ? 0 : vocabulary)
      )
    }) { (room) throws(Fault) in
      let (penalised, candidates) = room
      if penalises { history.penalise(z, vocabulary, by: penalty, into: penalised) }
      let z = penalises ? UnsafePointer(penalised) : z
      let best = try best(z, vocabulary, kernels)
      if temperature == 0 {
        token = best.token
        return
      }
      candidates.fill(z, largest: best.logit, temperature: temperature, kernels)
      token = Int32(truncatingIfNeeded: drawn(from: candidates, vocabulary, best: Int(best.token), draw, kernels))
    }
    return token
  }

  private func best(
    _ z: UnsafePointer<Float>, _ vocabulary: Int, _ kernels: UnsafePointer<moei_kernels>
  ) throws(Fault) -> (token: Int32, logit: Float) {
    var (largest, token): (Float, Int32) = (0, 0)
    kernels.pointee.top_k(Int64(vocabulary), 1, z, &token, &largest)
    if largest == -.infinity { throw Fault(.notFinite, "logits: none is above minus infinity") }
    return (token, largest)
  }

  private func drawn(
    from candidates: Candidates, _ vocabulary: Int, best: Int, _ draw: UInt64, _ kernels: UnsafePointer<moei_kernels>
  ) -> Int {
    // Two of the words that the seed has for this draw: 53 bits.
    let u = Random(kernels: kernels, seed: seed, stream: Draws.Stream.sampling.rawValue, step: 0).uniform(draw)
    let least = minP * candidates.probability(best)
    let k = topK == 0 ? vocabulary : min(topK, vocabulary)
    return k == vocabulary && topP == 1 ? candidates.drawn(u, least) : candidates.drawn(u, k, topP, least)
  }
}

/// The tokens of a sequence so far, in up to three stretches.
public struct TokenHistory {
  public typealias Stretch = UnsafeBufferPointer<Int32>
  private var stretches: InlineArray<3, Stretch>

  public init(
    _ first: Stretch, _ second: Stretch = Stretch(start: nil, count: 0),
    _ third: Stretch = Stretch(start: nil, count: 0)
  ) {
    stretches = [first, second, third]
  }

  var isEmpty: Bool { stretches[0].isEmpty && stretches[1].isEmpty && stretches[2].isEmpty }

  /// Each token once: what is written depends on z alone.
  fileprivate func penalise(
    _ z: UnsafePointer<Float>, _ vocabulary: Int, by penalty: Float, into result: UnsafeMutablePointer<Float>
  ) {
    result.update(from: z, count: vocabulary)
    for i in 0..<stretches.count {
      for token in stretches[i] {
        let logit = z[Int(token)]
        let penalised = logit < 0 ? logit * penalty : logit / penalty
        let most = Float.greatestFiniteMagnitude
        result[Int(token)] = logit.isFinite ? min(max(penalised, -most), most) : logit
      }
    }
  }
}

/// The probabilities of all tokens, and an order of them.
private struct Candidates {
  private let count: Int
  private let p: UnsafeMutablePointer<Float>  // [V]
  private let heap: UnsafeMutablePointer<UInt64>  // [V] logit, the largest being the smallest number, then index

  init(_ arena: inout Arena, _ count: Int) {
    self.count = count
    p = arena.take(Float.self, count)
    heap = arena.take(UInt64.self, count)
  }

  func fill(
    _ z: UnsafePointer<Float>, largest: Float, temperature: Double, _ kernels: UnsafePointer<moei_kernels>
  ) {
    for i in 0..<count {
      // The difference first: at low temperatures z / temperature would leave float32's range.
      p[i] = Float(Double(z[i] - largest) / temperature)
      heap[i] = UInt64(Ranking.descending(z[i])) << 32 | UInt64(i)
    }
    var unused: (Float, Float) = (0, 0)  // log-sum-exp, and the entropy, which has no meaning when softmax is in place
    kernels.pointee.softmax(Int64(count), p, p, &unused.0, &unused.1)
  }

  func probability(_ token: Int) -> Double { Double(p[token]) }

  /// Of those with a probability of at least `least`, by index.
  func drawn(_ u: Double, _ least: Double) -> Int {
    if least == 0 { return first(in: count, above: u * sumOfAll) { $0 } }
    var sum = 0.0
    for i in 0..<count {
      if Double(p[i]) < least { p[i] = 0 }
      sum += Double(p[i])
    }
    return first(in: count, above: u * sum) { $0 }
  }

  /// Of the k most likely those that hold a share of topP, with a probability of at least `least`.
  func drawn(_ u: Double, _ k: Int, _ topP: Double, _ least: Double) -> Int {
    for root in stride(from: count / 2 - 1, through: 0, by: -1) { siftDown(root, count) }
    var total = sumOfAll
    if k < count {
      total = 0
      for place in 0..<k { total += Double(p[takeNext(place)]) }
    }
    var (kept, sum) = (0, 0.0)
    while kept < k && (kept == 0 || sum < topP * total) {
      let next = Double(p[k < count ? taken(kept) : takeNext(kept)])
      if kept > 0 && next < least { break }
      sum += next
      kept += 1
    }
    return first(in: kept, above: u * sum, taken)
  }

  private var sumOfAll: Double {
    var sum = 0.0
    for i in 0..<count { sum += Double(p[i]) }
    return sum
  }

  /// The first of some tokens with which the sum of probabilities exceeds `limit`.
  private func first(in count: Int, above limit: Double, _ token: (Int) -> Int) -> Int {
    var (sum, last) = (0.0, 0)
    for place in 0..<count where p[token(place)] > 0 {
      last = token(place)
      sum += Double(p[last])
      if sum > limit { break }
    }
    return last
  }

  // A heap gives the most likely tokens one after the other, as many as are wanted, and keeps them at its end.

  /// The next most likely after `place` of them.
  private func takeNext(_ place: Int) -> Int {
    let end = count - place - 1
    heap.swapElements(0, end)
    siftDown(0, end)
    return taken(place)
  }

  private func taken(_ place: Int) -> Int { Int(heap[count - place - 1] & 0xFFFF_FFFF) }

  private func siftDown(_ root: Int, _ end: Int) {
    var root = root
    while 2 * root + 1 < end {
      var child = 2 * root + 1
      if child + 1 < end && heap[child + 1] < heap[child] { child += 1 }
      if heap[root] <= heap[child] { return }
      heap.swapElements(root, child)
      root = child
    }
  }
}

extension UnsafeMutablePointer {
  fileprivate func swapElements(_ i: Int, _ j: Int) { (self[i], self[j]) = (self[j], self[i]) }
}
