import CMoE
import Foundation
import Testing

/// All that some calls gave, as bits, part by part.
struct Record {
  private(set) var parts: [String: [UInt32]] = [:]
  private(set) var tokensPerExpert: [Int64] = []  // of the first call, [E]
  private(set) var dropped: Int64 = 0  // in the first call
  private(set) var indices: [Int32] = []  // of the first call, [T,K]

  init(_ parts: [String: [UInt32]]) { self.parts = parts }

  /// Forward, backward with losses, gradients.
  init(
    ofOnePassOver layer: Layer, tokens: Int, _ options: moe_forward_options = forwardOptions(training: true, step: 3)
  ) throws {
    let x = noise(tokens * layer.hidden, seed: 11)  // [T,H]
    let dy = noise(x.count, seed: 12)  // [T,H]
    let output = try layer.forward(x, options: options)
    add(reportOf: output)
    add("y", output.y)
    add("indices", output.indices.map(Float.init))
    add("weights", output.weights)
    if options.expert_weights == nil {
      add("dx", try layer.backward(x, dy: dy, dAuxLoss: 0.7))
    } else {
      let (dx, dWeights) = try layer.backwardToWeights(x, dy: dy, dAuxLoss: 0.7)
      add("dx", dx)
      add("d_expert_weights", dWeights)
    }
    try add(gradientsOf: layer)
  }

  /// The same tokens in calls of `piece` of them, without losses, which are means over one call.
  init(ofPassesOver layer: Layer, tokens: Int, piece: Int) throws {
    let x = noise(tokens * layer.hidden, seed: 11)  // [T,H]
    let dy = noise(x.count, seed: 12)  // [T,H]
    for first in stride(from: 0, to: tokens, by: piece) {
      let range = first * layer.hidden..<min(first + piece, tokens) * layer.hidden
      let xs = Array(x[range])
      let output = try layer.forward(xs, options: forwardOptions(training: true, step: 3))
      add("y", output.y)
      add("indices", output.indices.map(Float.init))
      add("weights", output.weights)
      add("dx", try layer.backward(xs, dy: Array(dy[range])))
    }
    try add(gradientsOf: layer)
  }

  /// Steps of AdamW against a fixed dy; the losses of every step, and the parameters at the end.
  init(ofTraining layer: Layer, tokens: Int, steps: Int) throws {
    let tensors = try layer.tensors()
    var created: OpaquePointer?
    try check(moe_adamw_create(layer.context, nil, tensors, Int64(tensors.count), &created))
    let optimizer = try #require(created)
    defer { moe_optimizer_free(optimizer) }
    try check(moe_optimizer_set_learning_rate(optimizer, 0.01))
    for step in 0..<steps {
      let x = noise(tokens * layer.hidden, seed: UInt64(100 + step))  // [T,H]
      let output = try layer.forward(x, options: forwardOptions(training: true, step: UInt64(step)))
      add(reportOf: output)
      try check(moe_layer_zero_grad(layer.layer))
      add("dx", try layer.backward(x, dy: output.y, dAuxLoss: 1))
      var norm = 0.0
      try check(moe_clip_grad_norm(layer.context, tensors, Int64(tensors.count), 1, &norm))
      add("norm", [Float(norm)])
      try check(moe_optimizer_step(optimizer, tensors, Int64(tensors.count)))
    }
    for tensor in tensors { add(String(cString: tensor.name), tensor.numbers) }
    try add(gradientsOf: layer)
  }

  private mutating func add(_ name: String, _ values: [Float]) { parts[name, default: []] += bits(values) }

  private mutating func add(reportOf output: Layer.Output) {
    let report = output.report
    add("losses and entropy", [report.balance_loss, report.z_loss, report.aux_loss, report.entropy])
    add("mean_probability", output.meanProbability)
    add("tokens_per_expert", output.tokensPerExpert.map(Float.init))
    add("dropped_per_expert", output.droppedPerExpert.map(Float.init))
    add("load", [report.max_over_mean, report.variation, report.dead_share, Float(report.n_valid)])
    if indices.isEmpty {
      (tokensPerExpert, dropped, indices) = (output.tokensPerExpert, report.n_dropped, output.indices)
    }
  }

  private mutating func add(gradientsOf layer: Layer) throws {
    for tensor in try layer.tensors() {
      let name = String(cString: tensor.name)
      add("gradient of " + name, Array(tensor.gradient))
      if tensor.grad == nil { add(name, Array(tensor.values)) }  // forward may have moved it
    }
  }
}

/// T, H, I, E, K of a layer and a call.
struct Size: Sendable, CustomStringConvertible {
  var tokens, hidden, intermediate, experts, topK: Int

  var description: String { "T \(tokens) H \(hidden) I \(intermediate) E \(experts) K \(topK)" }

  func layer(
    in context: moe_context_config? = nil, sharing owner: Layer? = nil,
    configure: (inout moe_layer_config) -> Void = { _ in }
  ) throws -> Layer {
    try Layer(
      hidden: Int64(hidden), intermediate: Int64(intermediate), experts: Int64(experts), topK: Int64(topK),
      in: context, sharingContextOf: owner
    ) {
      $0.balance_coef = 0.01
      $0.z_coef = 0.001
      configure(&$0)
    }
  }

  static let small = [
    Size(tokens: 37, hidden: 19, intermediate: 45, experts: 5, topK: 2),
    Size(tokens: 53, hidden: 35, intermediate: 17, experts: 3, topK: 1),
    Size(tokens: 29, hidden: 65, intermediate: 33, experts: 7, topK: 3),
  ]

