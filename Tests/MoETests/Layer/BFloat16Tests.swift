import CMoE
import Testing

/// Layers with bfloat16 weights, and tokens in bfloat16. That all ways to compute give the same bits: SameBitsTests;
/// what is rounded where: the Python tests, which have an oracle for it.
@Suite("bfloat16")
struct BFloat16Tests {
  // MARK: how near

  /// One token, odd H and I, odd numbers of rows, experts without any.
  private static let sizes = [
    Size(tokens: 1, hidden: 33, intermediate: 17, experts: 3, topK: 1),
    Size(tokens: 41, hidden: 301, intermediate: 71, experts: 5, topK: 2),
    Size(tokens: 3, hidden: 47, intermediate: 19, experts: 40, topK: 2),
    Size(tokens: 129, hidden: 37, intermediate: 55, experts: 6, topK: 3),
  ]

  /// Every kind of expert, and every size with some of each.
  private static let cases = ExpertKind.all.enumerated().map { ($1, sizes[($0 + $0 / sizes.count) % sizes.count]) }

  /// One pass over a layer with weights that bfloat16 has.
  private func record(
    _ size: Size, _ expert: ExpertKind, _ type: moe_dtype, _ context: moe_context_config
  ) throws -> Record {
    let layer = try size.layer(in: context) {
      expert.apply(to: &$0)
      $0.weight_dtype = type.int32
    }
    for tensor in try layer.tensors() where tensor.rank == 3 && type == MOE_DTYPE_F32 {
      _ = tensor.values.update(from: rounded(Array(tensor.values)))
    }
    return try Record(ofOnePassOver: layer, tokens: size.tokens)
  }

  /// In every part the 2-norm of the differences is small beside that of the expected values.
  private func expectNear(
    _ actual: Record, _ expected: Record, within tolerance: Double, except: Set<String> = [], _ what: String,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    func norm(_ values: [Float]) -> Double { values.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot() }
    for (name, expected) in expected.parts where !except.contains(name) {
      let (wanted, found) = (expected.map(Float.init(bitPattern:)), actual.parts[name]!.map(Float.init(bitPattern:)))
      let error = norm(zip(found, wanted).map { $0 - $1 })
      if found.count != wanted.count || !(error <= tolerance * norm(wanted)) {
        Issue.record("\(what): \(name) is off by \(error / norm(wanted))", sourceLocation: sourceLocation)
      }
    }
  }

  /// Sums that differ in their last bits, by 2^-22 or so, are rounded to different bfloat16 numbers once in thousands of
  /// times, which are then 2^-8 apart: 2.5e-4 of the norm at most where there are few numbers, mostly below 1e-4.
  @Test func allProductsAgree() throws {
    for (expert, size) in Self.cases {
      let expected = try record(size, expert, MOE_DTYPE_BF16, contextConfig(matmul: MOE_MATMUL_REFERENCE))
      for context in [
        contextConfig(threads: 2), contextConfig(matmul: MOE_MATMUL_OPENBLAS),
        contextConfig(instructions: MOE_INSTRUCTIONS_BASE),
      ] {
        expectNear(
          try record(size, expert, MOE_DTYPE_BF16, context), expected, within: 5e-4,
          "\(expert), \(size), matmul \(context.matmul), instructions \(context.instructions)")
      }
    }
  }

  /// One rounding is off by 2^-9 of the number at most: eight significant bits, and half of the last. The most of them
  /// meet in the gradient of W_down, a sum of (dy times a weight) a: those of x, of the pre-activation and of a, and that
  /// of dy, four in all. A square doubles the relative error of what it is of, which two have rounded before: six.
  @Test func float32IsNear() throws {
    // The slope of ReLU jumps at 0, that of clamps at their limits; the terms of the router bias's gradient cancel out.
    for (expert, size) in Self.cases where !expert.hasJumps {
      expectNear(
        try record(size, expert, MOE_DTYPE_BF16, contextConfig(threads: 2)),
        try record(size, expert, MOE_DTYPE_F32, contextConfig(threads: 2)),
        within: (expert.activation == MOE_ACTIVATION_RELU2 ? 6 : 4) * 0x1p-9,
        except: ["gradient of router.bias"], "\(expert), \(size)")
    }
  }

