import CMoE
import Foundation
import Testing

/// Ends the test, with the library's own words, unless the call went well.
func check(_ status: moe_status, sourceLocation: SourceLocation = #_sourceLocation) throws {
  try #require(status == MOE_OK, "\(lastError())", sourceLocation: sourceLocation)
}

/// What went wrong in this thread's latest failed call.
func lastError() -> String { String(cString: moe_last_error_message()) }

extension RawRepresentable where RawValue == UInt32 {
  /// C's enums arrive unsigned, the fields of the structs are int32_t.
  var int32: Int32 { Int32(rawValue) }
}

extension moe_layer_config {
  /// Linear experts have no width.
  mutating func setExperts(_ kind: moe_expert_kind) {
    expert_kind = kind.int32
    if kind == MOE_EXPERT_LINEAR { intermediate_size = 0 }
  }
}

extension moe_tensor {
  var dimensions: [Int64] { Array([shape.0, shape.1, shape.2, shape.3].prefix(Int(rank))) }
  var count: Int { Int(dimensions.reduce(1, *)) }
  /// Of a float32 tensor; of a bfloat16 one see `halves`.
  var values: UnsafeMutableBufferPointer<Float> { floats(data) }
  /// Empty where there is none.
  var gradient: UnsafeMutableBufferPointer<Float> {
    grad == nil ? UnsafeMutableBufferPointer(start: nil, count: 0) : floats(grad)
  }

  private func floats(_ memory: UnsafeMutableRawPointer) -> UnsafeMutableBufferPointer<Float> {
    UnsafeMutableBufferPointer(start: memory.assumingMemoryBound(to: Float.self), count: count)
  }
}

/// A tensor of the caller's own, of one dimension.
final class Variable {
  let data: UnsafeMutableBufferPointer<Float>
  let grad: UnsafeMutableBufferPointer<Float>
  let name: StaticString
  let shape: [Int]

  init(_ name: StaticString, _ data: [Float], grad: [Float], shape: [Int]? = nil) {
    self.name = name
    self.shape = shape ?? [data.count]
    self.data = .allocate(capacity: data.count)
    self.grad = .allocate(capacity: grad.count)
    _ = self.data.initialize(from: data)
    _ = self.grad.initialize(from: grad)
  }

  deinit {
    data.deallocate()
    grad.deallocate()
  }

  /// Its description; points into this object.
  var tensor: moe_tensor {
    var tensor = moe_tensor()
    moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
    tensor.name = UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)
    tensor.rank = Int32(shape.count)
    withUnsafeMutableBytes(of: &tensor.shape) {
      _ = $0.bindMemory(to: Int64.self).update(from: shape.map(Int64.init))
    }
    tensor.data = UnsafeMutableRawPointer(data.baseAddress)
    tensor.grad = UnsafeMutableRawPointer(grad.baseAddress)
    return tensor
  }
}

/// A layer with a tape, in a context of its own or in another layer's; what it made is freed with it.
/// Unchecked, because moe.h promises that forward may run in several threads at once.
final class Layer: @unchecked Sendable {
  let config: moe_layer_config
  let context: OpaquePointer
  let layer: OpaquePointer
  let tape: OpaquePointer
  private let owner: Layer?  // of the context, where it is another layer's

  var hidden: Int { Int(config.hidden_size) }
  var experts: Int { Int(config.n_experts) }
  var topK: Int { Int(config.top_k) }
  /// Of a token in the report: K, or E where experts choose.
  var choices: Int { config.router == MOE_ROUTER_EXPERT_CHOICE.int32 ? experts : topK }

