/// The slopes of aux_loss, which forward leaves for backward: all that losses need for their gradients. Counts are
/// constants, so a slope is the same for all tokens of a sequence.
struct LossSlopes {
  /// Sequences that have slopes of their own; 1 where losses are of the whole call.
  let parts: Int
  private let tokensPerPart: Int
  let sequences: Int
  private let sequenceLength: Int
  let experts: Int
  let probability: UnsafeMutablePointer<Float>  // [parts,E] along p[t,e]; empty without a gate
  let share: UnsafeMutablePointer<Float>  // [parts,E] along scores divided by their sum
  let weight: UnsafeMutablePointer<Float>?  // [E] along the weights of chosen experts
  let load: UnsafeMutablePointer<Float>?  // [E] along smooth loads
  let logSumExp: UnsafeMutablePointer<Float>  // 1: along lse[t], divided by lse[t]

  init(_ arena: inout Arena, _ c: Configuration, _ call: Call) {
    let apart = c.hasLossesBySequence
    parts = call.sequences(apart: apart)
    tokensPerPart = apart ? max(call.sequenceLength, 1) : max(call.tokens, 1)
    sequences = call.sequences(apart: true)
    sequenceLength = max(call.sequenceLength, 1)
    experts = c.experts
    probability = arena.take(Float.self, c.hasGate ? parts : 0, c.experts)
    share = arena.take(Float.self, c.hasScoreShares ? parts : 0, c.experts)
    weight = c.hasLossesOfWeights ? arena.take(Float.self, c.experts) : nil
    load = c.hasSmoothLoads ? arena.take(Float.self, c.experts) : nil
    logSumExp = arena.take(Float.self, 1)
  }

  func clear(_ c: Configuration) {
    probability.initialize(repeating: 0, count: c.hasGate ? parts * experts : 0)
    share.initialize(repeating: 0, count: c.hasScoreShares ? parts * experts : 0)
    weight?.initialize(repeating: 0, count: experts)
    load?.initialize(repeating: 0, count: experts)
    logSumExp.pointee = 0
  }

  func part(of t: Int) -> Int { t / tokensPerPart }
  func sequence(of t: Int) -> Int { t / sequenceLength }

  /// A loss of one sequence reaches the slopes of that one, a loss of the whole call those of all.
  func add(_ slope: Double, toShares: Bool, _ e: Int, sequence: Int?) {
    let slopes = toShares ? share : probability
    for part in sequence.map({ $0..<$0 + 1 }) ?? 0..<parts { slopes[part * experts + e] += Float(slope) }
  }
}
