import CMoE
import Testing

@Suite("Pooled balance loss")
struct PooledBalanceTests {
  /// What the layers' reports say, made from single tokens.
  private struct Reports {
    let experts: Int
    var counts: [Int64] = []  // [L,E]
    var valid: [Int64] = []  // [L]
    var means: [Float] = []  // [L,E]
    /// Every token of every layer, as transformers concatenates them.
    var tokens: [(chosen: [Int], p: [Double])] = []

    /// Layers of those numbers of tokens, each choosing `topK` different experts.
    init(experts: Int, topK: Int, layers: [Int]) {
      self.experts = experts
      for (l, count) in layers.enumerated() {
        let numbers = noise(max(1, count) * experts, seed: UInt64(l + 1))
        var (counts, sums) = ([Int64](repeating: 0, count: experts), [Double](repeating: 0, count: experts))
        for t in 0..<count {
          let row = numbers[t * experts..<(t + 1) * experts].map { Double($0) + 1 }
          let p = row.map { $0 / row.reduce(0, +) }
          let chosen = Array((0..<experts).sorted { p[$0] > p[$1] }.prefix(topK))
          for e in chosen { counts[e] += 1 }
          for e in 0..<experts { sums[e] += p[e] }
          tokens.append((chosen, p))
        }
        self.counts += counts
        valid.append(Int64(count))
        means += sums.map { Float($0 / Double(max(1, count))) }
      }
    }

    /// E sum f_e P_e over all tokens together, in float64, token by token.
    var expected: Double {
      var loss = 0.0
      for e in 0..<experts {
        let share = Double(tokens.count { $0.chosen.contains(e) }) / Double(tokens.count)
        loss += share * tokens.reduce(0) { $0 + $1.p[e] } / Double(tokens.count)
      }
      return loss * Double(experts)
    }

    func loss(_ means: [Float]? = nil) throws -> (loss: Float, gradient: [Float]) {
      var loss = Float.nan
      var gradient = [Float](repeating: .nan, count: counts.count)
      try check(
        moe_pooled_balance_loss(
          Int64(valid.count), Int64(experts), counts, valid, means ?? self.means, &loss, &gradient))
      return (loss, gradient)
    }
  }

  @Test(arguments: [[17], [5, 12], [3, 0, 40, 1]], [1, 2])
  func itIsTheLossOfAllTokensTogether(layers: [Int], topK: Int) throws {
    let reports = Reports(experts: 6, topK: topK, layers: layers)
    let found = try reports.loss()
    expectClose([found.loss], [reports.expected], within: 1e-6)
    var without = Float.nan
    try check(
      moe_pooled_balance_loss(
        Int64(layers.count), 6, reports.counts, reports.valid, reports.means, &without, nil))
    #expect(without == found.loss)
  }

  @Test func bySequenceItIsTheMeanOfTheSequences() throws {
    // Layers of two sequences of 4 experts, the second of which is one expert's alone in both layers.
    let counts: [Int64] = [1, 2, 0, 1, 5, 0, 0, 0, 1, 1, 1, 1, 3, 0, 0, 0]
    let valid: [Int64] = [4, 5, 4, 3]
    let means: [Float] = [0.2, 0.4, 0.1, 0.3, 0.7, 0.1, 0.1, 0.1, 0.25, 0.25, 0.25, 0.25, 0.4, 0.2, 0.2, 0.2]
    var (loss, gradient) = (Float.nan, [Float](repeating: .nan, count: 16))
    try check(moe_pooled_sequence_loss(2, 2, 4, counts, valid, means, &loss, &gradient))
    // By hand: f = (2, 3, 1, 2) / 8, P = (0.225, 0.325, 0.175, 0.275); then f = (1, 0, 0, 0), P_0 = (5 * 0.7 + 3 * 0.4) / 8.
    let first = 4 * (2 * 0.225 + 3 * 0.325 + 0.175 + 2 * 0.275) / 8
    expectClose([loss], [(first + 4 * 4.7 / 8) / 2], within: 1e-6)
    expectClose(Array(gradient[0..<4]), [2, 3, 1, 2].map { 4 * $0 / 8 * 0.5 / 2 }, within: 1e-6)
    expectClose(Array(gradient[4..<8]), [4 * 5.0 / 8 / 2, 0, 0, 0], within: 1e-6)
    expectClose(Array(gradient[12..<16]), [4 * 3.0 / 8 / 2, 0, 0, 0], within: 1e-6)
    refused("n_sequences", moe_pooled_sequence_loss(2, 0, 4, counts, valid, means, &loss, nil))
    refused("counts", moe_pooled_sequence_loss(2, 2, 4, nil, valid, means, &loss, nil))
    let most: Int64 = 1 << 31 - 1
    refused("n_layers", moe_pooled_sequence_loss(most, most, most, counts, valid, means, &loss, nil))
  }

