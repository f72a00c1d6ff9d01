import CMoE
import Testing

@Suite("Layer parameters")
struct ParameterTests {
  @Test func theDefaultsAreTheDocumentedOnes() {
    var config = moe_layer_config()
    moe_layer_config_init(&config, MemoryLayout<moe_layer_config>.size)
    #expect(config.struct_size == MemoryLayout<moe_layer_config>.size)
    #expect(config.hidden_size == 0 && config.intermediate_size == 0 && config.n_experts == 0 && config.top_k == 0)
    #expect(config.router_weights == MOE_ROUTER_WEIGHTS_SCORES.int32)
    #expect(config.router_normalize == MOE_NORMALIZE_SUM.int32)
    #expect(config.router_bias == MOE_BIAS_DEFAULT.int32 && config.expert_bias == MOE_BIAS_DEFAULT.int32)
    #expect(config.expert_kind == MOE_EXPERT_MLP.int32 && config.activation == MOE_ACTIVATION_GELU.int32)
    #expect(config.inference_only == 0 && config.seed == 0)
    #expect(config.dropout == 0 && config.balance_coef == 0 && config.z_coef == 0)
    #expect(config.weight_dtype == MOE_DTYPE_F32.int32 && config.io_dtype == MOE_DTYPE_F32.int32)
  }

  struct Family: Sendable {
    var kind = MOE_EXPERT_MLP
    var routerBias = MOE_BIAS_DEFAULT
    var expertBias = MOE_BIAS_DEFAULT
    var names: [String]
  }

  @Test(arguments: [
    Family(names: [
      "router.weight", "router.bias", "experts.up.weight", "experts.up.bias", "experts.down.weight",
      "experts.down.bias",
    ]),
    Family(
      routerBias: MOE_BIAS_OFF, expertBias: MOE_BIAS_OFF,
      names: ["router.weight", "experts.up.weight", "experts.down.weight"]),
    Family(
      kind: MOE_EXPERT_GATED,
      names: ["router.weight", "router.bias", "experts.gate.weight", "experts.up.weight", "experts.down.weight"]),
    Family(
      kind: MOE_EXPERT_GATED, routerBias: MOE_BIAS_ON, expertBias: MOE_BIAS_ON,
      names: [
        "router.weight", "router.bias", "experts.gate.weight", "experts.gate.bias", "experts.up.weight",
        "experts.up.bias", "experts.down.weight", "experts.down.bias",
      ]),
  ])
  func namesAndShapesFollowTheConfiguration(family: Family) throws {
    let layer = try Layer(hidden: 5, intermediate: 7, experts: 4) {
      $0.expert_kind = family.kind.int32
      $0.router_bias = family.routerBias.int32
      $0.expert_bias = family.expertBias.int32
    }
    let shapes: [String: [Int64]] = [
      "router.weight": [4, 5], "router.bias": [4],
      "experts.gate.weight": [4, 7, 5], "experts.gate.bias": [4, 7],
      "experts.up.weight": [4, 7, 5], "experts.up.bias": [4, 7],
      "experts.down.weight": [4, 5, 7], "experts.down.bias": [4, 5],
    ]
    let tensors = try layer.tensors()
    #expect(tensors.map { String(cString: $0.name) } == family.names)
    for (index, tensor) in tensors.enumerated() {
      let name = String(cString: tensor.name)
      #expect(tensor.dimensions == shapes[name])
      #expect(tensor.dtype == MOE_DTYPE_F32.int32)
      #expect(tensor.gradient.allSatisfy { $0 == 0 })
      // Row-major without gaps: each stride is the product of the dimensions behind it.
      let strides = [tensor.strides.0, tensor.strides.1, tensor.strides.2].prefix(Int(tensor.rank))
      #expect(Array(strides) == (1...Int(tensor.rank)).map { tensor.dimensions[$0...].reduce(1, *) })

      var found: Int64 = -1
      try check(moe_layer_find_parameter(layer.layer, name, &found))
      #expect(found == Int64(index))
    }
  }