  /// A number too large for bfloat16 is infinite there, and stays so: odd widths are filled up, but not with NaN.
  @Test(
    arguments: [MOE_MATMUL_AUTO, MOE_MATMUL_REFERENCE],
    [MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX512, MOE_INSTRUCTIONS_AVX2])
  func overflowIsInfinite(matmul: moe_matmul, instructions: moe_instructions) throws {
    let context = contextConfig(matmul: matmul, instructions: instructions)
    let layer = try Layer(hidden: 7, intermediate: 5, experts: 1, topK: 1, in: context) {
      $0.weight_dtype = MOE_DTYPE_BF16.int32
      $0.activation = MOE_ACTIVATION_RELU.int32
    }
    try layer.parameter("router.weight").values.update(repeating: 0)
    for name in ["experts.up.weight", "experts.down.weight"] {
      try layer.parameter(name).halves.update(repeating: halves([1])[0])
    }
    var x = [Float](repeating: 1, count: 3 * 7)
    x[9] = .greatestFiniteMagnitude  // of the second token
    let y = try layer.untaped(x)
    #expect(y[7..<14].allSatisfy { $0 == .infinity })
    #expect((y[..<7] + y[14...]).allSatisfy { $0.isFinite })
  }

  // MARK: tokens in bfloat16

