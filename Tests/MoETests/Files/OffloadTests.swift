import CMoE
import Testing

@Suite("Experts in a file, and files as memory")
struct OffloadTests {
  private let folder: Folder

  init() throws { folder = try Folder() }

  private static let x = noise(40 * 5)

  private func empty(in config: moe_context_config? = nil) throws -> Layer {
    try Layer(in: config) { $0.unallocated = MOE_UNALLOCATED_EXPERT_WEIGHTS.int32 }
  }

  private func offload(_ layer: Layer, limit: Int) throws -> moe_status {
    let checkpoint = try OpenCheckpoint(folder.file("a"), in: layer.context)
    return moe_layer_offload(layer.layer, checkpoint.handle, 0, 1, limit)
  }

  private func statistics(_ layer: Layer) throws -> moe_offload_statistics {
    var found = moe_offload_statistics()
    moe_offload_statistics_init(&found, MemoryLayout<moe_offload_statistics>.size)
    try check(moe_layer_offload_statistics(layer.layer, &found))
    return found
  }

  /// A layer in memory, whose parameters are in the file.
  private func whole() throws -> Layer {
    let layer = try Layer { $0.seed = 3 }
    try check(moe_layer_save(layer.layer, folder.file("a"), 0, 1, MOE_DTYPE_F32.int32))
    return layer
  }

