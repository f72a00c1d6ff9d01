import CMoE
import Foundation
import Testing

@Suite("Threads")
struct ThreadTests {
  private static func layer(threads: Int32, matmul: moe_matmul = MOE_MATMUL_AUTO) throws -> Layer {
    try Layer(
      hidden: 24, intermediate: 40, experts: 6, topK: 2, in: contextConfig(threads: threads, matmul: matmul)
    ) {
      $0.balance_coef = 0.01
      $0.z_coef = 0.001
      $0.dropout = 0.1
    }
  }

  @Test(arguments: [MOE_MATMUL_AUTO, MOE_MATMUL_OPENBLAS, MOE_MATMUL_REFERENCE])
  func bitsDoNotDependOnTheNumberOfThreads(matmul: moe_matmul) throws {
    let x = noise(257 * 24)
    let dy = noise(x.count, seed: 2)
    func everything(threads: Int32) throws -> [UInt32] {
      let layer = try Self.layer(threads: threads, matmul: matmul)
      let output = try layer.forward(x, options: forwardOptions(training: true, step: 5))
      let dx = try layer.backward(x, dy: dy, dAuxLoss: 1)
      let report = output.report
      let scalars = [report.balance_loss, report.z_loss, report.aux_loss, report.entropy]
      return bits(try output.y + output.weights + output.meanProbability + scalars + dx + layer.gradients())
    }
    let alone = try everything(threads: 1)
    for threads: Int32 in [2, 3, 7] {
      #expect(try everything(threads: threads) == alone, "\(threads) threads")
    }
  }

  @Test(arguments: [1, 2] as [Int32])
  func oneLayerServesSeveralThreadsAtOnce(poolSize: Int32) throws {
    let layer = try Self.layer(threads: poolSize)
    let inputs = (0..<4).map { noise((50 + $0) * layer.hidden, seed: UInt64($0)) }
    let expected = try inputs.map { bits(try layer.forward($0).y) }
    let mismatches = Counter()
    DispatchQueue.concurrentPerform(iterations: 4) { i in
      for _ in 0..<25 {
        var y = [Float](repeating: .nan, count: inputs[i].count)
        let status = moe_layer_forward(layer.layer, inputs[i], Int64(50 + i), nil, &y, nil, nil)
        if status != MOE_OK || bits(y) != expected[i] { mismatches.increment() }
      }
    }
    #expect(mismatches.value == 0)
  }

  /// The same for layers with all that routing has; each call with its own mask, sequences, report and record. Warm-up and
  /// batch norm note something in the layer when they train, so that these calls are in evaluation.
  @Test(arguments: Scheme.all)
  func everySchemeServesSeveralThreadsAtOnce(scheme: Scheme) throws {
    let layer = try scheme.layer(in: contextConfig(threads: 2))
    let sizes = [30, 63, 300]
    let calls = try sizes.map { tokens in
      let inputs = scheme.inputs(tokens: tokens, training: false, masked: true)
      let x = noise(tokens * layer.hidden, seed: UInt64(tokens))
      return (tokens: tokens, x: x, inputs: inputs, y: bits(try layer.forward(x, options: inputs.options).y))
    }
    let mismatches = Counter()
    DispatchQueue.concurrentPerform(iterations: 2 * sizes.count) { i in
      let call = calls[i % sizes.count]
      var (tape, record): (OpaquePointer?, OpaquePointer?)
      var failed = moe_tape_create(layer.layer, &tape) != MOE_OK || moe_routing_create(layer.context, &record) != MOE_OK
      for _ in 0..<5 {
        var options = call.inputs.options
        options.record = record
        var (y, replayed) = (call.x, call.x)
        failed = failed || moe_layer_forward(layer.layer, call.x, Int64(call.tokens), &options, &y, tape, nil) != MOE_OK
        (options.record, options.replay, options.expert_indices) = (nil, record, nil)
        failed =
          failed
          || moe_layer_forward(layer.layer, call.x, Int64(call.tokens), &options, &replayed, tape, nil) != MOE_OK
          || bits(y) != call.y || bits(replayed) != call.y
      }
      moe_tape_free(tape)
      moe_routing_free(record)
      if failed { mismatches.increment() }
    }
    #expect(mismatches.value == 0)
  }

  @Test func backwardCallsTakeTurns() throws {
    let layer = try Self.layer(threads: 2)
    let alone = try Self.layer(threads: 1)
    let x = noise(60 * layer.hidden)
    _ = try alone.forward(x)
    let dx = bits(try alone.backward(x, dy: x))

    let calls = 8
    let mismatches = Counter()
    DispatchQueue.concurrentPerform(iterations: calls) { _ in
      var tape: OpaquePointer?
      var y = x
      var mine = x
      let statuses = [
        moe_tape_create(layer.layer, &tape),
        moe_layer_forward(layer.layer, x, 60, nil, &y, tape, nil),
        moe_layer_backward(layer.layer, tape, x, x, 0, &mine, nil),
      ]
      moe_tape_free(tape)
      if statuses.contains(where: { $0 != MOE_OK }) || bits(mine) != dx { mismatches.increment() }
    }
    #expect(mismatches.value == 0)
    // Equal summands: whichever turn comes first, the sum is the same but for rounding.
    expectClose(try layer.gradients(), try alone.gradients().map { Double(calls) * Double($0) }, within: 1e-5)
  }
}

/// Counts from several threads.
private final class Counter: @unchecked Sendable {
  private let lock = NSLock()
  private(set) var value = 0

  func increment() { lock.withLock { value += 1 } }
}