  /// Whether there is memory for gradients or not.
  @Test(arguments: [Int32(0), 1]) func buffersAreSaidToBe(inferenceOnly: Int32) throws {
    let layer = try Layer {
      ($0.selection_bias, $0.expert_scale, $0.router_batch_norm, $0.warmup_steps) = (1, 1, 1, 9)
      $0.inference_only = inferenceOnly
    }
    let buffers = try layer.tensors().filter { $0.buffer == 1 }.map { String(cString: $0.name) }
    #expect(
      buffers == [
        "router.selection_bias", "router.norm.running_mean", "router.norm.running_var", "router.active_experts",
      ])
    for tensor in try layer.tensors() where tensor.buffer == 0 { #expect((tensor.grad == nil) == (inferenceOnly == 1)) }
  }

  @Test func aLaterHeadersTensorIsFilledAsFarAsKnown() throws {
    let layer = try Layer()
    try withGrown(moe_tensor(), tail: 0) { tensor in
      let size = tensor.pointee.struct_size
      try check(moe_layer_parameter(layer.layer, 0, tensor))
      #expect(tensor.pointee.struct_size == size, "its size stays the caller's")
      #expect(tensor.pointee.dimensions == [4, 5])
    }
  }

  @Test func initialValuesHaveTheDocumentedDistributions() throws {
    let (hidden, intermediate) = (48.0, 80.0)
    let layer = try Layer(hidden: 48, intermediate: 80, experts: 32) { $0.seed = 7 }

    // Normal: mean 0, deviation 1/sqrt(H), and about 4.55 % beyond two deviations.
    let router = try layer.parameter("router.weight").values.map(Double.init)
    let n = Double(router.count)
    let deviation = 1 / hidden.squareRoot()
    #expect(abs(router.reduce(0, +) / n) < 4 * deviation / n.squareRoot())
    #expect(abs((router.reduce(0) { $0 + $1 * $1 } / n).squareRoot() / deviation - 1) < 4 / (2 * n).squareRoot())
    let outside = Double(router.count { abs($0) > 2 * deviation }) / n
    #expect(abs(outside - 0.0455) < 4 * (0.0455 * 0.9545 / n).squareRoot())

    // Uniform: within the bound and close to it, with a third of its square as variance.
    let xavier = (6 / (hidden + intermediate)).squareRoot()
    for (name, bound) in [
      ("experts.up.weight", xavier), ("experts.down.weight", xavier), ("router.bias", 1 / hidden.squareRoot()),
      ("experts.up.bias", 1 / hidden.squareRoot()), ("experts.down.bias", 1 / intermediate.squareRoot()),
    ] {
      let values = try layer.parameter(name).values.map(Double.init)
      let n = Double(values.count)
      let largest = values.map { abs($0) }.max()!
      #expect(largest <= bound * 1.000001 && largest > bound * (1 - 10 / n), "\(name)")
      // Mean 0 with deviation bound/sqrt(3n); mean square bound^2/3 with relative deviation sqrt(0.8/n).
      #expect(abs(values.reduce(0, +) / n) < 4 * bound / (3 * n).squareRoot(), "\(name)")
      let variance = values.reduce(0) { $0 + $1 * $1 } / n
      #expect(abs(3 * variance / (bound * bound) - 1) < 4 * (0.8 / n).squareRoot(), "\(name)")
    }
  }

  @Test func theSeedDecidesTheInitialValues() throws {
    func values(seed: UInt64) throws -> [Float] {
      let layer = try Layer { $0.seed = seed }
      return try layer.tensors().flatMap { Array($0.values) }
    }
    let first = try values(seed: 3)
    #expect(bits(first) == bits(try values(seed: 3)))
    let equal = zip(first, try values(seed: 4)).count { $0 == $1 }
    #expect(equal == 0)
    // No two tensors share their numbers either.
    #expect(Set(bits(first)).count > first.count * 99 / 100)
  }