  @Test func everySizeGivesTheSameBits() throws {
    let expected = bits(try whole().untaped(Self.x))
    for slots in 2...4 {
      let layer = try empty(in: contextConfig(threads: 2))
      try check(try offload(layer, limit: slots * 384))  // 2 matrices of 5 x 7 floats, each filled up to 64 bytes
      for _ in 0..<3 { #expect(bits(try layer.untaped(Self.x)) == expected) }
      let found = try statistics(layer)
      #expect(found.n_slots == Int64(slots))
      #expect(found.hits + found.misses == 12 && found.bytes_read == found.misses * 280)
    }
  }

  @Test func aCancelledCallLeavesWhatWasRead() throws {
    let expected = bits(try whole().untaped(Self.x))
    let canceller = Canceller()
    var config = contextConfig(threads: 2)
    canceller.join(&config)
    let layer = try empty(in: config)
    try check(try offload(layer, limit: 2 * 384))
    var y = Self.x
    var cancelled = 0
    // Wherever a call is cancelled, those after it compute the same.
    for questions in 0..<40 {
      canceller.left = questions
      let status = moe_layer_forward(layer.layer, Self.x, 40, nil, &y, nil, nil)
      if status == MOE_ERROR_CANCELLED { cancelled += 1 } else { try check(status) }
      canceller.left = .max
      #expect(bits(try layer.untaped(Self.x)) == expected)
    }
    #expect(cancelled > 3)
  }

  @Test func everyAllocationMayFail() throws {
    let allocator = CountingAllocator()
    let expected = bits(try whole().untaped(Self.x))
    do {
      let layer = try empty(in: allocator.contextConfig)
      let checkpoint = try OpenCheckpoint(folder.file("a"), in: layer.context)
      func starve(_ call: () -> moe_status) throws -> Int {
        let live = allocator.live
        for k in 1...100 {
          allocator.fail(at: k)
          let status = call()
          let failed = allocator.hasFailed
          allocator.fail(at: nil)
          if !failed {
            try check(status)
            return k - 1
          }
          #expect(status == MOE_ERROR_OUT_OF_MEMORY)
          #expect(allocator.live == live)
        }
        return 100
      }
      let router = try layer.parameter("router.weight")
      let before = bits(Array(router.values))
      let failures = try starve {
        #expect(bits(Array(router.values)) == before)
        return moe_layer_offload(layer.layer, checkpoint.handle, 0, 1, 1 << 20)
      }
      #expect(failures == 4)  // what is read, where it waits, the slots, their memory
      #expect(bits(Array(router.values)) != before)
      var y = Self.x
      #expect(try starve { moe_layer_forward(layer.layer, Self.x, 40, nil, &y, nil, nil) } == 1)
      #expect(bits(y) == expected)
      #expect(bits(try layer.untaped(Self.x)) == expected)
      for form in [MOE_PREPARED_F32, MOE_PREPARED_NONE] {
        #expect(try starve { moe_layer_prepare(layer.layer, form.int32) } > 0)
        #expect(bits(try layer.untaped(Self.x)) == expected)
      }
      var mapping: OpaquePointer?
      #expect(try starve { moe_mapping_create(layer.context, folder.file("m"), 64, &mapping) } == 1)
      #expect(try folder.contents() == ["a", "m"])
      moe_mapping_free(mapping)
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }

  @Test func wrongArgumentsAreRefused() throws {
    _ = try whole()
    let layer = try empty()
    let checkpoint = try OpenCheckpoint(folder.file("a"), in: layer.context)
    refused("layer", moe_layer_offload(nil, checkpoint.handle, 0, 1, 4096))
    refused("checkpoint", moe_layer_offload(layer.layer, nil, 0, 1, 4096))
    refused("layout", moe_layer_offload(layer.layer, checkpoint.handle, 99, 1, 4096))
    refused("layer_number", moe_layer_offload(layer.layer, checkpoint.handle, 0, -2, 4096))
    refused("weight", moe_layer_offload(layer.layer, checkpoint.handle, 0, 2, 4096))
    refused("resident_limit", moe_layer_offload(layer.layer, checkpoint.handle, 0, 1, 767))
    refused("statistics", moe_layer_offload_statistics(layer.layer, nil))
    refused("layer", moe_layer_initialize(nil))
    refused("layer", moe_layer_offload_statistics(nil, nil))
    refused("optimizer", moe_optimizer_state_size(nil, nil))
    refused("optimizer", moe_optimizer_bind_state(nil, nil, 0))
    try check(moe_layer_offload(layer.layer, checkpoint.handle, 0, 1, Int(bitPattern: .max)))
    #expect(try statistics(layer).n_slots == 4)

    var mapping: OpaquePointer?
    refused("context", moe_mapping_create(nil, folder.file("m"), 64, &mapping))
    refused("path", moe_mapping_create(layer.context, nil, 64, &mapping))
    refused("size", moe_mapping_create(layer.context, folder.file("m"), 0, &mapping))
    refused("out", moe_mapping_create(layer.context, folder.file("m"), 64, nil))
    refused("mapping", moe_mapping_data(nil, nil))
    refused("mapping", moe_mapping_flush(nil))
    #expect(try folder.contents() == ["a"])
    moe_mapping_free(nil)
    try check(moe_mapping_create(layer.context, folder.file("m"), 64, &mapping))
    refused("data", moe_mapping_data(mapping, nil))
    try check(moe_mapping_flush(mapping))
    moe_mapping_free(mapping)
  }

  @Test func statesLieWhereTheyAreBound() throws {
    let layer = try Layer()
    let tensors = [Variable("a", noise(6), grad: noise(6, seed: 2)).tensor]
    var config = moe_adamw_config()
    moe_adamw_config_init(&config, MemoryLayout<moe_adamw_config>.size)
    config.unallocated_state = 1
    var optimizer: OpaquePointer?
    try check(moe_adamw_create(layer.context, &config, tensors, 1, &optimizer))
    defer { moe_optimizer_free(optimizer) }
    var size = 0
    refused("size", moe_optimizer_state_size(optimizer, nil))
    try check(moe_optimizer_state_size(optimizer, &size))
    #expect(size == 48)
    var mapping: OpaquePointer?
    try check(moe_mapping_create(layer.context, folder.file("m"), size, &mapping))
    defer { moe_mapping_free(mapping) }
    var memory: UnsafeMutableRawPointer?
    try check(moe_mapping_data(mapping, &memory))
    refused("memory", moe_optimizer_bind_state(optimizer, nil, size))
    refused("memory", moe_optimizer_bind_state(optimizer, memory! + 2, size))
    refused("size", moe_optimizer_bind_state(optimizer, memory, size - 1))
    try check(moe_optimizer_bind_state(optimizer, memory, size))
  }

  /// SGD without momentum has nothing to keep, so that nothing may be bound.
  @Test func aStateOfNoBytesIsBound() throws {
    let layer = try Layer()
    let a = Variable("a", [1, 2], grad: [1, 1])
    var config = moe_sgd_config()
    moe_sgd_config_init(&config, MemoryLayout<moe_sgd_config>.size)
    (config.momentum, config.weight_decay, config.learning_rate, config.unallocated_state) = (0, 0, 0.5, 1)
    var optimizer: OpaquePointer?
    try check(moe_sgd_create(layer.context, &config, [a.tensor], 1, &optimizer))
    defer { moe_optimizer_free(optimizer) }
    var size = 1
    try check(moe_optimizer_state_size(optimizer, &size))
    #expect(size == 0)
    try check(moe_optimizer_bind_state(optimizer, nil, 0))
    try check(moe_optimizer_step(optimizer, [a.tensor], 1))
    #expect(Array(a.data) == [0.5, 1.5])
  }
}
