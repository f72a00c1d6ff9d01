import CMoE
import Foundation
import Testing

/// Norms, products with a matrix, embeddings, cross-entropy and sampling: each function against a loop in double. What
/// they promise in every way to compute: bindings/python/tests/blocks.
@Suite("Blocks")
struct BlockTests {
  private static let (tokens, width, outputs) = (40, 7, 35)
  private let t = Int64(tokens)
  private let h = Int64(width)
  private let o = Int64(outputs)

  private func withContext(_ config: moe_context_config? = nil, _ body: (OpaquePointer) throws -> Void) throws {
    var config = config ?? defaultContextConfig()
    var context: OpaquePointer?
    try check(moe_context_create(&config, &context))
    defer { moe_context_free(context) }
    try body(try #require(context))
  }

  @Test(arguments: [MOE_NORM_LAYER, MOE_NORM_RMS])
  func norms(norm: moe_norm) throws {
    let (x, dy, weight) = (noise(Self.tokens * Self.width), noise(Self.tokens * Self.width, seed: 2), noise(Self.width))
    var (y, dx) = ([Float](repeating: .nan, count: x.count), [Float](repeating: .nan, count: x.count))
    var statistics = [Float](repeating: .nan, count: 2 * Self.tokens)
    var dweight = [Float](repeating: 1, count: Self.width)
    var config = moe_norm_config()
    moe_norm_config_init(&config, MemoryLayout<moe_norm_config>.size)
    (config.n_tokens, config.hidden_size, config.norm, config.epsilon) = (t, h, norm.int32, 1e-3)
    try withContext {
      try check(moe_norm_forward($0, &config, x, weight, nil, &y, &statistics))
      try check(moe_norm_backward($0, &config, x, weight, statistics, dy, &dx, &dweight, nil))
    }
    var expected = (y: [Double](), dx: [Double](), dweight: [Double](repeating: 1, count: Self.width))
    for row in 0..<Self.tokens {
      let places = row * Self.width..<(row + 1) * Self.width
      let n = Double(Self.width)
      let mean = norm == MOE_NORM_LAYER ? places.reduce(0.0) { $0 + Double(x[$1]) } / n : 0
      let root = (places.reduce(0.0) { $0 + pow(Double(x[$1]) - mean, 2) } / n + 1e-3).squareRoot()
      let normalized = places.map { (Double(x[$0]) - mean) / root }
      let g = places.map { Double(dy[$0]) * Double(weight[$0 - places.lowerBound]) }
      let meanG = norm == MOE_NORM_LAYER ? g.reduce(0, +) / n : 0
      let meanGN = zip(g, normalized).reduce(0.0) { $0 + $1.0 * $1.1 } / n
      for j in 0..<Self.width {
        expected.y.append(normalized[j] * Double(weight[j]))
        expected.dx.append((g[j] - meanG - normalized[j] * meanGN) / root)
        expected.dweight[j] += Double(dy[places.lowerBound + j]) * normalized[j]
      }
    }
    expectClose(y, expected.y, within: 1e-6, "y")
    expectClose(dx, expected.dx, within: 1e-5, "dx")
    expectClose(dweight, expected.dweight, within: 1e-5, "dweight")
  }

  @Test(arguments: everyInstructionSet)
  func products(instructions: moe_instructions) throws {
    let (x, weight) = (noise(Self.tokens * Self.width), noise(Self.outputs * Self.width, seed: 2))
    let (bias, dy) = (noise(Self.outputs, seed: 3), noise(Self.tokens * Self.outputs, seed: 4))
    var (y, dx) = ([Float](repeating: .nan, count: dy.count), [Float](repeating: .nan, count: x.count))
    var (dweight, dbias) = ([Float](repeating: 1, count: weight.count), [Float](repeating: 1, count: bias.count))
    var config = moe_linear_config()
    moe_linear_config_init(&config, MemoryLayout<moe_linear_config>.size)
    (config.n_tokens, config.inputs, config.outputs) = (t, h, o)
    try withContext(contextConfig(threads: 2, instructions: instructions)) {
      try check(moe_linear_forward($0, &config, x, weight, bias, &y))
      try check(moe_linear_backward($0, &config, x, weight, dy, &dx, &dweight, &dbias))
    }
    func at(_ array: [Float], _ row: Int, _ column: Int, _ width: Int) -> Double { Double(array[row * width + column]) }
    let (tokens, width, outputs) = (0..<Self.tokens, 0..<Self.width, 0..<Self.outputs)
    let (w, n) = (Self.width, Self.outputs)
    expectClose(
      y,
      tokens.flatMap { t in
        outputs.map { i in width.reduce(Double(bias[i])) { $0 + at(x, t, $1, w) * at(weight, i, $1, w) } }
      },
      within: 1e-6, "y")
    expectClose(
      dx,
      tokens.flatMap { t in width.map { j in outputs.reduce(0.0) { $0 + at(dy, t, $1, n) * at(weight, $1, j, w) } } },
      within: 1e-6, "dx")
    expectClose(
      dweight,
      outputs.flatMap { i in width.map { j in tokens.reduce(1.0) { $0 + at(dy, $1, i, n) * at(x, $1, j, w) } } },
      within: 1e-6, "dweight")
    expectClose(dbias, outputs.map { i in tokens.reduce(1.0) { $0 + at(dy, $1, i, n) } }, within: 1e-6, "dbias")
  }

  @Test func embeddings() throws {
    let (table, positions) = (noise(3 * Self.width), noise(5 * Self.width, seed: 2))
    let tokens: [Int32] = [2, 0, 2, 1]  // two sequences of two
    var y = [Float](repeating: .nan, count: 4 * Self.width)
    var (dtable, dpositions) = (
      [Float](repeating: 1, count: table.count), [Float](repeating: 1, count: positions.count)
    )
    var config = moe_embedding_config()
    moe_embedding_config_init(&config, MemoryLayout<moe_embedding_config>.size)
    (config.n_tokens, config.hidden_size, config.n_rows) = (4, h, 3)
    (config.n_positions, config.sequence_length, config.first_position) = (5, 2, 3)
    try withContext {
      try check(moe_embedding_forward($0, &config, tokens, table, positions, &y))
      try check(moe_embedding_backward($0, &config, tokens, y, &dtable, &dpositions))
      config.n_rows = 2
      #expect(moe_embedding_forward($0, &config, tokens, table, nil, &y) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError() == "tokens[0] = 2 is not one of n_rows = 2")
    }
    var expected = (table: [Float](repeating: 1, count: table.count), positions: dpositions.map { _ in Float(1) })
    for (t, token) in tokens.enumerated() {
      for j in 0..<Self.width {
        let (row, place) = (Int(token) * Self.width + j, (t % 2 + 3) * Self.width + j)
        #expect(y[t * Self.width + j] == table[row] + positions[place])
        expected.table[row] += y[t * Self.width + j]
        expected.positions[place] += y[t * Self.width + j]
      }
    }
    #expect(dtable == expected.table)
    #expect(dpositions == expected.positions)
  }

  @Test func crossEntropy() throws {
    let (x, weight) = (noise(Self.tokens * Self.width), noise(Self.outputs * Self.width, seed: 2))
    let targets = (0..<Self.tokens).map { $0 % 3 == 0 ? Int32(-1) : Int32($0 % Self.outputs) }
    var (loss, counted, dx) = (Double.nan, Int64(-1), [Float](repeating: .nan, count: x.count))
    var dweight = [Float](repeating: 0, count: weight.count)
    var config = moe_cross_entropy_config()
    moe_cross_entropy_config_init(&config, MemoryLayout<moe_cross_entropy_config>.size)
    (config.n_tokens, config.hidden_size, config.vocabulary_size, config.ignore_index) = (t, h, o, -1)
    try withContext {
      try check(moe_cross_entropy($0, &config, x, weight, targets, &loss, &counted, nil, &dx, &dweight))
    }
    func value(_ weight: [Float]) -> Double {
      var sum = 0.0
      for (t, target) in targets.enumerated() where target >= 0 {
        let z = (0..<Self.outputs).map { v in
          (0..<Self.width).reduce(0.0) { $0 + Double(x[t * Self.width + $1]) * Double(weight[v * Self.width + $1]) }
        }
        sum += log(z.reduce(0.0) { $0 + exp($1) }) - z[Int(target)]
      }
      return sum / Double(counted)
    }
    #expect(counted == Int64(targets.filter { $0 >= 0 }.count))
    expectClose([Float(loss)], [value(weight)], within: 1e-6, "loss")
    for place in [0, 11, weight.count - 1] {
      var (above, below) = (weight, weight)
      above[place] += 1e-2
      below[place] -= 1e-2
      let slope = (value(above) - value(below)) / Double(above[place] - below[place])
      #expect(abs(Double(dweight[place]) - slope) < 1e-5)
    }
    #expect(dx[0..<Self.width].allSatisfy { $0 == 0 })
  }

  private func size<T>(of struct: T) -> Int { MemoryLayout<T>.size }

  /// What the macros have, as the header says it in words.
  @Test func defaults() {
    var norm = moe_norm_config()
    moe_norm_config_init(&norm, MemoryLayout<moe_norm_config>.size)
    #expect((norm.struct_size, norm.epsilon, norm.norm) == (size(of: norm), 1e-5, MOE_NORM_LAYER.int32))
    var rotary = moe_rotary_config()
    moe_rotary_config_init(&rotary, MemoryLayout<moe_rotary_config>.size)
    #expect((rotary.struct_size, rotary.theta, rotary.inverse, rotary.scale) == (size(of: rotary), 10000, 0, 0))
    var loss = moe_cross_entropy_config()
    moe_cross_entropy_config_init(&loss, MemoryLayout<moe_cross_entropy_config>.size)
    #expect((loss.struct_size, loss.ignore_index, loss.label_smoothing, loss.d_loss) == (size(of: loss), -100, 0, 1))
    var gradients = moe_attention_gradients()
    moe_attention_gradients_init(&gradients, MemoryLayout<moe_attention_gradients>.size)
    #expect(gradients.struct_size == size(of: gradients) && gradients.doutput == nil && gradients.dvalue == nil)
    moe_linear_config_init(nil, MemoryLayout<moe_linear_config>.size)
    moe_embedding_config_init(nil, MemoryLayout<moe_embedding_config>.size)
  }

  /// Without a length all tokens are one sequence.
  @Test func aSequenceOfAllTokens() throws {
    let (table, positions) = (noise(2), noise(3, seed: 2))
    let tokens: [Int32] = [1, 0, 1]
    var config = moe_embedding_config()
    moe_embedding_config_init(&config, MemoryLayout<moe_embedding_config>.size)
    (config.n_tokens, config.hidden_size, config.n_rows, config.n_positions) = (3, 1, 2, 3)
    var y = [Float](repeating: .nan, count: 3)
    try withContext { try check(moe_embedding_forward($0, &config, tokens, table, positions, &y)) }
    #expect(y == [table[1] + positions[0], table[0] + positions[1], table[1] + positions[2]])
  }

  @Test func sampling() throws {
    let z: [Float] = [0, 3, 2, 3]
    var sampling = moe_sampling()
    moe_sampling_init(&sampling, MemoryLayout<moe_sampling>.size)
    var token: Int32 = -1
    try withContext { context in
      try check(moe_sample(context, z, 4, &sampling, 0, &token))
      #expect(token == 1)
      sampling.temperature = 1
      sampling.top_k = 2
      let drawn = try (0..<UInt64(40)).map { draw in
        try check(moe_sample(context, z, 4, &sampling, draw, &token))
        return token
      }
      #expect(Set(drawn) == [1, 3])
      sampling.top_k = 99  // more than there are: all
      let all = try (0..<UInt64(400)).map { draw in
        try check(moe_sample(context, z, 4, &sampling, draw, &token))
        return token
      }
      #expect(Set(all) == [0, 1, 2, 3])
      for topK in [0, 2, 4] as [Int64] {  // no share at all is the best token alone
        sampling.top_k = topK
        sampling.top_p = 0
        let best = try (0..<UInt64(40)).map { draw in
          try check(moe_sample(context, z, 4, &sampling, draw, &token))
          return token
        }
        #expect(Set(best) == [1])
      }
      for (wrong, text) in [(2.0, "2"), (-0.5, "-0.5"), (Double.nan, "nan")] {
        sampling.top_p = wrong
        #expect(moe_sample(context, z, 4, &sampling, 0, &token) == MOE_ERROR_INVALID_ARGUMENT)
        #expect(lastError() == "sampling.top_p = \(text) is not in [0, 1]")
      }
      sampling.top_p = 1
      for temperature in [-1, .nan, .infinity] as [Double] {
        sampling.temperature = temperature
        #expect(moe_sample(context, z, 4, &sampling, 0, &token) == MOE_ERROR_INVALID_ARGUMENT)
        #expect(lastError().hasPrefix("sampling.temperature = "))
      }
    }
  }

  /// What the macro has: all tokens are drawn from, at temperature 0 the best.
  @Test func samplingDefaults() {
    var sampling = moe_sampling()
    moe_sampling_init(&sampling, MemoryLayout<moe_sampling>.size)
    #expect(sampling.struct_size == MemoryLayout<moe_sampling>.size)
    #expect((sampling.temperature, sampling.top_k, sampling.top_p) == (0, 0, 1))
    #expect(sampling.seed == 0 && sampling.min_p == 0 && sampling.repetition_penalty == 0)
    #expect(sampling.history == nil && sampling.n_history == 0)
    moe_sampling_init(nil, MemoryLayout<moe_sampling>.size)
  }

  /// Of logits 0, 3, 2, 3: only what is half as likely as the best, and the best by the penalty.
  @Test func samplingLeavesTheUnlikelyAndTheRepeated() throws {
    let (z, history): ([Float], [Int32]) = ([0, 3, 2, 3], [1, 1, 2])
    var sampling = moe_sampling()
    moe_sampling_init(&sampling, MemoryLayout<moe_sampling>.size)
    var token: Int32 = -1
    try withContext { context in
      try history.withUnsafeBufferPointer { history in
        (sampling.repetition_penalty, sampling.n_history) = (1.5, 3)
        sampling.history = history.baseAddress
        try check(moe_sample(context, z, 4, &sampling, 0, &token))
        #expect(token == 3)
        (sampling.temperature, sampling.min_p) = (1, 0.5)
        let drawn = try (0..<UInt64(40)).map { draw in
          try check(moe_sample(context, z, 4, &sampling, draw, &token))
          return token
        }
        #expect(Set(drawn) == [3])  // 1 has a logit of 2 now
        sampling.min_p = 0.3
        let more = try (0..<UInt64(200)).map { draw in
          try check(moe_sample(context, z, 4, &sampling, draw, &token))
          return token
        }
        #expect(Set(more) == [1, 3])
        #expect(moe_sample(context, z, 2, &sampling, 0, &token) == MOE_ERROR_INVALID_ARGUMENT)
        #expect(lastError() == "sampling.history[2] = 2 is not one of vocabulary_size = 2")
      }
    }
  }

  @Test func samplingKnowsItsBounds() throws {
    let z: [Float] = [0, 3, 2, 3]
    var sampling = moe_sampling()
    moe_sampling_init(&sampling, MemoryLayout<moe_sampling>.size)
    var token: Int32 = -1
    try withContext { context in
      sampling.top_k = -1
      #expect(moe_sample(context, z, 4, &sampling, 0, &token) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError() == "sampling.top_k = -1 is below 0")
    }
  }
}
