import CMoE
import Testing

/// Every argument of every function of the layer wrong once.
@Suite("Bad calls of a layer")
final class BadCallTests {
  let layer: Layer
  let tokens: Int64 = 3
  let x = Variable("x", noise(15), grad: [])
  let y = Variable("y", noise(16), grad: [])  // one more than [T,H], room for misaligned pointers
  let before: [UInt32]

  init() throws {
    layer = try Layer()
    before = bits(try layer.forward(noise(15)).y)
  }

  /// Whatever was refused, the layer computes as before.
  private func stillWorks() throws {
    #expect(bits(try layer.forward(noise(15)).y) == before)
    #expect(try layer.gradients().allSatisfy { $0 == 0 })
  }

  private var xs: UnsafeMutablePointer<Float> { x.data.baseAddress! }
  private var ys: UnsafeMutablePointer<Float> { y.data.baseAddress! }

  @Test func parameterCount() {
    var count: Int64 = -7
    refused("layer", moe_layer_parameter_count(nil, &count))
    refused("count", moe_layer_parameter_count(layer.layer, nil))
    #expect(count == -7)
  }

  @Test func parameter() {
    var tensor = Variable("mine", [1], grad: [1]).tensor
    refused("layer", moe_layer_parameter(nil, 0, &tensor))
    refused("tensor", moe_layer_parameter(layer.layer, 0, nil))
    for index: Int64 in [-1, 6, .min, .max] { refused("index", moe_layer_parameter(layer.layer, index, &tensor)) }
    for size in wrongStructSizes {
      tensor.struct_size = size
      refused("struct_size", moe_layer_parameter(layer.layer, 0, &tensor))
    }
    #expect(String(cString: tensor.name) == "mine" && tensor.rank == 1 && tensor.shape.0 == 1)
  }

  @Test func findParameter() {
    var index: Int64 = -7
    refused("layer", moe_layer_find_parameter(nil, "router.weight", &index))
    refused("name", moe_layer_find_parameter(layer.layer, nil, &index))
    refused("index", moe_layer_find_parameter(layer.layer, "router.weight", nil))
    refused("name", moe_layer_find_parameter(layer.layer, "", &index))
    for name in ["router", "router.weight ", "experts.gate.weight"] {
      #expect(moe_layer_find_parameter(layer.layer, name, &index) == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError().contains("name") && lastError().contains(name), "\(lastError())")
    }
    refused("name", moe_layer_find_parameter(layer.layer, String(repeating: "x", count: 100_000), &index))
    #expect(index == -7)
  }

  @Test func bindParameter() throws {
    let bias = Variable("bias", [1, 2, 3, 4, 5], grad: [0, 0, 0, 0, 0])  // router.bias is [4]
    let (data, grad) = (bias.data.baseAddress!, bias.grad.baseAddress!)
    refused("layer", moe_layer_bind_parameter(nil, 1, data, grad))
    refused("data", moe_layer_bind_parameter(layer.layer, 1, nil, grad))
    for index: Int64 in [-1, 6, .min, .max] {
      refused("index", moe_layer_bind_parameter(layer.layer, index, data, grad))
    }
    refused("data", moe_layer_bind_parameter(layer.layer, 1, misaligned(data), grad))
    refused("grad", moe_layer_bind_parameter(layer.layer, 1, data, misaligned(grad)))
    refused("grad", moe_layer_bind_parameter(layer.layer, 1, data, data + 1))
    refused("grad", moe_layer_bind_parameter(layer.layer, 1, data, data))

    let inference = try Layer { $0.inference_only = 1 }
    refused("grad", moe_layer_bind_parameter(inference.layer, 1, data, grad))
    try stillWorks()
  }

