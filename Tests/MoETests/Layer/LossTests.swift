import CMoE
import Foundation
import Testing

/// The list of losses: what it refuses, values by hand, bits.
@Suite("Losses")
struct LossTests {
  /// A layer of 4 experts whose aux_loss is these terms.
  private func layer(
    _ terms: [moe_loss_term], in context: moe_context_config? = nil, topK: Int64 = 2,
    _ change: (inout moe_layer_config) -> Void = { _ in }
  ) throws -> Layer {
    try terms.withUnsafeBufferPointer { terms in
      try Layer(topK: topK, in: context) {
        ($0.losses, $0.n_losses) = (terms.baseAddress, Int64(terms.count))
        change(&$0)
      }
    }
  }

  private func term(_ kind: moe_loss, _ coefficient: Float = 1) -> moe_loss_term {
    moe_loss_term(kind: kind.int32, coefficient: coefficient)
  }

  /// The losses of a call, and their sum times the coefficients.
  private func losses(
    of layer: Layer, _ x: [Float], _ options: moe_forward_options = forwardOptions()
  ) throws -> (losses: [Float], aux: Float) {
    var (losses, y) = ([Float](repeating: .nan, count: Int(layer.config.n_losses)), x)
    var (report, options) = (moe_report(), options)
    moe_report_init(&report, MemoryLayout<moe_report>.size)
    try losses.withUnsafeMutableBufferPointer {
      report.losses = $0.baseAddress
      try check(moe_layer_forward(layer.layer, x, Int64(x.count / layer.hidden), &options, &y, layer.tape, &report))
    }
    return (losses, report.aux_loss)
  }

  /// Logits [T,4] become those of a layer with H = 5: the gate is the identity, the last feature is not read.
  private func tokens(_ layer: Layer, logits: [[Float]]) throws -> [Float] {
    let (weight, bias) = (try layer.parameter("router.weight").values, try layer.parameter("router.bias").values)
    weight.update(repeating: 0)
    bias.update(repeating: 0)
    for e in 0..<layer.experts { weight[e * layer.hidden + e] = 1 }
    return logits.flatMap { $0 + [0] }
  }

  // MARK: coefficients

  @Test func aCoefficientCanBeSet() throws {
    let layer = try layer([term(MOE_LOSS_VARIANCE), term(MOE_LOSS_L1, 2)])
    let x = noise(8 * layer.hidden)
    let before = try losses(of: layer, x)
    try check(moe_layer_set_loss_coefficient(layer.layer, 1, 0.25))
    let after = try losses(of: layer, x)
    #expect(after.losses == before.losses)
    expectClose([after.aux - before.aux], [Double(before.losses[1]) * (0.25 - 2)], within: 1e-5)
    // The weights of two experts are divided by their sum.
    #expect(abs(before.losses[1] - 1) < 1e-6)
    refused("layer", moe_layer_set_loss_coefficient(nil, 0, 1))
    for n: Int32 in [-1, 2, .max, .min] { refused("term", moe_layer_set_loss_coefficient(layer.layer, n, 1)) }
    for value: Float in [-1, .nan, .infinity] {
      refused("coefficient", moe_layer_set_loss_coefficient(layer.layer, 0, value))
    }
    let classic = try Layer()
    withExtendedLifetime(classic) { refused("term", moe_layer_set_loss_coefficient(classic.layer, 0, 1)) }
  }

  // MARK: refusals

  private func create(
    _ terms: [moe_loss_term], _ change: (inout moe_layer_config) -> Void = { _ in }
  ) throws -> moe_status {
    let donor = try Layer()
    return terms.withUnsafeBufferPointer { terms in
      var config = donor.config
      (config.losses, config.n_losses) = (terms.baseAddress, Int64(terms.count))
      change(&config)
      var out = untouched
      let status = moe_layer_create(donor.context, &config, &out)
      #expect(out == untouched)
      return status
    }
  }

