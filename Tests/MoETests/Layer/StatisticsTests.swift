import CMoE
import Testing

@Suite("Running statistics")
final class StatisticsTests {
  /// A report of the caller's own: the library is not asked for it.
  private struct Call {
    var losses: (balance: Float, z: Float, aux: Float, entropy: Float) = (1, 2, 3, 0.5)
    var counts: [Int64]
    var dropped: [Int64]?
    var probability: [Float]?
    var valid: Int64
    var nDropped: Int64?  // nil = the sum of `dropped`
  }

  private let experts = 4
  private let context: OpaquePointer
  private let statistics: OpaquePointer

  init() throws {
    var handle: OpaquePointer?
    try check(moe_context_create(nil, &handle))
    context = try #require(handle)
    try check(moe_statistics_create(context, 4, &handle))
    statistics = try #require(handle)
  }

  deinit {
    moe_context_free(context)  // the statistics keep it alive
    moe_statistics_free(statistics)
  }

  private func emptyReport() -> moe_report {
    var report = moe_report()
    moe_report_init(&report, MemoryLayout<moe_report>.size)
    return report
  }

  private func add(_ call: Call) -> moe_status {
    var (counts, dropped, probability) = (call.counts, call.dropped ?? [], call.probability ?? [])
    return counts.withUnsafeMutableBufferPointer { counts in
      dropped.withUnsafeMutableBufferPointer { dropped in
        probability.withUnsafeMutableBufferPointer { probability in
          var report = emptyReport()
          (report.balance_loss, report.z_loss, report.aux_loss, report.entropy) = call.losses
          report.n_valid = call.valid
          report.n_dropped = call.nDropped ?? call.dropped?.reduce(0, +) ?? 0
          report.tokens_per_expert = counts.baseAddress
          report.dropped_per_expert = call.dropped == nil ? nil : dropped.baseAddress
          report.mean_probability = call.probability == nil ? nil : probability.baseAddress
          return moe_statistics_add(statistics, &report)
        }
      }
    }
  }

  private struct Read {
    var report: moe_report
    var counts: [Int64]
    var dropped: [Int64]
    var probability: [Float]
  }

  private func read() throws -> Read {
    var counts = [Int64](repeating: -1, count: experts)
    var dropped = counts
    var probability = [Float](repeating: .nan, count: experts)
    var report = emptyReport()
    try counts.withUnsafeMutableBufferPointer { counts in
      try dropped.withUnsafeMutableBufferPointer { dropped in
        try probability.withUnsafeMutableBufferPointer { probability in
          report.tokens_per_expert = counts.baseAddress
          report.dropped_per_expert = dropped.baseAddress
          report.mean_probability = probability.baseAddress
          try check(moe_statistics_read(statistics, &report))
          #expect(report.tokens_per_expert == counts.baseAddress, "its pointers stay the caller's")
        }
      }
    }
    return Read(report: report, counts: counts, dropped: dropped, probability: probability)
  }

  @Test func withoutReportsEverythingIsZero() throws {
    let found = try read()
    #expect(found.counts == [0, 0, 0, 0] && found.dropped == [0, 0, 0, 0] && found.probability == [0, 0, 0, 0])
    let r = found.report
    #expect(r.balance_loss == 0 && r.z_loss == 0 && r.aux_loss == 0 && r.entropy == 0)
    #expect(r.n_valid == 0 && r.n_dropped == 0 && r.max_over_mean == 0 && r.variation == 0)
    #expect(r.dead_share == 1, "no expert has a token")
  }

  @Test func countsAddUpAndMeansGoByTokens() throws {
    // 3 tokens, then 9: the second call weighs three times as much.
    try check(
      add(
        Call(
          losses: (2, 4, 8, 1), counts: [4, 2, 0, 0], dropped: [1, 0, 0, 0], probability: [0.5, 0.5, 0, 0], valid: 3)))
    try check(
      add(
        Call(
          losses: (1, 8, 4, 0.5), counts: [6, 6, 6, 0], dropped: [0, 0, 2, 0], probability: [0.25, 0.25, 0.5, 0],
          valid: 9)))
    let found = try read()
    #expect(found.counts == [10, 8, 6, 0])
    #expect(found.dropped == [1, 0, 2, 0])
    expectClose(found.probability, [0.3125, 0.3125, 0.375, 0], within: 1e-7)
    let r = found.report
    expectClose([r.balance_loss, r.z_loss, r.aux_loss, r.entropy], [1.25, 7, 5, 0.625], within: 1e-7)
    #expect(r.n_valid == 12 && r.n_dropped == 3)
    // Counts 10, 8, 6, 0 have mean 6 and squares of the differences 16, 4, 0, 36.
    expectClose([r.max_over_mean, r.variation, r.dead_share], [10 / 6, (14.0).squareRoot() / 6, 0.25], within: 1e-7)
  }