  init(
    hidden: Int64 = 5, intermediate: Int64 = 7, experts: Int64 = 4, topK: Int64 = 2,
    in contextConfig: moe_context_config? = nil, sharingContextOf owner: Layer? = nil,
    configure: (inout moe_layer_config) -> Void = { _ in }
  ) throws {
    var config = moe_layer_config()
    moe_layer_config_init(&config, MemoryLayout<moe_layer_config>.size)
    config.hidden_size = hidden
    config.intermediate_size = intermediate
    config.n_experts = experts
    config.top_k = topK
    configure(&config)
    self.config = config
    self.owner = owner

    var created = owner?.context
    if created == nil {
      var contextConfig = contextConfig ?? defaultContextConfig()
      try check(moe_context_create(&contextConfig, &created))
    }
    context = try #require(created)
    try check(moe_layer_create(context, &config, &created))
    layer = try #require(created)
    try check(moe_tape_create(layer, &created))
    tape = try #require(created)
  }

  deinit {
    moe_tape_free(tape)
    moe_layer_free(layer)
    if owner == nil { moe_context_free(context) }
  }

  /// y and the whole report of one call.
  struct Output {
    var y: [Float]  // [T,H]
    var report: moe_report  // the scalars
    var tokensPerExpert: [Int64]  // [E]
    var droppedPerExpert: [Int64]  // [E]
    var meanProbability: [Float]  // [E]
    var indices: [Int32]  // [T,choices]
    var weights: [Float]  // [T,choices]
  }

  /// Forward of x [T,H]; fills the layer's own tape unless another is given.
  func forward(_ x: [Float], options: moe_forward_options? = nil, tape other: OpaquePointer? = nil) throws -> Output {
    let tokens = x.count / hidden
    var y = [Float](repeating: .nan, count: x.count)
    var tokensPerExpert = [Int64](repeating: -1, count: experts)
    var droppedPerExpert = tokensPerExpert
    var meanProbability = [Float](repeating: .nan, count: experts)
    var indices = [Int32](repeating: -1, count: tokens * choices)
    var weights = [Float](repeating: .nan, count: tokens * choices)
    var report = moe_report()
    moe_report_init(&report, MemoryLayout<moe_report>.size)
    var options = options ?? forwardOptions()

    try tokensPerExpert.withUnsafeMutableBufferPointer { tokensPerExpert in
      try droppedPerExpert.withUnsafeMutableBufferPointer { droppedPerExpert in
        try meanProbability.withUnsafeMutableBufferPointer { meanProbability in
          try indices.withUnsafeMutableBufferPointer { indices in
            try weights.withUnsafeMutableBufferPointer { weights in
              report.tokens_per_expert = tokensPerExpert.baseAddress
              report.dropped_per_expert = droppedPerExpert.baseAddress
              report.mean_probability = meanProbability.baseAddress
              report.expert_indices = indices.baseAddress
              report.expert_weights = weights.baseAddress
              try check(moe_layer_forward(layer, x, Int64(tokens), &options, &y, other ?? tape, &report))
            }
          }
        }
      }
    }
    return Output(
      y: y, report: report, tokensPerExpert: tokensPerExpert, droppedPerExpert: droppedPerExpert,
      meanProbability: meanProbability, indices: indices, weights: weights)
  }

  /// y [T,H] of a call without a tape.
  func untaped(_ x: [Float]) throws -> [Float] {
    var y = [Float](repeating: .nan, count: x.count)
    try check(moe_layer_forward(layer, x, Int64(x.count / hidden), nil, &y, nil, nil))
    return y
  }

  /// Adds to the gradients of the parameters and returns dx [T,H].
  func backward(_ x: [Float], dy: [Float], dAuxLoss: Float = 0, tape other: OpaquePointer? = nil) throws -> [Float] {
    var dx = [Float](repeating: .nan, count: x.count)
    try check(moe_layer_backward(layer, other ?? tape, x, dy, dAuxLoss, &dx, nil))
    return dx
  }

