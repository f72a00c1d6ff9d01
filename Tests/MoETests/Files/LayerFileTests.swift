import CMoE
import Testing

@Suite("Layers and training states in files")
struct LayerFileTests {
  private let folder: Folder

  init() throws { folder = try Folder() }

  private func parameters(_ layer: Layer) throws -> [[UInt32]] {
    try layer.tensors().map { bits(Array($0.values)) }
  }

  private func gated(seed: UInt64) throws -> Layer {
    try Layer {
      $0.expert_kind = MOE_EXPERT_GATED.int32
      $0.activation = MOE_ACTIVATION_SILU.int32
      $0.router_bias = MOE_BIAS_OFF.int32
      $0.seed = seed
    }
  }

  @Test(arguments: [
    MOE_LAYOUT_LIBMOE, MOE_LAYOUT_MIXTRAL, MOE_LAYOUT_LLAMA4, MOE_LAYOUT_DBRX, MOE_LAYOUT_TRANSFORMERS_5,
  ])
  func whatIsSavedIsLoaded(layout: moe_layout) throws {
    let (one, other) = (try gated(seed: 1), try gated(seed: 2))
    try check(moe_layer_save(one.layer, folder.file("a"), layout.int32, 3, MOE_DTYPE_F32.int32))
    let checkpoint = try OpenCheckpoint(folder.file("a"), in: one.context)
    let before = try parameters(other)
    refused("weight", moe_layer_load(other.layer, checkpoint.handle, layout.int32, 2))
    #expect(try parameters(other) == before)
    try check(moe_layer_load(other.layer, checkpoint.handle, layout.int32, 3))
    #expect(try parameters(other) == parameters(one))
    #expect(try parameters(other) != before)
  }

  @Test func namesWithoutANumber() throws {
    let layer = try gated(seed: 1)
    try check(
      moe_layer_save(
        layer.layer, folder.file("a"), MOE_LAYOUT_LIBMOE.int32, Int64(MOE_NO_LAYER_NUMBER), MOE_DTYPE_F32.int32))
    let checkpoint = try OpenCheckpoint(folder.file("a"), in: layer.context)
    #expect(try checkpoint.tensors().map(\.name) == layer.tensors().map { String(cString: $0.name) }.sorted())
  }

  @Test func aPrefixOfTheCallers() throws {
    let (one, other) = (try gated(seed: 1), try gated(seed: 2))
    let (layout, prefix) = (MOE_LAYOUT_QWEN3_MOE.int32, "model.language_model.layers.3.mlp.")
    let (path, index) = (folder.file("a"), folder.file("a.safetensors.index.json"))
    try check(moe_layer_save_prefix(one.layer, path, layout, prefix, MOE_DTYPE_F32.int32, 0))
    try check(moe_layer_save_prefix(one.layer, index, layout, prefix, MOE_DTYPE_F32.int32, 200))
    let checkpoint = try OpenCheckpoint(path, in: one.context)
    #expect(try checkpoint.tensors().allSatisfy { $0.name.hasPrefix(prefix) })
    refused("MOE_LAYOUT_QWEN3_MOE", moe_layer_load(other.layer, checkpoint.handle, layout, 3))
    try check(moe_layer_load_prefix(other.layer, checkpoint.handle, layout, prefix))
    #expect(try parameters(other) == parameters(one))
    let sharded = try OpenCheckpoint(index, in: one.context)
    try check(moe_layer_load_prefix(other.layer, sharded.handle, layout, prefix))
    let offloaded = try Layer {
      $0.expert_kind = MOE_EXPERT_GATED.int32
      $0.activation = MOE_ACTIVATION_SILU.int32
      $0.router_bias = MOE_BIAS_OFF.int32
      $0.unallocated = MOE_UNALLOCATED_EXPERT_WEIGHTS.int32
      $0.inference_only = 1
    }
    refused("prefix", moe_layer_offload_prefix(offloaded.layer, checkpoint.handle, layout, nil, 1 << 20))
    try check(moe_layer_offload_prefix(offloaded.layer, checkpoint.handle, layout, prefix, 1 << 20))
    refused("prefix", moe_layer_load_prefix(other.layer, checkpoint.handle, layout, nil))
    refused("prefix", moe_layer_save_prefix(one.layer, path, layout, String(repeating: "p", count: 161), 0, 0))
    refused("layout", moe_layer_load_prefix(other.layer, checkpoint.handle, 1000, prefix))
    refused("layer", moe_layer_load_prefix(nil, checkpoint.handle, layout, prefix))
    refused("layer", moe_layer_offload_prefix(nil, checkpoint.handle, layout, prefix, 0))
    refused("layer", moe_layer_save_prefix(nil, path, layout, prefix, 0, 0))
  }

