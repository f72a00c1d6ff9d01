import CShims

/// The chance of an expert to be among a token's K best if its noise were drawn once more [Shazeer 2017, appendix A]:
///
///     chance(t,e) = Phi(q),   q = (clean(t,e) - threshold(t,e)) / deviation(t,e)
///
/// clean are the logits before the noise. The threshold is the (K+1)-th largest of the noisy ones for the K best, and the
/// K-th for the others. An expert whose logit is minus infinity has no chance. K < E.
struct SmoothLoad {
  private let c: Configuration
  private let kernels: UnsafePointer<moei_kernels>
  private let clean: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E]
  private let dDeviations: UnsafeMutablePointer<Float>  // [lanes, rowsPerBlock, E]
  private let ofLanes: UnsafeMutablePointer<Float>  // [lanes,3,E] q, chance, density
  private let best: UnsafeMutablePointer<Float>  // [lanes,K+1] noisy logits
  private let places: UnsafeMutablePointer<Int32>  // [lanes,K+1]

  /// nil where no loss asks for it. `backward`: for gradients too.
  init?(_ arena: inout Arena, _ c: Configuration, context: ContextPointer, backward: Bool) {
    guard c.hasSmoothLoads else { return nil }
    self.c = c
    kernels = context.kernels
    let rows = context.lanes * rowsPerBlock
    clean = arena.take(Float.self, rows, c.experts)
    dDeviations = arena.take(Float.self, backward && c.exploration.noise == .learned ? rows : 0, c.experts)
    ofLanes = arena.take(Float.self, 3 * context.lanes, c.experts)
    best = arena.take(Float.self, context.lanes, c.topK + 1)
    places = arena.take(Int32.self, context.lanes, c.topK + 1)
  }

  /// Where a block's clean logits are put, [rows, E].
  func clean(_ lane: Int) -> UnsafeMutablePointer<Float> { clean + lane * rowsPerBlock * c.experts }

  /// One token of a block: its noisy logits [E], and the deviations [E] of learned noise.
  struct Token {
    let number: Int
    let row: Int  // in the block
    let z: UnsafePointer<Float>
    let deviations: UnsafePointer<Float>?
  }

  private func deviation(_ token: Token, _ e: Int) -> Float { token.deviations?[e] ?? c.exploration.noiseDeviation }

  /// q, chance and density [E] of one token, in the thread's memory; `places` holds its K + 1 best.
  private func measure(
    _ token: Token, _ lane: Int
  ) -> (q: UnsafeMutablePointer<Float>, chance: UnsafeMutablePointer<Float>, density: UnsafeMutablePointer<Float>) {
    let (e, k) = (c.experts, c.topK)
    let q = ofLanes + 3 * lane * e
    let (best, places) = (best + lane * (k + 1), places + lane * (k + 1))
    kernels.pointee.top_k(Int64(e), Int64(k + 1), token.z, places, best)
    let clean = clean(lane) + token.row * e
    func place(_ e: Int, threshold: Float) {
      if token.z[e] == -.infinity {
        q[e] = -.infinity
      } else {
        q[e] = threshold == -.infinity ? .infinity : (clean[e] - threshold) / deviation(token, e)
      }
    }
    for e in 0..<e { place(e, threshold: best[k - 1]) }
    for i in 0..<k { place(Int(places[i]), threshold: best[k]) }
    kernels.pointee.normal(Int64(e), q, q + e, q + 2 * e)
    return (q, q + e, q + 2 * e)
  }

  /// chance [E] of one token.
  func fill(_ chance: UnsafeMutablePointer<Float>, _ token: Token, _ lane: Int) {
    chance.update(from: measure(token, lane).chance, count: c.experts)
  }

  // MARK: backward

  /// For d chance = scale * slopes [E]: the token's clean logits become their gradient, and the deviations get theirs.
  /// A threshold is a noisy logit: its gradient goes on to that expert's clean logit and deviation.
  func backward(_ slopes: UnsafePointer<Float>, scale: Float, _ token: Token, noise: Noise, _ lane: Int) {
    let (e, k) = (c.experts, c.topK)
    let places = places + lane * (k + 1)
    let (q, _, density) = measure(token, lane)
    let dClean = clean(lane) + token.row * e
    let dDeviations = dDeviations(lane).map { $0 + token.row * e }
    var (all, ofBest) = (0.0, 0.0)
    for e in 0..<e {
      dClean[e] = scale * slopes[e] * density[e] / deviation(token, e)
      // An infinite q does not move.
      dDeviations?[e] = density[e] == 0 ? 0 : -dClean[e] * q[e]
      all += Double(dClean[e])
    }
    for i in 0..<k { ofBest += Double(dClean[Int(places[i])]) }
    func pass(_ d: Double, to expert: Int) {
      dClean[expert] -= Float(d)
      dDeviations?[expert] -= Float(d) * noise.draw(token.number, expert)
    }
    pass(ofBest, to: Int(places[k]))
    pass(all - ofBest, to: Int(places[k - 1]))
  }

  /// What `backward` left of a block, [rows, E]: of the clean logits, and of learned deviations.
  func dClean(_ lane: Int) -> UnsafePointer<Float> { UnsafePointer(clean(lane)) }
  func dDeviations(_ lane: Int) -> UnsafeMutablePointer<Float>? {
    c.exploration.noise == .learned ? dDeviations + lane * rowsPerBlock * c.experts : nil
  }
}