  @Test func bindParameterWithoutAGradient() throws {
    let biased = try Layer { $0.selection_bias = 1 }
    var index: Int64 = -1
    try check(moe_layer_find_parameter(biased.layer, "router.selection_bias", &index))
    let before = try biased.parameter("router.selection_bias")
    let bias = Variable("bias", [1, 2, 3, 4], grad: [0, 0, 0, 0])
    #expect(
      moe_layer_bind_parameter(biased.layer, index, bias.data.baseAddress, bias.grad.baseAddress)
        == MOE_ERROR_INVALID_ARGUMENT)
    #expect(lastError() == "grad must be NULL: router.selection_bias has no gradient")
    #expect(try biased.parameter("router.selection_bias").data == before.data)
    try check(moe_layer_bind_parameter(biased.layer, index, bias.data.baseAddress, nil))
    #expect(try Array(biased.parameter("router.selection_bias").values) == [1, 2, 3, 4])
  }

  @Test func zeroGrad() throws {
    refused("layer", moe_layer_zero_grad(nil))
    let inference = try Layer { $0.inference_only = 1 }
    refused("inference_only", moe_layer_zero_grad(inference.layer), MOE_ERROR_BAD_STATE)
  }

  @Test func tapeCreate() {
    var out = untouched
    refused("layer", moe_tape_create(nil, &out))
    refused("out", moe_tape_create(layer.layer, nil))
    #expect(out == untouched)
  }

  @Test func forward() throws {
    refused("layer", moe_layer_forward(nil, xs, tokens, nil, ys, nil, nil))
    refused("x", moe_layer_forward(layer.layer, nil, tokens, nil, ys, nil, nil))
    refused("y", moe_layer_forward(layer.layer, xs, tokens, nil, nil, nil, nil))
    refused("x", moe_layer_forward(layer.layer, misaligned(xs), tokens - 1, nil, ys, nil, nil))
    refused("y", moe_layer_forward(layer.layer, xs, tokens, nil, misaligned(ys), nil, nil))
    for count: Int64 in [-1, .min, 1 << 30, 1 << 31, 1 << 62, .max] {  // T * K < 2^31, and K = 2
      refused("n_tokens", moe_layer_forward(layer.layer, xs, count, nil, ys, nil, nil))
    }

    // y over x: the same, shifted by one, and touching in one number only.
    refused("y", moe_layer_forward(layer.layer, ys, tokens, nil, ys, nil, nil))
    refused("y", moe_layer_forward(layer.layer, ys, tokens, nil, ys + 1, nil, nil))
    refused("y", moe_layer_forward(layer.layer, ys + 4, 1, nil, ys, nil, nil))
    for tensor in try layer.tensors() {
      refused("y", moe_layer_forward(layer.layer, xs, 1, nil, tensor.values.baseAddress, nil, nil))
    }

    let other = try Layer()
    refused("tape", moe_layer_forward(layer.layer, xs, tokens, nil, ys, other.tape, nil), MOE_ERROR_BAD_STATE)
    try stillWorks()
  }

  @Test func neighboursAreNotOverlaps() throws {
    // x and y side by side, in both orders.
    let both = Variable("both", noise(30), grad: [])
    let first = both.data.baseAddress!
    try check(moe_layer_forward(layer.layer, first, tokens, nil, first + 15, nil, nil))
    try check(moe_layer_forward(layer.layer, first + 15, tokens, nil, first, nil, nil))
  }

  @Test func forwardOptionsAndReport() throws {
    func forward(_ change: (inout moe_forward_options) -> Void) -> moe_status {
      var options = forwardOptions()
      change(&options)
      return moe_layer_forward(layer.layer, xs, tokens, &options, ys, nil, nil)
    }
    for size in wrongStructSizes { refused("struct_size", forward { $0.struct_size = size }) }
    for value: Int32 in [-1, 2, .max] { refused("training", forward { $0.training = value }) }
    refused("reserved", forward { $0.reserved = 1 })
    for value: UInt64 in [1 << 56, .max] { refused("step", forward { $0.step = value }) }
    try check(forward { $0.step = 1 << 56 - 1 })

    func report(_ change: (inout moe_report) -> Void) -> moe_status {
      var report = moe_report()
      moe_report_init(&report, MemoryLayout<moe_report>.size)
      report.entropy = -7
      change(&report)
      let status = moe_layer_forward(layer.layer, xs, tokens, nil, ys, nil, &report)
      #expect(report.entropy == -7, "scalar outputs stay as they were")
      return status
    }
    for size in wrongStructSizes { refused("struct_size", report { $0.struct_size = size }) }
    var (wide, narrow, floats) = ([Int64](repeating: 0, count: 8), [Int32](repeating: 0, count: 8), noise(8))
    wide.withUnsafeMutableBufferPointer { wide in
      refused("tokens_per_expert", report { $0.tokens_per_expert = misaligned(wide.baseAddress!) })
      refused("dropped_per_expert", report { $0.dropped_per_expert = misaligned(wide.baseAddress!) })
    }
    narrow.withUnsafeMutableBufferPointer { narrow in
      refused("expert_indices", report { $0.expert_indices = misaligned(narrow.baseAddress!) })
    }
    floats.withUnsafeMutableBufferPointer { floats in
      refused("mean_probability", report { $0.mean_probability = misaligned(floats.baseAddress!) })
      refused("expert_weights", report { $0.expert_weights = misaligned(floats.baseAddress!) })
      refused("losses", report { $0.losses = misaligned(floats.baseAddress!) })
    }
    try stillWorks()
  }

  @Test func aRefusedForwardEmptiesTheTape() throws {
    _ = try layer.forward(noise(15))
    refused("y", moe_layer_forward(layer.layer, xs, tokens, nil, nil, layer.tape, nil))
    refused("tape", moe_layer_backward(layer.layer, layer.tape, xs, xs, 0, nil, nil), MOE_ERROR_BAD_STATE)
  }

  @Test func backward() throws {
    _ = try layer.forward(Array(x.data))
    let (good, tape) = (layer.layer, layer.tape)
    let dy = Variable("dy", noise(16), grad: [])
    let dys = dy.data.baseAddress!
    refused("layer", moe_layer_backward(nil, tape, xs, dys, 0, ys, nil))
    refused("tape", moe_layer_backward(good, nil, xs, dys, 0, ys, nil))
    refused("x", moe_layer_backward(good, tape, nil, dys, 0, ys, nil))
    refused("dy", moe_layer_backward(good, tape, xs, nil, 0, ys, nil))
    refused("x", moe_layer_backward(good, tape, misaligned(ys), dys, 0, nil, nil))
    refused("dy", moe_layer_backward(good, tape, xs, misaligned(dys), 0, ys, nil))
    refused("dx", moe_layer_backward(good, tape, xs, dys, 0, misaligned(ys), nil))
    for value: Float in [.nan, .infinity, -.infinity] {
      refused("d_aux_loss", moe_layer_backward(good, tape, xs, dys, value, ys, nil))
    }
    refused("dx", moe_layer_backward(good, tape, xs, dys, 0, xs, nil))
    refused("dx", moe_layer_backward(good, tape, xs, dys, 0, dys, nil))
    refused("dx", moe_layer_backward(good, tape, xs, dys, 0, dys + 1, nil))

    let other = try Layer()
    refused("tape", moe_layer_backward(good, other.tape, xs, dys, 0, ys, nil), MOE_ERROR_BAD_STATE)
    refused("tape", moe_layer_backward(other.layer, other.tape, xs, dys, 0, ys, nil), MOE_ERROR_BAD_STATE)
    let inference = try Layer { $0.inference_only = 1 }
    _ = try inference.forward(Array(x.data))
    refused(
      "inference_only", moe_layer_backward(inference.layer, inference.tape, xs, dys, 0, ys, nil), MOE_ERROR_BAD_STATE)

    #expect(try layer.gradients().allSatisfy { $0 == 0 }, "nothing was added")
    try check(moe_layer_backward(good, tape, xs, dys, 0, ys, nil))
  }
}