  @Test func wrongArgumentsAreRefused() throws {
    let layer = try gated(seed: 1)
    let path = folder.file("a")
    func save(_ layout: Int32, _ number: Int64 = 0, _ type: moe_dtype = MOE_DTYPE_F32) -> moe_status {
      moe_layer_save(layer.layer, path, layout, number, type.int32)
    }
    refused("layout", save(-1))
    refused("layout", save(30))
    refused("layout", save(.max))
    refused("layer_number", save(MOE_LAYOUT_MIXTRAL.int32, -1))
    refused("layer_number", save(MOE_LAYOUT_MIXTRAL.int32, .max))
    refused("layer_number", save(MOE_LAYOUT_LIBMOE.int32, -2))
    refused("dtype", save(0, 0, MOE_DTYPE_F64))
    refused("layout", save(MOE_LAYOUT_GPT_OSS_MXFP4.int32))
    refused("path", moe_layer_save(layer.layer, nil, 0, 0, 0))
    refused("layer", moe_layer_save(nil, path, 0, 0, 0))
    refused("layer", moe_layer_load(nil, nil, 0, 0))
    refused("checkpoint", moe_layer_load(layer.layer, nil, 0, 0))
    #expect(try folder.contents() == [])
  }

  // MARK: upcycling

  @Test func everyExpertIsTheDenseNetwork() throws {
    let layer = try gated(seed: 1)  // H 5, I 7
    let (gate, up, down) = (noise(35, seed: 1), noise(35, seed: 2), noise(35, seed: 3))
    let router = Array(try layer.parameter("router.weight").values)
    let sources = [
      Variable("gate.weight", gate, grad: []), Variable("up.weight", up, grad: []),
      Variable("down.weight", down, grad: []),
    ]
    func dense(_ change: (inout [moe_tensor]) -> Void = { _ in }) -> [moe_tensor] {
      var tensors = sources.map(\.tensor)
      for i in 0..<3 {
        tensors[i].rank = 2
        (tensors[i].shape.0, tensors[i].shape.1) = i < 2 ? (7, 5) : (5, 7)
      }
      change(&tensors)
      return tensors
    }
    let before = try parameters(layer)
    refused("gate", moe_layer_upcycle(layer.layer, dense { $0[0].name = nil }, 3))
    refused("shape", moe_layer_upcycle(layer.layer, dense { $0[2].shape = $0[0].shape }, 3))
    refused("count", moe_layer_upcycle(layer.layer, dense { $0.append($0[0]) }, 4))
    refused("data", moe_layer_upcycle(layer.layer, dense { $0[1].data = nil }, 3))
    refused("overlaps", moe_layer_upcycle(layer.layer, dense { $0[0].data = try! layer.tensors()[1].data }, 3))
    refused("layer", moe_layer_upcycle(nil, dense(), 3))
    #expect(try parameters(layer) == before)

    try check(moe_layer_upcycle(layer.layer, dense(), 3))
    for (name, values) in [("gate", gate), ("up", up), ("down", down)] {
      let found = Array(try layer.parameter("experts.\(name).weight").values)
      #expect(found == values + values + values + values)
    }
    #expect(Array(try layer.parameter("router.weight").values) == router)
  }

  // MARK: training states

  /// A layer, an optimiser and statistics, and what a run of some steps leaves.
  private final class Run {
    let layer: Layer
    let own = Variable("own", noise(3), grad: noise(3, seed: 9))
    var optimizer, statistics: OpaquePointer?
    var step: UInt64 = 0

    init(type: moe_dtype, seed: UInt64 = 4) throws {
      layer = try Layer {
        $0.dropout = 0.3
        $0.seed = seed
        $0.weight_dtype = type.int32
      }
      let tensors = try trained()
      try check(moe_adamw_create(layer.context, nil, tensors, Int64(tensors.count), &optimizer))
      try check(moe_statistics_create(layer.context, 4, &statistics))
    }

    deinit {
      moe_optimizer_free(optimizer)
      moe_statistics_free(statistics)
    }

    func trained() throws -> [moe_tensor] { try layer.tensors() + [own.tensor] }

    func advance(_ steps: Int) throws {
      for _ in 0..<steps {
        let x = noise(50, seed: 100 + step)
        let output = try layer.forward(x, options: forwardOptions(training: true, step: step))
        _ = try layer.backward(x, dy: output.y)
        var (report, counts) = (output.report, output.tokensPerExpert)
        (report.mean_probability, report.expert_indices, report.expert_weights) = (nil, nil, nil)
        try counts.withUnsafeMutableBufferPointer {
          report.tokens_per_expert = $0.baseAddress
          try check(moe_statistics_add(statistics, &report))
        }
        let tensors = try trained()
        try check(moe_optimizer_step(optimizer, tensors, Int64(tensors.count)))
        try check(moe_layer_zero_grad(layer.layer))
        step += 1
      }
    }