  /// The same for a call that was given the experts' weights; also their gradient [T,K].
  func backwardToWeights(_ x: [Float], dy: [Float], dAuxLoss: Float = 0) throws -> (dx: [Float], dWeights: [Float]) {
    var dx = [Float](repeating: .nan, count: x.count)
    var dWeights = [Float](repeating: .nan, count: x.count / hidden * topK)
    try dWeights.withUnsafeMutableBufferPointer {
      var options = moe_backward_options()
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      options.d_expert_weights = $0.baseAddress
      try check(moe_layer_backward(layer, tape, x, dy, dAuxLoss, &dx, &options))
    }
    return (dx, dWeights)
  }

  /// Adds noise to parameters that are the same all over, as biases and scales are at first: every element counts then.
  func stir() throws {
    for (seed, tensor) in try tensors().enumerated() where tensor.dtype == MOE_DTYPE_F32.int32 && tensor.count > 1 {
      let values = tensor.values
      guard values.allSatisfy({ $0 == values[0] }) else { continue }
      for (i, v) in noise(tensor.count, seed: UInt64(500 + seed)).enumerated() { values[i] += 0.3 * v }
    }
  }

  /// All parameters, in the library's order.
  func tensors() throws -> [moe_tensor] {
    var count: Int64 = 0
    try check(moe_layer_parameter_count(layer, &count))
    return try (0..<count).map { index in
      var tensor = moe_tensor()
      moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
      try check(moe_layer_parameter(layer, index, &tensor))
      return tensor
    }
  }

  func parameter(_ name: String) throws -> moe_tensor {
    var index: Int64 = -1
    try check(moe_layer_find_parameter(layer, name, &index))
    return try tensors()[Int(index)]
  }

  /// All gradients, one after the other.
  func gradients() throws -> [Float] { try tensors().flatMap { Array($0.gradient) } }
}

func defaultContextConfig() -> moe_context_config {
  var config = moe_context_config()
  moe_context_config_init(&config, MemoryLayout<moe_context_config>.size)
  return config
}

func contextConfig(
  threads: Int32 = 1, matmul: moe_matmul = MOE_MATMUL_AUTO, instructions: moe_instructions = MOE_INSTRUCTIONS_ALL
) -> moe_context_config {
  var config = defaultContextConfig()
  config.n_threads = threads
  config.matmul = matmul.int32
  config.instructions = instructions.int32
  return config
}

let everyInstructionSet = [MOE_INSTRUCTIONS_BASE, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_AVX512]

func forwardOptions(training: Bool = false, step: UInt64 = 0) -> moe_forward_options {
  var options = moe_forward_options()
  moe_forward_options_init(&options, MemoryLayout<moe_forward_options>.size)
  options.training = training ? 1 : 0
  options.step = step
  return options
}

/// `count` numbers within [-1, 1) that are the same on every run (SplitMix64).
func noise(_ count: Int, seed: UInt64 = 1) -> [Float] {
  var state = seed
  return (0..<count).map { _ in
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return Float((z ^ (z >> 31)) >> 40) / Float(1 << 23) - 1
  }
}

/// For comparisons that mean the same bits, not the same numbers. Copied whole: there are many.
func bits(_ values: [Float]) -> [UInt32] { values.withUnsafeBytes { Array($0.bindMemory(to: UInt32.self)) } }

/// Every entry is within `tolerance`, relative to the largest expected magnitude.
func expectClose(
  _ actual: some Collection<Float>, _ expected: some Collection<Double>, within tolerance: Double,
  _ what: String = "", sourceLocation: SourceLocation = #_sourceLocation
) {
  #expect(actual.count == expected.count, "\(what)", sourceLocation: sourceLocation)
  let scale = expected.reduce(Double.leastNormalMagnitude) { max($0, abs($1)) }
  for (i, (a, e)) in zip(actual, expected).enumerated() where !(abs(Double(a) - e) <= tolerance * scale) {
    Issue.record("\(what)[\(i)] = \(a), expected \(e) within \(tolerance * scale)", sourceLocation: sourceLocation)
    return
  }
}
