import CMoE
import Testing

@Suite("Files when memory is short")
struct FileMemoryTests {
  /// Runs the call with every one of its allocations failing; then as it should go. Returns how many failed.
  private func starve(
    _ allocator: CountingAllocator, _ folder: Folder, _ call: () throws -> moe_status
  ) throws -> Int {
    let (live, files) = (allocator.live, try folder.contents())
    for k in 1...1000 {
      allocator.fail(at: k)
      let status = try call()
      let failed = allocator.hasFailed
      allocator.fail(at: nil)
      if !failed {
        try check(status)
        return k - 1
      }
      try #require(status == MOE_ERROR_OUT_OF_MEMORY, "allocation \(k)")
      #expect(allocator.live == live)
      #expect(try folder.contents() == files)
    }
    return 1000
  }

  @Test func nothingIsLeakedOrLeftBehind() throws {
    let (allocator, folder) = (CountingAllocator(), try Folder())
    do {
      let layer = try Layer(in: allocator.contextConfig)
      let context = layer.context
      #expect(
        try starve(allocator, folder) {
          moe_layer_save(layer.layer, folder.file("a.safetensors"), 0, 1, MOE_DTYPE_BF16.int32)
        } > 0)
      #expect(try folder.contents() == ["a.safetensors"])

      var map = #"{"weight_map":{"#
      map += #""layers.1.router.weight":"a.safetensors","layers.1.router.bias":"a.safetensors"}}"#
      let index = try folder.write("index.json", Array(map.utf8))
      for path in [folder.file("a.safetensors"), index] {
        let live = allocator.live
        var opened: OpaquePointer?
        #expect(try starve(allocator, folder) { moe_checkpoint_open(context, path, &opened) } > 1)
        #expect(allocator.live > live)
        moe_checkpoint_free(opened)
        #expect(allocator.live == live)
      }

      #expect(try starve(allocator, folder) { moe_checkpoint_write(context, folder.file("b"), nil, 0) } > 0)
      var training = moe_training()
      moe_training_init(&training, MemoryLayout<moe_training>.size)
      #expect(try starve(allocator, folder) { moe_training_save(context, &training, folder.file("c")) } > 0)
      #expect(try starve(allocator, folder) { moe_training_load(context, &training, folder.file("c")) } > 0)
      #expect(try folder.contents() == ["a.safetensors", "b", "c", "index.json"])
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }

  /// A set of shards is written over another one: whichever allocation fails, the old one is there, and nothing else.
  @Test func shardsAreWrittenWholeOrNotAtAll() throws {
    let (allocator, folder) = (CountingAllocator(), try Folder())
    do {
      let layer = try Layer(in: allocator.contextConfig)
      let index = folder.file("m.safetensors.index.json")
      // A gate, two matrices of 4 experts and their biases: three shards, in either type.
      for (type, size) in [(MOE_DTYPE_F32, 700), (MOE_DTYPE_BF16, 350)] {
        let before = try folder.contents().filter { $0.contains("-of-") }
        // Each file has memory of its own, the index among them.
        #expect(
          try starve(allocator, folder) { moe_layer_save_sharded(layer.layer, index, 0, 1, type.int32, size) } > 3)
        let after = try folder.contents().filter { $0.contains("-of-") }
        #expect(after.count == 3 && Set(after).isDisjoint(with: before))
        let live = allocator.live
        var opened: OpaquePointer?
        #expect(try starve(allocator, folder) { moe_checkpoint_open(layer.context, index, &opened) } > 3)
        moe_checkpoint_free(opened)
        #expect(allocator.live == live)
      }
      #expect(
        try starve(allocator, folder) { moe_checkpoint_write_sharded(layer.context, index, nil, 0, 1) } > 1)
    }
    #expect(allocator.live == 0)
    #expect(allocator.complaints.isEmpty, "\(allocator.complaints)")
  }
}