    func with<R>(_ body: (inout moe_training) throws -> R) rethrows -> R {
      var training = moe_training()
      moe_training_init(&training, MemoryLayout<moe_training>.size)
      var (layers, optimizers, statistics): ([OpaquePointer?], [OpaquePointer?], [OpaquePointer?]) =
        ([layer.layer], [optimizer], [statistics])
      let tensors = [own.tensor]
      return try layers.withUnsafeMutableBufferPointer { layers in
        try optimizers.withUnsafeMutableBufferPointer { optimizers in
          try statistics.withUnsafeMutableBufferPointer { statistics in
            try tensors.withUnsafeBufferPointer { tensors in
              training.step = step
              (training.layers, training.n_layers) = (layers.baseAddress, 1)
              (training.optimizers, training.n_optimizers) = (optimizers.baseAddress, 1)
              (training.statistics, training.n_statistics) = (statistics.baseAddress, 1)
              (training.tensors, training.n_tensors) = (tensors.baseAddress, 1)
              return try body(&training)
            }
          }
        }
      }
    }

    func everything() throws -> [[UInt8]] {
      try trained().map { Array(UnsafeRawBufferPointer(start: $0.data, count: $0.bytes)) }
    }

    func tokens() throws -> Int64 {
      var report = moe_report()
      moe_report_init(&report, MemoryLayout<moe_report>.size)
      try check(moe_statistics_read(statistics, &report))
      return report.n_valid
    }
  }

  @Test(arguments: Way.types)
  func aRunThatWasStoppedGoesOnWithTheSameBits(type: moe_dtype) throws {
    let uninterrupted = try Run(type: type)
    try uninterrupted.advance(6)
    let stopped = try Run(type: type)
    try stopped.advance(2)
    try stopped.with { try check(moe_training_save(stopped.layer.context, &$0, folder.file("a"))) }
    #expect(try folder.contents() == ["a"])

    let resumed = try Run(type: type)
    try resumed.advance(1)
    try resumed.with {
      try check(moe_training_load(resumed.layer.context, &$0, folder.file("a")))
      #expect($0.step == 2)
      resumed.step = $0.step
    }
    #expect(try resumed.everything() == stopped.everything())
    try resumed.advance(4)
    #expect(try resumed.everything() == uninterrupted.everything())
    #expect(try resumed.tokens() == 60)
  }

  @Test func aStateOfOneRankIsTheFileOfOneProcess() throws {
    let run = try Run(type: MOE_DTYPE_F32)
    try run.advance(2)
    var communicator = alone()
    let context = run.layer.context
    try run.with {
      try check(moe_training_save(context, &$0, folder.file("a")))
      try check(moe_training_save_distributed(context, &$0, &communicator, nil, folder.file("b")))
      refused("communicator", moe_training_save_distributed(context, &$0, nil, nil, folder.file("c")))
    }
    #expect(try folder.bytes("a") == folder.bytes("b"))

    let other = try Run(type: MOE_DTYPE_F32)
    try other.with {
      try check(moe_training_load_distributed(other.layer.context, &$0, &communicator, nil, folder.file("b")))
      #expect($0.step == 2)
    }
    #expect(try other.everything() == run.everything())
  }

  @Test func anotherStateChangesNothing() throws {
    let run = try Run(type: MOE_DTYPE_F32)
    try run.advance(2)
    try run.with { try check(moe_training_save(run.layer.context, &$0, folder.file("a"))) }
    let other = try Run(type: MOE_DTYPE_F32, seed: 5)
    let before = try other.everything()
    let context = other.layer.context
    other.with {
      refused("seed", moe_training_load(context, &$0, folder.file("a")))
      refused("opening", moe_training_load(context, &$0, folder.file("b")), MOE_ERROR_IO)
      $0.n_optimizers = 0
      refused("tensors", moe_training_load(context, &$0, folder.file("a")))
      $0.n_optimizers = -1
      refused("n_optimizers", moe_training_load(context, &$0, folder.file("a")))
      $0.n_optimizers = 1
      $0.layers[0] = nil
      refused("layers", moe_training_save(context, &$0, folder.file("b")))
      $0.layers = nil
      refused("layers", moe_training_save(context, &$0, folder.file("b")))
      $0.n_layers = 0
      refused("path", moe_training_save(context, &$0, nil))
      refused("context", moe_training_save(nil, &$0, folder.file("b")))
      refused("training", moe_training_save(context, nil, folder.file("b")))
      #expect($0.step == 0)
    }
    #expect(try other.everything() == before)
    #expect(try folder.contents() == ["a"])
  }
}

extension moe_tensor {
  fileprivate var bytes: Int { count * (dtype == MOE_DTYPE_F32.int32 ? 4 : 2) }
}