  @Test func badLists() throws {
    for kind: Int32 in [-1, 21, .max] {
      refused("kind", try create([moe_loss_term(kind: kind, coefficient: 1)]))
    }
    for coefficient: Float in [-0.5, .nan, .infinity] {
      refused("coefficient", try create([term(MOE_LOSS_Z), term(MOE_LOSS_Z, coefficient)]))
    }
    refused("n_losses", try create([moe_loss_term](repeating: term(MOE_LOSS_Z), count: 17)))
    refused("n_losses", try create([term(MOE_LOSS_Z)]) { $0.n_losses = -1 })
    refused("losses", try create([term(MOE_LOSS_Z)]) { $0.losses = nil })
    refused("losses", try create([term(MOE_LOSS_Z)]) { $0.n_losses = 0 })
  }

  @Test(arguments: [MOE_LOSS_LOAD, MOE_LOSS_SHAZEER, MOE_LOSS_TUTEL_IMPORTANCE_LOAD])
  func lossesOfLoadsNeedNoise(kind: moe_loss) throws {
    refused("noise", try create([term(kind)]))
    refused("router", try create([term(kind)]) { ($0.noise, $0.router) = (MOE_NOISE_LEARNED.int32, 1) })
    refused(
      "router_dropout_on",
      try create([term(kind)]) { ($0.noise, $0.router_dropout, $0.router_dropout_on) = (2, 0.1, 1) })
  }

