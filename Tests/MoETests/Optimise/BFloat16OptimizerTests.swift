import CMoE
import Testing

/// Optimisers over bfloat16 tensors, which follow a float32 copy.
@Suite("Optimisers of bfloat16")
struct BFloat16OptimizerTests {
  /// A float32 tensor, a bfloat16 one that begins with the same values, and an optimiser for each.
  private final class Twins {
    let float: Variable
    let half: HalfVariable
    let layer: Layer  // for its context
    private var optimizers: [OpaquePointer] = []

    init(_ values: [Float], adamw: Bool = false, rate: Double, threads: Int32 = 1) throws {
      let start = rounded(values)
      float = Variable("float", start, grad: start.map { _ in 1 })
      half = HalfVariable(halves(start), grad: float.grad)
      layer = try Layer(in: contextConfig(threads: threads))
      for tensor in [float.tensor, half.tensor] {
        var created: OpaquePointer?
        if adamw {
          try check(moe_adamw_create(layer.context, nil, [tensor], 1, &created))
        } else {
          var config = moe_sgd_config()
          moe_sgd_config_init(&config, MemoryLayout<moe_sgd_config>.size)
          config.momentum = 0.5
          config.weight_decay = 0.1
          try check(moe_sgd_create(layer.context, &config, [tensor], 1, &created))
        }
        try check(moe_optimizer_set_learning_rate(created, rate))
        optimizers.append(created!)
      }
    }

    deinit { for optimizer in optimizers { moe_optimizer_free(optimizer) } }

    func step() throws {
      try check(moe_optimizer_step(optimizers[0], [float.tensor], 1))
      try check(moe_optimizer_step(optimizers[1], [half.tensor], 1))
    }

    /// The bfloat16 tensor is the float32 one rounded, bit for bit.
    func expectTheSame(_ what: String, sourceLocation: SourceLocation = #_sourceLocation) {
      #expect(
        Array(half.data) == halves(rounded(Array(float.data))), "\(what)", sourceLocation: sourceLocation)
    }
  }

  /// A bfloat16 tensor of one dimension, whose gradient is another's.
  private final class HalfVariable {
    let data: UnsafeMutableBufferPointer<UInt16>
    let grad: UnsafeMutableBufferPointer<Float>

    init(_ data: [UInt16], grad: UnsafeMutableBufferPointer<Float>) {
      self.data = .allocate(capacity: data.count)
      _ = self.data.initialize(from: data)
      self.grad = grad
    }

    deinit { data.deallocate() }

    var tensor: moe_tensor {
      var tensor = moe_tensor()
      moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
      tensor.dtype = MOE_DTYPE_BF16.int32
      tensor.rank = 1
      tensor.shape.0 = Int64(data.count)
      tensor.data = UnsafeMutableRawPointer(data.baseAddress)
      tensor.grad = UnsafeMutableRawPointer(grad.baseAddress)
      return tensor
    }
  }

  /// Fewer elements than a register has, and more than one thread's piece.
  @Test(arguments: [1, 15, 1025, 33_001], [false, true])
  func dataAreTheRoundedFloat32Parameters(count: Int, adamw: Bool) throws {
    let twins = try Twins(noise(count), adamw: adamw, rate: 0.01, threads: 3)
    for step in 0..<5 {
      _ = twins.float.grad.update(from: noise(count, seed: UInt64(10 + step)))
      try twins.step()
      twins.expectTheSame("step \(step)")
    }
  }

  @Test(arguments: [false, true])
  func stepsSmallerThanBFloat16ResolvesAddUp(adamw: Bool) throws {
    // Below 1 the numbers are 2^-8 apart: one step of 1e-4 changes nothing.
    let twins = try Twins([1, -1], adamw: adamw, rate: 1e-4)
    try twins.step()
    #expect(Array(twins.half.data) == halves([1, -1]))
    for _ in 0..<99 { try twins.step() }
    twins.expectTheSame("a hundred steps")
    #expect(twins.half.data[0] < halves([1])[0])
  }

  @Test(arguments: [false, true])
  func whatIsWrittenBetweenStepsIsTakenOver(adamw: Bool) throws {
    let twins = try Twins(noise(40), adamw: adamw, rate: 1e-4)
    for step in 0..<6 {
      // The same number as before in other bits, zero with the other sign, is something written too.
      for (i, value) in [(step, Float(3)), (39 - step, -0.0), (20, step % 2 == 0 ? 0.0 : -0.0)] {
        twins.float.data[i] = value
        twins.half.data[i] = halves([value])[0]
      }
      try twins.step()
      twins.expectTheSame("step \(step)")
    }
  }

  @Test func whatIsNotFiniteStaysSo() throws {
    let twins = try Twins([.infinity, -.infinity, .nan, 1], rate: 0.1)
    twins.float.grad[3] = .nan
    for _ in 0..<2 { try twins.step() }
    let found = floats(twins.half.data)
    #expect(found[0] == .infinity && found[1] == -.infinity && found[2].isNaN && found[3].isNaN)
    // A number in its place is a new beginning, with the momentum as it was.
    for i in 0..<3 {
      twins.float.data[i] = 2
      twins.half.data[i] = halves([2])[0]
    }
    try twins.step()
    #expect(Array(twins.half.data.prefix(3)) == halves(rounded(Array(twins.float.data.prefix(3)))))
  }

  @Test func refusals() throws {
    let twins = try Twins([1, 2, 3], rate: 0.1)
    let layer = twins.layer
    var created: OpaquePointer?
    try check(moe_adamw_create(layer.context, nil, [twins.half.tensor], 1, &created))
    defer { moe_optimizer_free(created) }
    func step(_ change: (inout moe_tensor) -> Void) -> moe_status {
      var tensor = twins.half.tensor
      change(&tensor)
      return moe_optimizer_step(created, &tensor, 1)
    }
    refused("dtype", step { $0.dtype = MOE_DTYPE_F32.int32 })
    refused("dtype", step { $0.dtype = 2 })
    refused("data", step { $0.data += 1 })
    refused("grad", step { $0.grad += 2 })
    #expect(Array(twins.half.data) == halves([1, 2, 3]))

    // Data of two bytes each, right in front of the gradient and one byte into it.
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 20, alignment: 4)
    defer { memory.deallocate() }
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: 20)
    try check(step { ($0.data, $0.grad) = (memory + 2, memory + 8) })
    refused("data", step { ($0.data, $0.grad) = (memory + 4, memory + 8) })
  }

  @Test func clippingMeasuresTheGradientsAsEver() throws {
    let twins = try Twins([7, 7], rate: 0.1)
    _ = twins.half.grad.update(from: [3, 4])
    var norm = 0.0
    try check(moe_clip_grad_norm(twins.layer.context, [twins.half.tensor], 1, 1, &norm))
    #expect(norm == 5)
    #expect(Array(twins.half.data) == halves([7, 7]))
  }
}