  @Test func theMeanOfTheLayersLossesIsSomethingElse() throws {
    // Each layer has its own favourite: terribly balanced by itself, perfectly so together.
    let counts: [Int64] = [8, 0, 0, 8]
    let means: [Float] = [1, 0, 0, 1]
    var loss = Float.nan
    try check(moe_pooled_balance_loss(2, 2, counts, [8, 8], means, &loss, nil))
    #expect(loss == 1)
  }

  @Test func perfectBalanceIsTopK() throws {
    let counts = [Int64](repeating: 3, count: 2 * 4)  // 6 tokens with 2 of 4 experts
    var loss = Float.nan
    try check(moe_pooled_balance_loss(2, 4, counts, [6, 6], [Float](repeating: 0.25, count: 8), &loss, nil))
    #expect(loss == 2)
  }

  @Test func theGradientIsThatOfTheLoss() throws {
    // The loss is linear in P: any difference is as good as a small one.
    let reports = Reports(experts: 5, topK: 2, layers: [7, 0, 20])
    let (base, gradient) = try reports.loss()
    var differences: [Double] = []
    for i in reports.means.indices {
      var means = reports.means
      means[i] += 4
      differences.append((Double(try reports.loss(means).loss) - Double(base)) / 4)
    }
    expectClose(gradient, differences, within: 2e-5)
  }

  @Test func withoutTokensThereIsNoLoss() throws {
    let reports = Reports(experts: 3, topK: 1, layers: [0, 0])
    let (loss, gradient) = try reports.loss()
    #expect(loss == 0 && gradient.allSatisfy { $0 == 0 })
    var empty = Float.nan
    try check(moe_pooled_balance_loss(0, 3, nil, nil, nil, &empty, nil))
    #expect(empty == 0)
  }

  @Test func badCalls() throws {
    let (counts, valid) = ([Int64](repeating: 1, count: 6), [Int64](repeating: 3, count: 2))
    let means = Variable("means", [Float](repeating: 0.3, count: 7), grad: [])
    let p = means.data.baseAddress!
    var loss: Float = -7
    func pooled(
      _ layers: Int64 = 2, _ experts: Int64 = 3, counts other: [Int64]? = nil, valid otherValid: [Int64]? = nil,
      p otherMeans: UnsafePointer<Float>? = nil, gradient: UnsafeMutablePointer<Float>? = nil
    ) -> moe_status {
      moe_pooled_balance_loss(
        layers, experts, other ?? counts, otherValid ?? valid, otherMeans ?? UnsafePointer(p), &loss, gradient)
    }
    for n: Int64 in [-1, .min, 1 << 31, .max] { refused("n_layers", pooled(n)) }
    for n: Int64 in [0, -1, .min, 1 << 31, .max] { refused("n_experts", pooled(2, n)) }
    refused("n_layers", pooled(1 << 31 - 1, 1 << 31 - 1))
    refused("tokens_per_expert", moe_pooled_balance_loss(2, 3, nil, valid, p, &loss, nil))
    refused("n_valid", moe_pooled_balance_loss(2, 3, counts, nil, p, &loss, nil))
    refused("mean_probability", moe_pooled_balance_loss(2, 3, counts, valid, nil, &loss, nil))
    refused("loss", moe_pooled_balance_loss(2, 3, counts, valid, p, nil, nil))
    refused("tokens_per_expert", pooled(counts: [1, 1, 1, 1, 1, -1]))
    refused("n_valid", pooled(valid: [3, -1]))
    refused("mean_probability", pooled(p: UnsafePointer(misaligned(p))))
    refused("d_mean_probability", pooled(gradient: misaligned(p)))
    refused("d_mean_probability", pooled(gradient: p))
    refused("d_mean_probability", pooled(gradient: p + 5))
    for poison: Float in [.nan, .infinity, -.infinity] {
      p[5] = poison
      refused("mean_probability", pooled())
    }
    #expect(loss == -7)
  }
}
