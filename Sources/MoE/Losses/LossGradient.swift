/// Gradient of d_aux_loss * aux_loss, and of what the caller adds to mean_probability.
struct LossGradient {
  private let slopes: LossSlopes
  private let c: Configuration
  private var routing: Routing
  private var firstToken = 0
  private let dAuxLoss: Float
  private let dMeanProbability: UnsafePointer<Float>?  // [E]
  private let probability: UnsafeMutablePointer<Float>  // [parts,E] d / d p[t,e]
  private let dSequenceProbability: UnsafePointer<Float>?  // [sequences,E]
  private let sequenceTokens: UnsafeMutablePointer<Int>  // [sequences] that count

  init(
    _ arena: inout Arena, _ c: Configuration, tape: TapeContents, dAuxLoss: Float,
    dMeanProbability: UnsafePointer<Float>?, dSequenceProbability: UnsafePointer<Float>?
  ) {
    self.c = c
    self.dAuxLoss = dAuxLoss
    self.dMeanProbability = dMeanProbability
    routing = tape.routing
    slopes = tape.slopes
    probability = arena.take(Float.self, c.hasGate ? slopes.parts : 0, c.experts)
    self.dSequenceProbability = dSequenceProbability
    sequenceTokens = arena.take(Int.self, c.hasGate ? slopes.sequences : 0)
  }

  /// The gradient of one chunk, whose first token is number 0.
  func part(_ chunk: Range<Int>, _ routing: Routing) -> LossGradient {
    var own = self
    own.routing = routing
    own.firstToken = chunk.lowerBound
    return own
  }

  func prepare() {
    guard c.hasGate else { return }
    let tokens = Double(max(routing.countedCount.pointee, 1))
    for part in 0..<slopes.parts {
      for e in 0..<c.experts {
        let i = part * c.experts + e
        let own = Double(dMeanProbability?[e] ?? 0) / tokens
        probability[i] = Float(Double(dAuxLoss) * Double(slopes.probability[i]) + own)
      }
    }
    guard dSequenceProbability != nil else { return }
    sequenceTokens.initialize(repeating: 0, count: slopes.sequences)
    for t in 0..<routing.tokens where routing.counts(t) { sequenceTokens[slopes.sequence(of: t)] += 1 }
  }

  func setProbabilityGradient(_ t: Int, _ dp: UnsafeMutablePointer<Float>) {
    guard routing.counts(t) else { return dp.update(repeating: 0, count: c.experts) }
    dp.update(from: probability + slopes.part(of: firstToken + t) * c.experts, count: c.experts)
    guard let dSequenceProbability else { return }
    let sequence = slopes.sequence(of: firstToken + t)
    let share = 1 / Float(sequenceTokens[sequence])
    for e in 0..<c.experts { dp[e] += dSequenceProbability[sequence * c.experts + e] * share }
  }

  /// lse's own gradient with respect to the logits is p.
  func logSumExpGradient(_ t: Int) -> Float {
    routing.counts(t) ? dAuxLoss * slopes.logSumExp.pointee * routing.logSumExp![t] : 0
  }

  /// dw [slots] += the gradient of losses of the weights in use.
  func addToWeights(_ t: Int, _ dw: UnsafeMutablePointer<Float>) {
    guard let slope = slopes.weight, routing.counts(t) else { return }
    let own = routing.indices + t * routing.slots
    for slot in 0..<routing.choices where own[slot].isExpert { dw[slot] += dAuxLoss * slope[Int(own[slot])] }
  }

  // For those that go on to the logits by themselves: slopes along share[t,e] and along the loads, to be multiplied by
  // `scale`.
  func shareSlopes(_ t: Int) -> UnsafePointer<Float> {
    UnsafePointer(slopes.share + slopes.part(of: firstToken + t) * c.experts)
  }
  var loadSlopes: UnsafePointer<Float>? { slopes.load.map { UnsafePointer($0) } }
  var scale: Float { dAuxLoss }
}
