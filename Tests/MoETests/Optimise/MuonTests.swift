import CMoE
import Foundation
import Testing

/// Muon over the caller's own tensors, against its equations in double.
@Suite("Muon")
final class MuonTests {
  private func muon(
    _ variables: [Variable], in context: OpaquePointer, byAdamW: [UInt8]? = nil,
    configure: (inout moe_muon_config) -> Void = { _ in }
  ) throws -> OpaquePointer {
    var config = moe_muon_config()
    moe_muon_config_init(&config, MemoryLayout<moe_muon_config>.size)
    configure(&config)
    var optimizer: OpaquePointer?
    try (byAdamW ?? []).withUnsafeBufferPointer { list in
      if byAdamW != nil { config.by_adamw = list.baseAddress }
      try check(moe_muon_create(context, &config, variables.map(\.tensor), Int64(variables.count), &optimizer))
    }
    return try #require(optimizer)
  }

  private func withContext(
    _ config: moe_context_config = defaultContextConfig(), _ body: (OpaquePointer) throws -> Void
  ) throws {
    var (config, context): (moe_context_config, OpaquePointer?) = (config, nil)
    try check(moe_context_create(&config, &context))
    defer { moe_context_free(context) }
    try body(try #require(context))
  }

  @Test func theDefaultsAreMoonlights() {
    var config = moe_muon_config()
    moe_muon_config_init(&config, MemoryLayout<moe_muon_config>.size)
    #expect(config.struct_size == MemoryLayout<moe_muon_config>.size)
    #expect(config.learning_rate == 1e-3 && config.momentum == 0.95 && config.weight_decay == 0.1)
    #expect(config.beta1 == 0.9 && config.beta2 == 0.95 && config.epsilon == 1e-8)
    #expect(config.by_adamw == nil && config.state_dtype == MOE_DTYPE_F32.int32 && config.seed == 0)
  }

  // MARK: the equations

  /// Row-major, [rows, columns].
  private struct Matrix {
    var rows: Int
    var columns: Int
    var values: [Double]

    func times(_ other: Matrix) -> Matrix {
      var product = Matrix(
        rows: rows, columns: other.columns, values: [Double](repeating: 0, count: rows * other.columns))
      for i in 0..<rows {
        for j in 0..<other.columns {
          for k in 0..<columns {
            product.values[i * other.columns + j] += values[i * columns + k] * other.values[k * other.columns + j]
          }
        }
      }
      return product
    }

    var transposed: Matrix {
      var turned = Matrix(rows: columns, columns: rows, values: values)
      for i in 0..<rows { for j in 0..<columns { turned.values[j * rows + i] = values[i * columns + j] } }
      return turned
    }

    func mapped(_ body: (Int) -> Double) -> Matrix {
      Matrix(rows: rows, columns: columns, values: values.indices.map(body))
    }

    /// Newton and Schulz's iteration.
    var orthogonalised: Matrix {
      if rows > columns { return transposed.orthogonalised.transposed }
      let norm = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
      var x = mapped { values[$0] / (norm + 1e-7) }
      for _ in 0..<5 {
        let a = x.times(x.transposed)
        let squared = a.times(a)
        let b = a.mapped { -4.7750 * a.values[$0] + 2.0315 * squared.values[$0] }
        let step = b.times(x)
        x = x.mapped { 3.4445 * x.values[$0] + step.values[$0] }
      }
      return x
    }
  }

  @Test(arguments: [[4, 6], [6, 4], [3, 5, 2], [2, 3, 1, 7], [5, 5], [1, 4], [40, 33]])
  func eachMatrixFollowsTheEquations(shape: [Int]) throws {
    let count = shape.reduce(1, *)
    let (rows, columns) = (shape[shape.count - 2], shape[shape.count - 1])
    let (momentum, decay) = (0.8, 0.1)
    try withContext { context in
      let w = Variable("w", noise(count), grad: noise(count), shape: shape)
      let optimizer = try muon([w], in: context) {
        $0.momentum = momentum
        $0.weight_decay = decay
      }
      defer { moe_optimizer_free(optimizer) }
      var p = Array(w.data).map(Double.init)
      var v = [Double](repeating: 0, count: count)
      for t in 1...3 {
        let rate = 0.05 / Double(t)
        let g = noise(count, seed: UInt64(10 + t))
        _ = w.grad.update(from: g)
        try check(moe_optimizer_set_learning_rate(optimizer, rate))
        try check(moe_optimizer_step(optimizer, [w.tensor], 1))
        for first in stride(from: 0, to: count, by: rows * columns) {
          let own = first..<first + rows * columns
          var u = [Double]()
          for i in own {
            v[i] = momentum * v[i] + Double(g[i])
            u.append(Double(g[i]) + momentum * v[i])
          }
          let o = Matrix(rows: rows, columns: columns, values: u).orthogonalised
          for i in own {
            p[i] -= rate * decay * p[i]
            p[i] -= rate * 0.2 * Double(max(rows, columns)).squareRoot() * o.values[i - first]
          }
        }
      }
      expectClose(Array(w.data), p, within: 2e-5)
    }
  }

  // MARK: bits

  /// What is left of two matrices, one on its side, and a tensor for AdamW, of several threads' shares.
  private func record(_ way: Way, _ type: moe_dtype) throws -> [[UInt32]] {
    var record: [[UInt32]] = []
    try withContext(way.context) { context in
      let variables = [
        Variable("wide", noise(2 * 130 * 300), grad: noise(2 * 130 * 300), shape: [2, 130, 300]),
        Variable("tall", noise(270 * 33), grad: noise(270 * 33), shape: [270, 33]),
        Variable("bias", noise(40_000), grad: noise(40_000)),
      ]
      let optimizer = try muon(variables, in: context) {
        $0.state_dtype = type.int32
        $0.seed = 5
      }
      defer { moe_optimizer_free(optimizer) }
      for step in 0..<2 {
        for variable in variables { _ = variable.grad.update(from: noise(variable.grad.count, seed: UInt64(step + 2))) }
        var norm = 0.0
        try check(moe_optimizer_step_clipped(optimizer, variables.map(\.tensor), 3, 1.5, &norm))
      }
      record = variables.map { bits(Array($0.data)) }
    }
    return record
  }

  /// Whoever computes a context's products, those of Muon are the library's own.
  @Test(arguments: [MOE_DTYPE_F32, MOE_DTYPE_BF16])
  func everyWayHasTheSameBits(stateType: moe_dtype) throws {
    let ways = Way.all(MOE_DTYPE_F32)
    let expected = try record(ways[0], stateType)
    for way in ways.dropFirst() + [Way(threads: 2, matmul: MOE_MATMUL_OPENBLAS)] {
      #expect(try record(way, stateType) == expected, "\(way)")
    }
  }

  // MARK: whose a tensor is

  /// Without decay a matrix of zero gradients stays, and so does AdamW's; a state tells them apart by its size.
  @Test func namesTellTheMatrices() throws {
    func size(_ name: StaticString, _ shape: [Int], byAdamW: [UInt8]? = nil) throws -> Int {
      var size = 0
      try withContext { context in
        let count = shape.reduce(1, *)
        let w = Variable(name, noise(count), grad: noise(count), shape: shape)
        let optimizer = try muon([w], in: context, byAdamW: byAdamW)
        defer { moe_optimizer_free(optimizer) }
        try check(moe_optimizer_state_size(optimizer, &size))
      }
      return size / 4 / shape.reduce(1, *)
    }
    #expect(try size("experts.up.weight", [2, 3, 4]) == 1)
    #expect(try size("layers.0.attention.output.weight", [3, 4]) == 1)
    #expect(try size("router.weight", [3, 4]) == 1)
    #expect(try size("w", [3, 4]) == 1)
    #expect(try size("norm.weight", [12]) == 2)
    #expect(try size("experts.up.bias", [3, 4]) == 2)
    #expect(try size("experts.constant", [3, 4]) == 2)
    for name in ["embed.weight", "positions.weight", "output.weight"] as [StaticString] {
      #expect(try size(name, [3, 4]) == 2)
    }
    #expect(try size("embed.weight", [3, 4], byAdamW: [0]) == 1)
    #expect(try size("router.weight", [3, 4], byAdamW: [1]) == 2)
  }

  @Test func badConfigsAreRefused() throws {
    try withContext { context in
      func refused(_ words: String, byAdamW: UInt8? = nil, _ change: (inout moe_muon_config) -> Void = { _ in }) {
        var config = moe_muon_config()
        moe_muon_config_init(&config, MemoryLayout<moe_muon_config>.size)
        change(&config)
        var list = [byAdamW ?? 0]
        var out: OpaquePointer?
        let w = Variable("w", noise(12), grad: noise(12))
        let status = list.withUnsafeMutableBufferPointer { list in
          if byAdamW != nil { config.by_adamw = UnsafePointer(list.baseAddress) }
          return moe_muon_create(context, &config, [w.tensor], 1, &out)
        }
        #expect(status == MOE_ERROR_INVALID_ARGUMENT && out == nil, "\(words)")
        #expect(lastError().contains(words), "\(lastError())")
      }
      refused("learning_rate = -1") { $0.learning_rate = -1 }
      refused("momentum = 1") { $0.momentum = 1 }
      refused("beta1 = nan") { $0.beta1 = .nan }
      refused("beta2 = 1") { $0.beta2 = 1 }
      refused("epsilon = 0") { $0.epsilon = 0 }
      refused("weight_decay = inf") { $0.weight_decay = .infinity }
      refused("state_dtype = 9") { $0.state_dtype = 9 }
      refused("unallocated_state = 2") { $0.unallocated_state = 2 }
      refused("by_adamw[0] = 2", byAdamW: 2)
      refused("by_adamw[0] = 0, but tensors[0] (w) has one dimension", byAdamW: 0)
    }
  }

  /// Such a matrix has no memory anywhere; what its step would take is counted all the same.
  @Test func aMatrixBeyondAllMemoryIsRefused() throws {
    try withContext { context in
      var (tensor, out): (moe_tensor, OpaquePointer?) = (moe_tensor(), nil)
      moe_tensor_init(&tensor, MemoryLayout<moe_tensor>.size)
      (tensor.rank, tensor.shape.0, tensor.shape.1) = (2, 1, 1 << 55)
      #expect(moe_muon_create(context, nil, [tensor], 1, &out) == MOE_ERROR_OUT_OF_MEMORY, "\(lastError())")
    }
  }

  /// A list of biases that is one matrix to Muon has no whole matrix in any expert.
  @Test func backwardStepsWholeMatricesAlone() throws {
    let layer = try Layer(hidden: 8, intermediate: 6, experts: 3) {
      $0.unallocated = MOE_UNALLOCATED_EXPERT_GRADIENTS.int32
      $0.expert_bias = MOE_BIAS_ON.int32
    }
    let trained = try layer.tensors()
    let x = noise(16 * 8)
    _ = try layer.forward(x)
    func run(byAdamW: [UInt8]?) throws -> moe_status {
      var (config, optimizer): (moe_muon_config, OpaquePointer?) = (moe_muon_config(), nil)
      moe_muon_config_init(&config, MemoryLayout<moe_muon_config>.size)
      try (byAdamW ?? []).withUnsafeBufferPointer { list in
        if byAdamW != nil { config.by_adamw = list.baseAddress }
        try check(moe_muon_create(layer.context, &config, trained, Int64(trained.count), &optimizer))
      }
      defer { moe_optimizer_free(optimizer) }
      var (options, dx) = (moe_backward_options(), x)
      moe_backward_options_init(&options, MemoryLayout<moe_backward_options>.size)
      options.optimizer = optimizer
      return moe_layer_backward(layer.layer, layer.tape, x, x, 0, &dx, &options)
    }
    #expect(try run(byAdamW: nil) == MOE_OK)
    let all = trained.map { UInt8($0.rank == 1 ? 1 : 0) }
    #expect(try run(byAdamW: all) == MOE_ERROR_INVALID_ARGUMENT)
    #expect(lastError().contains("up.bias as a matrix of 3 rows and 6 columns") && lastError().contains("by_adamw"))
  }
}
