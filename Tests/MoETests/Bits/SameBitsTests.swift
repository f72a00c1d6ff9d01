import CMoE
import Foundation
import Testing

/// The numeric contract: what a call computes depends on its inputs and on nothing else.
@Suite("The same bits", .enabled(if: Processor.hasFMA))
struct SameBitsTests {
  // MARK: the grid of kinds

  @Test(arguments: RouterKind.all)
  func everyKindOfRouterAndExpert(router: RouterKind) throws {
    for (number, expert) in ExpertKind.all.enumerated() {
      let size = Size.small[number % Size.small.count]
      try Way.expectTheSame("\(expert), \(size)") { context, type in
        let layer = try size.layer(in: context) {
          $0.weight_dtype = type.int32
          router.apply(to: &$0)
          expert.apply(to: &$0)
        }
        try layer.stir()
        return try Record(ofOnePassOver: layer, tokens: size.tokens)
      }
    }
  }

  // MARK: sizes

  @Test(arguments: Size.edges, [MOE_EXPERT_MLP, MOE_EXPERT_GATED, MOE_EXPERT_LINEAR])
  func everySize(size: Size, kind: moe_expert_kind) throws {
    try Way.expectTheSame(size) { context, type in
      let layer = try size.layer(in: context) {
        $0.weight_dtype = type.int32
        $0.setExperts(kind)
        $0.expert_bias = MOE_BIAS_ON.int32
      }
      return try Record(ofOnePassOver: layer, tokens: size.tokens)
    }
  }

  /// More rows than one piece of work takes, longer sums than one piece of weights, and experts without tokens.
  @Test(arguments: [MOE_EXPERT_MLP, MOE_EXPERT_GATED, MOE_EXPERT_LINEAR])
  func oneHotExpert(kind: moe_expert_kind) throws {
    let size = Size(tokens: 460, hidden: 1027, intermediate: 519, experts: 6, topK: 2)
    try Way.expectTheSame(size) { context, type in
      let layer = try size.layer(in: context) {
        $0.weight_dtype = type.int32
        $0.setExperts(kind)
        if kind != MOE_EXPERT_LINEAR { $0.dropout = 0.1 }
      }
      let bias = try layer.parameter("router.bias").values
      bias[1] = 30
      bias[4] = -.infinity
      bias[5] = -.infinity
      let record = try Record(ofOnePassOver: layer, tokens: size.tokens)
      #expect(record.tokensPerExpert[1] == 460)
      #expect(record.tokensPerExpert[4...] == [0, 0])
      return record
    }
  }

  // MARK: ties

  @Test func tiesGoToTheLowestIndexEverywhere() throws {
    let size = Size(tokens: 83, hidden: 37, intermediate: 21, experts: 6, topK: 3)
    try Way.expectTheSame(size) { context, type in
      let layer = try size.layer(in: context) { $0.weight_dtype = type.int32 }
      // Experts 0 and 1 are routed to alike, and so are 2 and 3, 4 and 5.
      let weight = try layer.parameter("router.weight").values  // [E,H]
      let bias = try layer.parameter("router.bias").values  // [E]
      for e in stride(from: 1, to: layer.experts, by: 2) {
        for h in 0..<layer.hidden { weight[e * layer.hidden + h] = weight[(e - 1) * layer.hidden + h] }
        bias[e] = bias[e - 1]
      }
      let record = try Record(ofOnePassOver: layer, tokens: size.tokens)
      for t in 0..<size.tokens {
        let chosen = record.indices[t * 3..<t * 3 + 3].map { $0 }
        #expect(chosen[0] % 2 == 0 && chosen[1] == chosen[0] + 1 && chosen[2] % 2 == 0)
      }
      return record
    }
  }

  // MARK: training