  @Test func arraysThatAReportLacksAreLeftOut() throws {
    try check(add(Call(counts: [1, 1, 1, 1], probability: [0.25, 0.25, 0.25, 0.25], valid: 4)))
    try check(add(Call(counts: [8, 0, 0, 0], valid: 1_000_000)))  // has no probabilities to be averaged
    let found = try read()
    #expect(found.counts == [9, 1, 1, 1])
    #expect(found.probability == [0.25, 0.25, 0.25, 0.25])
    #expect(found.dropped == [0, 0, 0, 0])
    // And the reader may have none either.
    var report = emptyReport()
    try check(moe_statistics_read(statistics, &report))
    #expect(report.n_valid == 1_000_004)
  }

  @Test func aCallOfNoTokensWeighsNothing() throws {
    try check(add(Call(losses: (9, 9, 9, 9), counts: [0, 0, 0, 0], probability: [1, 1, 1, 1], valid: 0)))
    #expect(try read().report.balance_loss == 0)
    try check(add(Call(counts: [1, 1, 0, 0], probability: [0.5, 0.5, 0, 0], valid: 1)))
    let found = try read()
    #expect(found.report.balance_loss == 1 && found.probability == [0.5, 0.5, 0, 0])
  }

  @Test func manySmallCallsLoseNothing() throws {
    // In float32 a sum of 0.1 over so many calls would be wrong in the fourth digit.
    for _ in 0..<20_000 {
      try check(add(Call(losses: (0.1, 0.1, 0.1, 0.1), counts: [1, 0, 0, 0], probability: [0.1, 0, 0, 0], valid: 1)))
    }
    let found = try read()
    #expect(found.report.z_loss == 0.1 && found.probability[0] == 0.1 && found.counts[0] == 20_000)
  }

  @Test func resetForgets() throws {
    try check(add(Call(counts: [1, 2, 3, 4], dropped: [1, 1, 1, 1], probability: [1, 0, 0, 0], valid: 4)))
    try check(moe_statistics_reset(statistics))
    try withoutReportsEverythingIsZero()
  }

  @Test func badCalls() throws {
    var out = untouched
    refused("context", moe_statistics_create(nil, 4, &out))
    refused("out", moe_statistics_create(context, 4, nil))
    for n: Int64 in [0, -1, .min, 1 << 31, .max] { refused("n_experts", moe_statistics_create(context, n, &out)) }
    #expect(out == untouched)
    moe_statistics_free(nil)

    var report = emptyReport()
    refused("statistics", moe_statistics_add(nil, &report))
    refused("report", moe_statistics_add(statistics, nil))
    refused("tokens_per_expert", moe_statistics_add(statistics, &report))
    refused("statistics", moe_statistics_reset(nil))
    refused("statistics", moe_statistics_read(nil, &report))
    refused("report", moe_statistics_read(statistics, nil))
    for size in wrongStructSizes {
      report.struct_size = size
      refused("struct_size", moe_statistics_add(statistics, &report))
      refused("struct_size", moe_statistics_read(statistics, &report))
    }
    var wide = [Int64](repeating: 0, count: 8)
    wide.withUnsafeMutableBufferPointer { wide in
      report = emptyReport()
      report.tokens_per_expert = misaligned(wide.baseAddress!)
      refused("tokens_per_expert", moe_statistics_add(statistics, &report))
      refused("tokens_per_expert", moe_statistics_read(statistics, &report))
      report.tokens_per_expert = wide.baseAddress
      report.dropped_per_expert = misaligned(wide.baseAddress!)
      refused("dropped_per_expert", moe_statistics_add(statistics, &report))
      refused("dropped_per_expert", moe_statistics_read(statistics, &report))
    }
    try withoutReportsEverythingIsZero()
  }

  @Test func countsThatDoNotAddUpAreRefusedWhole() throws {
    try check(add(Call(counts: [1, 2, 3, 4], dropped: [1, 1, 1, 1], valid: 4)))
    let before = try read()
    for bad: Int64 in [-1, .min, .max] {
      refused("tokens_per_expert", add(Call(counts: [1, 1, 1, bad], valid: 4)))
      refused("dropped_per_expert", add(Call(counts: [1, 1, 1, 1], dropped: [0, bad, 0, 0], valid: 4, nDropped: 0)))
      refused("n_valid", add(Call(counts: [1, 1, 1, 1], valid: bad)))
      refused("n_dropped", add(Call(counts: [1, 1, 1, 1], valid: 4, nDropped: bad)))
    }
    let after = try read()
    #expect(after.counts == before.counts && after.dropped == before.dropped)
    #expect(after.report.n_valid == 4 && after.report.n_dropped == 4 && after.report.z_loss == before.report.z_loss)
  }

  @Test func theReportsOfALayerAreTaken() throws {
    let layer = try Layer(experts: 4)
    var expected = [Int64](repeating: 0, count: 4)
    for (seed, tokens) in [(1, 6), (2, 11)] {
      let output = try layer.forward(noise(tokens * layer.hidden, seed: UInt64(seed)))
      for e in 0..<4 { expected[e] += output.tokensPerExpert[e] }
      try check(add(Call(counts: output.tokensPerExpert, probability: output.meanProbability, valid: Int64(tokens))))
    }
    #expect(try read().counts == expected)
    #expect(try abs(read().probability.reduce(0, +) - 1) < 1e-6)
  }
}