  @Test func valuesAreReadAndWrittenInPlace() throws {
    let layer = try Layer(experts: 1, topK: 1)
    for tensor in try layer.tensors() { tensor.values.update(repeating: 0) }
    let bias = try layer.parameter("experts.down.bias").values
    for h in 0..<layer.hidden { bias[h] = Float(h) }
    // One expert has all the weight, and only its last bias is left of it.
    #expect(try layer.forward([9, 9, 9, 9, 9]).y == [0, 1, 2, 3, 4])
  }

  @Test func aBoundParameterIsTheCallersMemory() throws {
    let layer = try Layer()
    let plain = try Layer()
    let x = noise(6 * layer.hidden)
    let dy = noise(x.count, seed: 2)

    var index: Int64 = -1
    try check(moe_layer_find_parameter(layer.layer, "experts.up.weight", &index))
    let count = try layer.tensors()[Int(index)].count
    let data = UnsafeMutableBufferPointer<Float>.allocate(capacity: count)
    let grad = UnsafeMutableBufferPointer<Float>.allocate(capacity: count)
    defer {
      data.deallocate()
      grad.deallocate()
    }
    _ = data.initialize(from: try plain.parameter("experts.up.weight").values)
    grad.initialize(repeating: 0)
    try check(moe_layer_bind_parameter(layer.layer, index, data.baseAddress, grad.baseAddress))
    let bound = try layer.parameter("experts.up.weight")
    #expect(bound.data == UnsafeMutableRawPointer(data.baseAddress))
    #expect(bound.grad == UnsafeMutableRawPointer(grad.baseAddress))

    // The same values give the same bits, and gradients arrive in the caller's memory.
    #expect(bits(try layer.forward(x).y) == bits(try plain.forward(x).y))
    _ = try layer.backward(x, dy: dy)
    _ = try plain.backward(x, dy: dy)
    #expect(bits(Array(grad)) == bits(Array(try plain.parameter("experts.up.weight").gradient)))

    // A change of the caller's is a change of the layer's.
    data.update(repeating: 0)
    try plain.parameter("experts.up.weight").values.update(repeating: 0)
    #expect(bits(try layer.forward(x).y) == bits(try plain.forward(x).y))
  }

  @Test func bindingWhatIsBoundAlreadyChangesNothing() throws {
    let layer = try Layer()
    let before = try layer.parameter("router.weight")
    before.gradient.update(repeating: 3)
    let values = Array(before.values)
    try check(
      moe_layer_bind_parameter(
        layer.layer, 0, before.values.baseAddress, before.gradient.baseAddress))
    let after = try layer.parameter("router.weight")
    #expect(after.data == before.data && after.grad == before.grad)
    #expect(Array(after.values) == values && after.gradient.allSatisfy { $0 == 3 })
  }

  @Test func bindingWithoutGradientKeepsTheGradientWhereItIs() throws {
    let layer = try Layer()
    let before = try layer.parameter("router.weight")
    before.gradient.update(repeating: 3)
    let data = UnsafeMutableBufferPointer<Float>.allocate(capacity: before.count)
    defer { data.deallocate() }
    data.initialize(repeating: 1)
    try check(moe_layer_bind_parameter(layer.layer, 0, data.baseAddress, nil))
    let after = try layer.parameter("router.weight")
    #expect(after.data == UnsafeMutableRawPointer(data.baseAddress))
    #expect(after.grad == before.grad)
    #expect(after.gradient.allSatisfy { $0 == 3 })
  }

  @Test func zeroGradClearsEveryGradientAndNothingElse() throws {
    let layer = try Layer()
    let values = try layer.tensors().flatMap { Array($0.values) }
    for tensor in try layer.tensors() { tensor.gradient.update(repeating: .nan) }
    try check(moe_layer_zero_grad(layer.layer))
    #expect(try layer.gradients().allSatisfy { $0 == 0 })
    #expect(bits(try layer.tensors().flatMap { Array($0.values) }) == bits(values))
  }
}