  @Test(arguments: [MOE_EXPERT_MLP, MOE_EXPERT_GATED])
  func twentySteps(kind: moe_expert_kind) throws {
    // The second size has tensors of more elements than one piece of the optimiser's work.
    for size in [
      Size(tokens: 67, hidden: 33, intermediate: 49, experts: 5, topK: 2),
      Size(tokens: 90, hidden: 101, intermediate: 143, experts: 3, topK: 2),
    ] {
      try Way.expectTheSame(size) { context, type in
        let layer = try size.layer(in: context) {
          $0.weight_dtype = type.int32
          $0.expert_kind = kind.int32
          $0.activation = MOE_ACTIVATION_SILU.int32
          $0.dropout = 0.2
        }
        return try Record(ofTraining: layer, tokens: size.tokens, steps: 20)
      }
    }
  }

  // MARK: tokens divided into calls

  @Test(arguments: [MOE_EXPERT_MLP, MOE_EXPERT_GATED, MOE_EXPERT_LINEAR])
  func tokensInPieces(kind: moe_expert_kind) throws {
    let size = Size(tokens: 500, hidden: 43, intermediate: 65, experts: 4, topK: 2)
    func run(_ context: moe_context_config, _ type: moe_dtype, piece: Int) throws -> Record {
      let layer = try size.layer(in: context) {
        $0.weight_dtype = type.int32
        $0.setExperts(kind)
        // The losses are means over one call, and dropout goes by the place in it.
        $0.balance_coef = 0
        $0.z_coef = 0
      }
      try layer.parameter("router.bias").values[2] = 3  // some hundred rows for one expert
      return try Record(ofPassesOver: layer, tokens: size.tokens, piece: piece)
    }
    for type in Way.types {
      let ways = Way.all(type)
      let whole = try run(ways[0].context, type, piece: size.tokens)
      for way in ways {
        for piece in [1, 7, 64, size.tokens] {
          let divided = try run(way.context, type, piece: piece)
          for (name, values) in whole.parts where divided.parts[name] != values {
            Issue.record("weights of type \(type.rawValue): \(name) differs with \(way), \(piece) tokens a call")
          }
        }
      }
    }
    // In pairs it matters which tokens meet, but only to sums over tokens.
    let whole = try run(Way.inPairs[0].context, MOE_DTYPE_BF16, piece: size.tokens)
    for piece in [1, 7, 64] {
      let divided = try run(Way.inPairs[1].context, MOE_DTYPE_BF16, piece: piece)
      for name in ["y", "indices", "weights", "dx"] where divided.parts[name] != whole.parts[name] {
        Issue.record("\(name) differs in pairs, \(piece) tokens a call")
      }
    }
  }

  // MARK: callers at the same time

  @Test(.timeLimit(.minutes(1)), arguments: [1, 2, 3] as [Int32])
  func twoCallersOfOneContext(threads: Int32) throws {
    let sizes = [
      Size(tokens: 67, hidden: 33, intermediate: 49, experts: 5, topK: 2),
      Size(tokens: 45, hidden: 70, intermediate: 31, experts: 3, topK: 1),
    ]
    let context = contextConfig(threads: threads, matmul: MOE_MATMUL_NATIVE)
    let expected = try sizes.map {
      try Record(ofTraining: try $0.layer(in: context), tokens: $0.tokens, steps: 20)
    }
    let first = try sizes[0].layer(in: context)
    let layers = [first, try sizes[1].layer(sharing: first)]
    let results = Results()
    DispatchQueue.concurrentPerform(iterations: 2) { i in
      results[i] = try? Record(ofTraining: layers[i], tokens: sizes[i].tokens, steps: 20)
    }
    for i in 0..<2 { #expect(results[i]?.parts == expected[i].parts) }
  }

  /// Written from several threads, each in a place of its own.
  private final class Results: @unchecked Sendable {
    private let lock = NSLock()
    private var records: [Record?] = [nil, nil]

    subscript(i: Int) -> Record? {
      get { lock.withLock { records[i] } }
      set { lock.withLock { records[i] = newValue } }
    }
  }
}
