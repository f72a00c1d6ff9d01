import CMoE
import Testing

/// Every argument of the optimisers and of clipping wrong once, and every field of their tensors.
@Suite("Bad calls of optimisers")
final class BadTensorTests {
  let layer: Layer  // for its context
  let a = Variable("a", [1, 2, 3], grad: [1, 1, 1])
  let b = Variable("b", [4, 5], grad: [2, 2])
  let optimizer: OpaquePointer

  private var list: [moe_tensor] { [a.tensor, b.tensor] }

  init() throws {
    layer = try Layer()
    var created: OpaquePointer?
    try check(moe_sgd_create(layer.context, nil, [a.tensor, b.tensor], 2, &created))
    optimizer = try #require(created)
  }

  deinit { moe_optimizer_free(optimizer) }

  /// Nothing was stepped or scaled.
  private func nothingChanged() {
    #expect(Array(a.data) + Array(b.data) == [1, 2, 3, 4, 5])
    #expect(Array(a.grad) + Array(b.grad) == [1, 1, 1, 2, 2])
  }

  /// The list with its second tensor changed: the first is good, so that a check on the way would be too late.
  private func list(_ change: (inout moe_tensor) -> Void) -> [moe_tensor] {
    var list = list
    change(&list[1])
    return list
  }

  /// What no function accepts in a tensor.
  private let badTensors: [(field: String, change: (inout moe_tensor) -> Void)] =
    wrongStructSizes.map { size in ("struct_size", { $0.struct_size = size }) } + [
      ("dtype", { $0.dtype = 3 }), ("dtype", { $0.dtype = -1 }),
      ("rank", { $0.rank = 0 }), ("rank", { $0.rank = 5 }), ("rank", { $0.rank = -1 }), ("rank", { $0.rank = .max }),
      ("shape", { $0.shape.0 = -1 }), ("shape", { $0.shape.0 = .min }), ("shape", { $0.shape.0 = 1 << 62 }),
      (
        "shape",
        {
          $0.rank = 4
          $0.shape = (1 << 40, 1 << 40, 1 << 40, 1 << 40)
        }
      ),
      ("strides", { $0.strides.0 = 2 }), ("strides", { $0.strides.0 = -1 }),
      (
        "strides",
        {
          $0.rank = 2
          $0.shape = (1, 2, 0, 0)
          $0.strides = (1, 2, 0, 0)
        }
      ),
    ]

  @Test func create() {
    typealias Create = (OpaquePointer?, UnsafePointer<moe_tensor>?, Int64, UnsafeMutablePointer<OpaquePointer?>?)
      -> moe_status
    let creates: [Create] = [
      { moe_adamw_create($0, nil, $1, $2, $3) },
      { moe_sgd_create($0, nil, $1, $2, $3) },
      { moe_muon_create($0, nil, $1, $2, $3) },
    ]
    for create in creates {
      var out = untouched
      refused("context", create(nil, list, 2, &out))
      refused("tensors", create(layer.context, nil, 2, &out))
      refused("out", create(layer.context, list, 2, nil))
      for count: Int64 in [-1, .min, 1 << 62, .max] { refused("count", create(layer.context, list, count, &out)) }
      for (field, change) in badTensors { refused(field, create(layer.context, list(change), 2, &out)) }
      #expect(out == untouched)
    }
  }

  /// What both kinds of step refuse.
  private func refuses(_ step: (OpaquePointer?, UnsafePointer<moe_tensor>?, Int64) -> moe_status) {
    refused("optimizer", step(nil, list, 2))
    refused("tensors", step(optimizer, nil, 2))
    for count: Int64 in [-1, 0, 1, .min, .max] { refused("count", step(optimizer, list, count)) }
    refused("count", step(optimizer, list + [a.tensor], 3))
    for (field, change) in badTensors { refused(field, step(optimizer, list(change), 2)) }
    refused("data", step(optimizer, list { $0.data = nil }, 2))
    refused("grad", step(optimizer, list { $0.grad = nil }, 2))
    refused("data", step(optimizer, list { $0.data += 1 }, 2))
    refused("grad", step(optimizer, list { $0.grad += 1 }, 2))
    refused("data", step(optimizer, list { $0.data = $0.grad }, 2))
    refused("shape", step(optimizer, list { $0.shape.0 = 1 }, 2))
    refused("shape", step(optimizer, [b.tensor, a.tensor], 2))
    refused("dtype", step(optimizer, list { $0.dtype = MOE_DTYPE_BF16.int32 }, 2))
    nothingChanged()
  }