  /// The smallest, many experts without tokens, and sums and outputs beyond every block of the kernels.
  static let edges = [
    Size(tokens: 0, hidden: 5, intermediate: 7, experts: 3, topK: 2),
    Size(tokens: 1, hidden: 1, intermediate: 1, experts: 1, topK: 1),
    Size(tokens: 1, hidden: 300, intermediate: 270, experts: 4, topK: 2),
    Size(tokens: 31, hidden: 33, intermediate: 31, experts: 1, topK: 1),
    Size(tokens: 41, hidden: 15, intermediate: 97, experts: 6, topK: 6),
    Size(tokens: 3, hidden: 47, intermediate: 18, experts: 40, topK: 2),
    Size(tokens: 261, hidden: 64, intermediate: 32, experts: 33, topK: 4),
    Size(tokens: 20, hidden: 515, intermediate: 259, experts: 3, topK: 2),
  ]
}

/// One way to turn logits into weights.
struct RouterKind: Sendable, CustomStringConvertible {
  var weights: moe_router_weights
  var normalize: moe_normalize
  var bias: moe_bias
  var score = MOE_SCORE_SOFTMAX
  var selectionBias: Int32 = 0

  var description: String {
    "router weights \(weights.rawValue) normalize \(normalize.rawValue) bias \(bias.rawValue) score \(score.rawValue)"
  }

  func apply(to config: inout moe_layer_config) {
    config.router_weights = weights.int32
    config.router_normalize = normalize.int32
    config.router_bias = bias.int32
    config.score = score.int32
    config.selection_bias = selectionBias
    config.expert_scale = selectionBias
  }

  static let all =
    [MOE_BIAS_OFF, MOE_BIAS_ON].flatMap { bias in
      [
        RouterKind(weights: MOE_ROUTER_WEIGHTS_SCORES, normalize: MOE_NORMALIZE_SUM, bias: bias),
        RouterKind(weights: MOE_ROUTER_WEIGHTS_SCORES, normalize: MOE_NORMALIZE_NONE, bias: bias),
        RouterKind(weights: MOE_ROUTER_WEIGHTS_TOPK_SOFTMAX, normalize: MOE_NORMALIZE_SUM, bias: bias),
      ]
    }
    + [MOE_SCORE_SIGMOID, MOE_SCORE_SQRT_SOFTPLUS].map {
      RouterKind(
        weights: MOE_ROUTER_WEIGHTS_SCORES, normalize: MOE_NORMALIZE_NORM2, bias: MOE_BIAS_ON, score: $0,
        selectionBias: 1)
    }
}

struct ExpertKind: Sendable, CustomStringConvertible {
  var kind: moe_expert_kind
  var activation: moe_activation
  var bias: moe_bias
  var dropout: Float
  var clamps: Clamps?

  /// Limits that many values are beyond, when weights are the initial ones and x is noise.
  enum Clamps: CaseIterable {
    case gptOSS, deepSeekV4

    func apply(to config: inout moe_layer_config) {
      config.glu_limit = 0.25
      guard self == .gptOSS else { return }
      config.glu_alpha = 1.702
      config.glu_offset = 1
    }
  }

  var description: String {
    "expert kind \(kind.rawValue) activation \(activation.rawValue) bias \(bias.rawValue) dropout \(dropout)"
      + (clamps.map { " clamps \($0)" } ?? "")
  }

  /// Whether the slope jumps somewhere, so that small differences of values can be large ones of gradients.
  var hasJumps: Bool { activation == MOE_ACTIVATION_RELU || clamps != nil }

  func apply(to config: inout moe_layer_config) {
    config.setExperts(kind)
    config.activation = activation.int32
    config.expert_bias = bias.int32
    config.dropout = dropout
    clamps?.apply(to: &config)
  }

  static let linear = [MOE_BIAS_OFF, MOE_BIAS_ON].map {
    ExpertKind(kind: MOE_EXPERT_LINEAR, activation: MOE_ACTIVATION_GELU, bias: $0, dropout: 0)
  }

  static let clamped = Clamps.allCases.flatMap { clamps in
    [0, 0.3].map {
      ExpertKind(
        kind: MOE_EXPERT_GATED, activation: MOE_ACTIVATION_SILU, bias: MOE_BIAS_ON, dropout: $0, clamps: clamps)
    }
  }

  static let all: [ExpertKind] =
    linear + clamped
    + [MOE_EXPERT_MLP, MOE_EXPERT_GATED].flatMap { kind in
      [
        MOE_ACTIVATION_GELU, MOE_ACTIVATION_GELU_TANH, MOE_ACTIVATION_SILU, MOE_ACTIVATION_RELU, MOE_ACTIVATION_RELU2,
        MOE_ACTIVATION_QUICK_GELU,
      ].flatMap { activation in
        [MOE_BIAS_OFF, MOE_BIAS_ON].flatMap { bias in
          [0, 0.3].map { ExpertKind(kind: kind, activation: activation, bias: bias, dropout: $0) }
        }
      }
    }
}

/// What the processor has, from the kernel's own list rather than the library's word.
enum Processor {
  #if arch(x86_64)
    private static let flags: Set<Substring> = {
      let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
      let line = text.split(separator: "\n").first { $0.hasPrefix("flags") } ?? ""
      return Set(line.split(separator: " "))
    }()

    static let hasFMA = flags.isSuperset(of: ["fma", "avx2"])
    static let hasAVX512 = hasFMA && flags.isSuperset(of: ["avx512f", "avx512bw", "avx512vl", "avx512dq"])
    static let hasAVX512BF16 = hasAVX512 && flags.contains("avx512_bf16")
  #else
    static let hasFMA = true
    static let hasAVX512 = false
    static let hasAVX512BF16 = false
  #endif
}