  /// A layer that differs in io_dtype only gives the same numbers, rounded.
  @Test(arguments: [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func tokensAreWidenedAndRounded(weights: moe_dtype) throws {
    func layer(_ tokens: moe_dtype) throws -> Layer {
      try Layer(hidden: 33, intermediate: 17, experts: 5, topK: 2, in: contextConfig(threads: 2)) {
        $0.weight_dtype = weights.int32
        $0.io_dtype = tokens.int32
        $0.balance_coef = 0.01
      }
    }
    let (float, half) = (try layer(MOE_DTYPE_F32), try layer(MOE_DTYPE_BF16))
    for tokens in [0, 1, 301] {
      let x = rounded(noise(tokens * 33))
      let dy = rounded(noise(tokens * 33, seed: 2))
      let y = try float.forward(x).y
      let dx = try float.backward(x, dy: dy, dAuxLoss: 1)
      var (y16, dx16) = ([UInt16](repeating: 0xFFFF, count: x.count), [UInt16](repeating: 0xFFFF, count: x.count))
      try check(moe_layer_forward(half.layer, halves(x), Int64(tokens), nil, &y16, half.tape, nil))
      try check(moe_layer_backward(half.layer, half.tape, halves(x), halves(dy), 1, &dx16, nil))
      #expect(y16 == halves(rounded(y)))
      #expect(dx16 == halves(rounded(dx)))
      #expect(bits(try half.gradients()) == bits(try float.gradients()))
    }
  }

  /// With W_down = 0 one expert gives its last bias, whatever that is.
  @Test(arguments: [
    MOE_INSTRUCTIONS_ALL, MOE_INSTRUCTIONS_AVX512, MOE_INSTRUCTIONS_AVX2, MOE_INSTRUCTIONS_BASE,
  ])
  func everyKindOfNumberIsRoundedToTheNearest(instructions: moe_instructions) throws {
    // Some of all upper halves; with lower ones around the numbers that bfloat16 has, and around the ties between them.
    let all = stride(from: UInt32(0), to: 0x1_0000, by: 37).flatMap { upper in
      [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map { Float(bitPattern: upper << 16 | $0) }
    }
    let values = [.infinity, -.infinity, .nan, .greatestFiniteMagnitude] + all + all.prefix(all.count % 2 + 1)
    #expect(values.count % 2 == 1)
    func layer(_ tokens: moe_dtype) throws -> Layer {
      let layer = try Layer(
        hidden: Int64(values.count), intermediate: 1, experts: 1, topK: 1, in: contextConfig(instructions: instructions)
      ) { $0.io_dtype = tokens.int32 }
      try layer.parameter("experts.down.weight").values.update(repeating: 0)
      _ = try layer.parameter("experts.down.bias").values.update(from: values)
      return layer
    }
    let (float, half) = (try layer(MOE_DTYPE_F32), try layer(MOE_DTYPE_BF16))
    let zeros = [Float](repeating: 0, count: values.count)
    let y = try float.untaped(zeros)
    #expect(zip(y, values).allSatisfy { $0 == $1 || $1.isNaN })
    var y16 = halves(zeros)
    try check(moe_layer_forward(half.layer, halves(zeros), 1, nil, &y16, nil, nil))
    for (half, value) in zip(y16, y) {
      let found = floats([half])[0]
      #expect(value.isNaN ? found.isNaN : found.bitPattern == rounded(value).bitPattern, "\(value)")
    }
  }

  // MARK: parameters

  @Test func theExpertsMatricesAreTheRoundedOnes() throws {
    func layer(_ type: moe_dtype) throws -> Layer {
      try Layer(hidden: 33, intermediate: 47, experts: 3) {
        $0.weight_dtype = type.int32
        $0.expert_kind = MOE_EXPERT_GATED.int32
        $0.expert_bias = MOE_BIAS_ON.int32
      }
    }
    let (float, half) = (try layer(MOE_DTYPE_F32), try layer(MOE_DTYPE_BF16))
    for (wide, narrow) in zip(try float.tensors(), try half.tensors()) {
      let matrix = wide.rank == 3
      #expect(narrow.dtype == (matrix ? MOE_DTYPE_BF16 : MOE_DTYPE_F32).int32)
      #expect(narrow.dimensions == wide.dimensions)
      #expect(bits(narrow.numbers) == bits(matrix ? rounded(wide.numbers) : wide.numbers))
      #expect(narrow.gradient.allSatisfy { $0 == 0 })
    }
  }

  @Test func weightsTakeHalfTheMemory() throws {
    func bytes(_ type: moe_dtype) throws -> Int {
      let allocator = CountingAllocator()
      let layer = try Layer(hidden: 64, intermediate: 96, experts: 4, in: allocator.contextConfig) {
        $0.weight_dtype = type.int32
      }
      return withExtendedLifetime(layer) { allocator.liveBytes }
    }
    #expect(try bytes(MOE_DTYPE_F32) - bytes(MOE_DTYPE_BF16) == 2 * 2 * 4 * 64 * 96)
  }

  /// Values, then right behind them the gradient, then y: bytes are counted in the tensors' own types.
  @Test func boundWeightsAreTheCallersMemory() throws {
    let layer = try Layer(hidden: 6, intermediate: 8) {
      $0.weight_dtype = MOE_DTYPE_BF16.int32
      $0.io_dtype = MOE_DTYPE_BF16.int32
    }
    var index: Int64 = 0
    try check(moe_layer_find_parameter(layer.layer, "experts.up.weight", &index))
    let tensor = try layer.tensors()[Int(index)]
    let (count, x) = (tensor.count, halves(rounded(noise(6))))
    var expected = x
    try check(moe_layer_forward(layer.layer, x, 1, nil, &expected, nil, nil))

    let memory = UnsafeMutablePointer<UInt16>.allocate(capacity: 3 * count + 6)
    defer { memory.deallocate() }
    memory.initialize(repeating: 0, count: 3 * count + 6)
    memory.update(from: tensor.halves.baseAddress!, count: count)
    let grad = UnsafeMutableRawPointer(memory + count).assumingMemoryBound(to: Float.self)
    refused("data", moe_layer_bind_parameter(layer.layer, index, misaligned(memory), grad))
    refused("grad", moe_layer_bind_parameter(layer.layer, index, memory + 2, grad))
    try check(moe_layer_bind_parameter(layer.layer, index, memory, grad))

    let (last, y) = (memory + count - 1, memory + 3 * count)
    refused("experts", moe_layer_forward(layer.layer, x, 1, nil, last, nil, nil))
    refused("experts", moe_layer_forward(layer.layer, x, 1, nil, y - 1, nil, nil))
    try check(moe_layer_forward(layer.layer, x, 1, nil, y, nil, nil))
    #expect(Array(UnsafeBufferPointer(start: y, count: 6)) == expected)
    memory.update(repeating: 0, count: count)
    try check(moe_layer_forward(layer.layer, x, 1, nil, y, nil, nil))
    #expect(Array(UnsafeBufferPointer(start: y, count: 6)) != expected)
  }

  // MARK: refusals

  @Test func tokensAreCheckedAsTheirTypeWants() throws {
    let layer = try Layer(hidden: 5) { $0.io_dtype = MOE_DTYPE_BF16.int32 }
    let memory = UnsafeMutablePointer<UInt16>.allocate(capacity: 32)
    defer { memory.deallocate() }
    memory.initialize(repeating: 0x3F80, count: 32)  // ones
    // 15 numbers, aligned to two bytes and not to four.
    let (x, y) = (memory + 1, memory + 16)
    func forward(_ x: UnsafeRawPointer?, _ y: UnsafeMutableRawPointer?) -> moe_status {
      moe_layer_forward(layer.layer, x, 3, nil, y, layer.tape, nil)
    }
    refused("x", forward(nil, y))
    refused("y", forward(x, nil))
    refused("x", forward(misaligned(x), y))
    refused("y", forward(x, misaligned(y)))
    refused("y", forward(x, y - 1))
    try check(forward(x, y))
    func backward(_ x: UnsafeRawPointer?, _ dy: UnsafeRawPointer?, _ dx: UnsafeMutableRawPointer?) -> moe_status {
      moe_layer_backward(layer.layer, layer.tape, x, dy, 0, dx, nil)
    }
    refused("x", backward(misaligned(x), x, y))
    refused("dy", backward(x, misaligned(x), y))
    refused("dx", backward(x, x, misaligned(y)))
    refused("dx", backward(x, x, y - 1))
    try check(backward(x, x, y))
  }
}
