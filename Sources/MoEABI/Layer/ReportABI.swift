import CMoE
import MoE

// What a call tells beside its output.

extension Layer.Details {
  /// Where the caller wants the arrays of a report.
  init(_ asked: moe_report) {
    self.init()
    tokensPerExpert = asked.tokens_per_expert
    droppedPerExpert = asked.dropped_per_expert
    meanProbability = asked.mean_probability
    indices = asked.expert_indices
    weights = asked.expert_weights
    losses = asked.losses
    bySequence.counts = asked.sequence_counts
    bySequence.probability = asked.sequence_probability
    bySequence.valid = asked.sequence_valid
  }

  /// Each array, under its name within moe_report, as an operand that a call writes; of none the memory is NULL.
  func forEachArray<E: Error>(
    of call: Call, _ c: Configuration, part: Operand.Part, index: Int = 0, _ body: (Operand) throws(E) -> Void
  ) throws(E) {
    func array<T>(_ memory: UnsafeMutablePointer<T>?, _ count: Int, _ name: StaticString) -> Operand {
      Operand(
        memory, bytes: byteCount(count, MemoryLayout<T>.size), cText(name), writes: true, part: part, index: index,
        alignment: MemoryLayout<T>.alignment)
    }
    try body(array(tokensPerExpert, c.experts, "tokens_per_expert"))
    try body(array(droppedPerExpert, c.experts, "dropped_per_expert"))
    try body(array(meanProbability, c.experts, "mean_probability"))
    try body(array(indices, call.tokens * c.choices, "expert_indices"))
    try body(array(weights, call.tokens * c.choices, "expert_weights"))
    try body(array(losses, c.lossCount, "losses"))
    let sequences = call.sequences(apart: true)
    try body(array(bySequence.counts, sequences * c.experts, "sequence_counts"))
    try body(array(bySequence.probability, sequences * c.experts, "sequence_probability"))
    try body(array(bySequence.valid, sequences, "sequence_valid"))
  }
}

extension moe_report {
  mutating func set(_ found: Report) {
    balance_loss = found.balanceLoss
    z_loss = found.zLoss
    aux_loss = found.auxLoss
    entropy = found.entropy
    n_dropped = Int64(found.dropped)
    n_valid = Int64(found.valid)
    set(found.load)
  }

  /// The statistics of how evenly work lies, of one call or of many.
  mutating func set(_ load: Load) {
    max_over_mean = load.maxOverMean
    variation = load.variation
    dead_share = load.deadShare
  }
}