  @Test func step() throws {
    refuses(moe_optimizer_step)
    try check(moe_optimizer_step(optimizer, list, 2))
  }

  @Test func stepClipped() throws {
    var norm = -7.0
    refuses { moe_optimizer_step_clipped($0, $1, $2, 1, &norm) }
    for maxNorm: Double in [0, -1, .nan, -.infinity] {
      refused("max_norm", moe_optimizer_step_clipped(optimizer, list, 2, maxNorm, &norm))
    }
    withUnsafeMutablePointer(to: &norm) {
      refused("norm", moe_optimizer_step_clipped(optimizer, list, 2, 1, misaligned($0)))
    }
    nothingChanged()
    #expect(norm == -7)
    try check(moe_optimizer_step_clipped(optimizer, list, 2, 1, &norm))
  }

  @Test func setLearningRate() throws {
    // Not by `refused`, whose last act is this very mistake.
    #expect(moe_layer_zero_grad(nil) == MOE_ERROR_INVALID_ARGUMENT)
    #expect(moe_optimizer_set_learning_rate(nil, 0.1) == MOE_ERROR_INVALID_ARGUMENT)
    #expect(lastError().contains("optimizer"))
    for rate: Double in [.nan, -1, .infinity, -.infinity] {
      refused("learning_rate", moe_optimizer_set_learning_rate(optimizer, rate))
    }
    // The rate of creation, 0.001, still holds.
    try check(moe_optimizer_step(optimizer, list, 2))
    expectClose(Array(a.data), [0.999, 1.999, 2.999], within: 1e-6)
  }

  @Test func setGroup() throws {
    let indices: [Int64] = [0, 1]
    refused("optimizer", moe_optimizer_set_group(nil, indices, 2, 1, 0))
    refused("indices", moe_optimizer_set_group(optimizer, nil, 1, 1, 0))
    refused("count", moe_optimizer_set_group(optimizer, indices, -1, 1, 0))
    for wrong: Int64 in [-1, 2, .max, .min] {
      refused("indices", moe_optimizer_set_group(optimizer, [0, wrong], 2, 1, 0))
    }
    for value: Double in [.nan, -1, .infinity, -.infinity] {
      refused("learning_rate_scale", moe_optimizer_set_group(optimizer, indices, 2, value, 0))
      refused("weight_decay", moe_optimizer_set_group(optimizer, indices, 2, 1, value))
    }
    try check(moe_optimizer_set_group(optimizer, nil, 0, 0, 0))
    // No tensor has another rate.
    try check(moe_optimizer_step(optimizer, list, 2))
    expectClose(Array(a.data), [0.999, 1.999, 2.999], within: 1e-6)
  }

  @Test func clip() throws {
    var norm = -7.0
    refused("context", moe_clip_grad_norm(nil, list, 2, 1, &norm))
    refused("tensors", moe_clip_grad_norm(layer.context, nil, 2, 1, &norm))
    for count: Int64 in [-1, .min, 1 << 62, .max] {
      refused("count", moe_clip_grad_norm(layer.context, list, count, 1, &norm))
    }
    for maxNorm: Double in [0, -1, .nan, -.infinity] {
      refused("max_norm", moe_clip_grad_norm(layer.context, list, 2, maxNorm, &norm))
    }
    for (field, change) in badTensors {
      refused(field, moe_clip_grad_norm(layer.context, list(change), 2, 1, &norm))
    }
    refused("grad", moe_clip_grad_norm(layer.context, list { $0.grad = nil }, 2, 1, &norm))
    refused("grad", moe_clip_grad_norm(layer.context, list { $0.grad += 1 }, 2, 1, &norm))
    nothingChanged()
    #expect(norm == -7)
    try check(moe_clip_grad_norm(layer.context, list { $0.data = nil }, 2, 1, &norm))
  }

  @Test func aRefusalSaysWhichTensor() {
    let list = list { $0.grad = nil }
    let calls = [
      { moe_optimizer_step(self.optimizer, list, 2) },
      { moe_optimizer_step_clipped(self.optimizer, list, 2, 1, nil) },
      { moe_clip_grad_norm(self.layer.context, list, 2, 1, nil) },
    ]
    for call in calls {
      #expect(call() == MOE_ERROR_INVALID_ARGUMENT)
      #expect(lastError().contains("tensors[1]"), "\(lastError())")
    }
  }
}
