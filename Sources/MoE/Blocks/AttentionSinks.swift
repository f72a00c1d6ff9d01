import CShims

// Sinks [Attention sinks 2023]: one more logit of each head's softmax, which has no value. It takes its share of the weight.

extension AttentionCall {
  /// Minus infinity is a sink that takes nothing.
  func requireSinks() throws(Fault) {
    guard let sinks else { return }
    for head in 0..<heads where sinks[head].isNaN || sinks[head] == .infinity {
      throw Fault(.notFinite, "attention: the sink of head \(firstHead + head) is not finite")
    }
  }
}

/// dsinks[h] -= the sum over sequences and queries of p <dO, O>, with p = exp(sink - logSum) the sink's weight. A head is one
/// chain in float32, over ascending queries of ascending sequences, so that a batch has the gradients of its pieces.
struct SinkGradientJob<P: AttentionPrecision>: Job {
  let call: AttentionCall
  let arrays: AttentionGradients
  let sinks: UnsafePointer<Float>
  let dsinks: UnsafeMutablePointer<Float>
  let kernels: UnsafePointer<moei_kernels>
  let memory: LaneMemory

  func run(_ head: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = memory.arena(lane.pointee.index)
    let tiles = BackwardTiles<P>(&arena, call)
    var sum = dsinks[head]
    for sequence in 0..<call.sequences {
      for first in stride(from: 0, to: call.queries, by: AttentionCall.queriesAtOnce) {
        if lane.pointee.shouldStop() { return }
        add(sequence, head, first..<min(call.queries, first + AttentionCall.queriesAtOnce), tiles, to: &sum)
      }
    }
    dsinks[head] = sum
  }

  private func add(
    _ sequence: Int, _ head: Int, _ queries: Range<Int>, _ tiles: BackwardTiles<P>, to sum: inout Float
  ) {
    for (i, query) in queries.enumerated() {
      let (place, logSum) = (call.output(sequence, query, head), arrays.logSums[call.row(sequence, head, query)])
      // A query that sees no key has an output of 0, whatever its sink is.
      tiles.logSums[i] = logSum == -.infinity ? .infinity : logSum
      tiles.means[i] =
        logSum == -.infinity
        ? 0 : kernels.pointee.dot(Int64(call.valueSize), arrays.doutput + place, arrays.arrays.output + place)
    }
    // Its slope is that of a key whose value is 0.
    tiles.scores.update(repeating: sinks[head], count: queries.count * chunkWidth)
    tiles.slopes.update(repeating: 0, count: queries.count * chunkWidth)
    F32.attentionGradients(
      moei_attention_slopes(
        rows: Int64(queries.count), scale: 1, bias: nil, kept: nil, log_sums: tiles.logSums, means: tiles.means,
        scores: tiles.scores, slopes: tiles.slopes, weights: tiles.scores, dscores: tiles.slopes,
        dscores_tokens: tiles.slopes), kernels)
    for i in 0..<queries.count { sum += tiles.slopes[i * chunkWidth] }
  }
}