  @Test func lossesOfProbabilitiesNeedAGate() throws {
    for kind: Int32 in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 16, 17] {
      let loss = moe_loss_term(kind: kind, coefficient: 1)
      refused("gate", try create([loss]) { $0.router = MOE_ROUTER_EXTERNAL.int32 })
    }
  }

  @Test(arguments: [MOE_LOSS_MEGATRON, MOE_LOSS_MEGATRON_SEQUENCE, MOE_LOSS_MEGATRON_GLOBAL])
  func sharesOfScoresNeedScoresAboveZero(kind: moe_loss) throws {
    refused("score", try create([term(kind)]) { $0.score = MOE_SCORE_IDENTITY.int32 })
  }

  // MARK: by hand

  /// ln 1, ln 2 ... as logits make probabilities of tenths. One sequence leans to expert 3, the other to 0 and 3.
  private let tenths = [[1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]].map { $0.map { log(Float($0)) } }

  @Test func switchOfTheCallAndOfSequences() throws {
    let layer = try layer([term(MOE_LOSS_SWITCH, 2), term(MOE_LOSS_SWITCH_SEQUENCE, 3)])
    var options = forwardOptions()
    options.sequence_length = 2
    let found = try losses(of: layer, try tokens(layer, logits: tenths), options)
    // The call: f = (1, 0, 0, 3) / 4, P = (7, 9, 11, 13) / 40, 4 (7 + 39) / 160. Its sequences: f = (0, 0, 0, 1),
    // P_3 = 4 / 10; f = (1, 0, 0, 1) / 2, P_0 = P_3 = 1 / 4.
    let expected = [1.15, (1.6 + 1) / 2]
    expectClose(found.losses, expected, within: 1e-6)
    expectClose([found.aux], [2 * expected[0] + 3 * expected[1]], within: 1e-6)
  }

  /// The weights of experts 3 and 2, or 0 and 1, are 4/7 and 3/7; counts are 1, 1, 3, 3.
  @Test func importanceAndVariance() throws {
    let layer = try layer([term(MOE_LOSS_IMPORTANCE), term(MOE_LOSS_VARIANCE)])
    let found = try losses(of: layer, try tokens(layer, logits: tenths))
    // Sums of weights (4, 3, 9, 12) / 7, mean 1: squares 9 + 16 + 4 + 25 = 54 of 49ths. Counts: variance 4 / 3, even 2.
    expectClose(found.losses, [54.0 / 49 / 3, 1.0 / 3], within: 1e-6)
  }

  /// Scores of a sigmoid of ln(odds): 1/5, 1/5, 2/5, 4/5, of a sum of 8/5.
  @Test func megatronWithCountsFromElsewhere() throws {
    let layer = try layer([term(MOE_LOSS_MEGATRON), term(MOE_LOSS_MEGATRON_GLOBAL)]) {
      $0.score = MOE_SCORE_SIGMOID.int32
    }
    let x = try tokens(layer, logits: [[log(0.25), log(0.25), log(2.0 / 3), log(4)]])
    let elsewhere: [Int64] = [5, 0, 0, 1]
    try elsewhere.withUnsafeBufferPointer {
      var options = forwardOptions()
      options.global_counts = $0.baseAddress
      let found = try losses(of: layer, x, options)
      // P = (1, 1, 2, 4) / 8; chosen 2 and 3: 4 / 2 (2 + 4) / 8. Together (5, 0, 1, 2) of 8: 4 (5 + 2 + 8) / 64.
      expectClose(found.losses, [1.5, 15.0 / 16], within: 1e-6)
    }
  }

  /// With K = 1 the threshold of the best is the second, and that of the others the best.
  @Test func loadInEvaluation() throws {
    let layer = try layer([term(MOE_LOSS_LOAD)], topK: 1) { ($0.noise, $0.noise_std) = (MOE_NOISE_GAUSSIAN.int32, 0.5) }
    let found = try losses(of: layer, try tokens(layer, logits: [[1, 0.5, 0, -1]]))
    func phi(_ q: Double) -> Double { erfc(-q / 2.0.squareRoot()) / 2 }
    let loads = [phi(1), phi(-1), phi(-2), phi(-4)]
    let mean = loads.reduce(0, +) / 4
    let variance = loads.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / 3
    expectClose(found.losses, [variance / (mean * mean + 1e-10)], within: 1e-6)
  }

  @Test func whereAllExpertsAreChosenLoadsAreEqual() throws {
    let layer = try layer([term(MOE_LOSS_LOAD)], topK: 4) { $0.noise = MOE_NOISE_LEARNED.int32 }
    #expect(try losses(of: layer, noise(9 * layer.hidden), forwardOptions(training: true)).losses == [0])
  }

  @Test func anExpertThatIsShutOutHasNoLoad() throws {
    let layer = try layer([term(MOE_LOSS_LOAD)], topK: 1) { ($0.noise, $0.noise_std) = (MOE_NOISE_GAUSSIAN.int32, 0.5) }
    let x = try tokens(layer, logits: [[1, -.infinity, -.infinity, -.infinity]].map { $0.map { max($0, -1e30) } })
    for e in 1..<4 { try layer.parameter("router.bias").values[e] = -.infinity }
    // Loads 1, 0, 0, 0: mean 1/4, variance (9 + 3) / 16 / 3.
    expectClose(try losses(of: layer, x).losses, [4], within: 1e-6)
    let dx = try layer.backward(x, dy: [Float](repeating: 0, count: x.count), dAuxLoss: 1)
    #expect(dx.allSatisfy { $0 == 0 })
  }

  // MARK: bits

  @Test(.enabled(if: Processor.hasFMA), arguments: [MOE_SCORE_SOFTMAX, MOE_SCORE_SIGMOID])
  func threadsAndInstructionsChangeNoBit(score: moe_score) throws {
    let kinds: [Int32] = [1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17]
    var expected: [[UInt32]] = []
    for (threads, instructions) in [(1, MOE_INSTRUCTIONS_ALL), (3, MOE_INSTRUCTIONS_ALL), (3, MOE_INSTRUCTIONS_AVX2)] {
      let layer = try layer(
        kinds.map { moe_loss_term(kind: $0, coefficient: 0.1 * Float($0)) },
        in: contextConfig(threads: Int32(threads), instructions: instructions)
      ) {
        ($0.score, $0.noise) = (score.int32, MOE_NOISE_LEARNED.int32)
      }
      let random = noise(layer.experts * layer.hidden, seed: 5)
      _ = try layer.parameter("router.noise.weight").values.update(fromContentsOf: random)
      let x = noise(700 * layer.hidden)  // three blocks
      var options = forwardOptions(training: true)
      options.sequence_length = 100
      let found = try losses(of: layer, x, options)
      let dx = try layer.backward(x, dy: noise(x.count, seed: 3), dAuxLoss: 0.7)
      let all = [bits(found.losses + [found.aux]), bits(dx), bits(try layer.gradients())]
      if expected.isEmpty { expected = all }
      #expect(all == expected)
      #expect(found.losses.allSatisfy { $0 > 0 })
    }
  }
}
