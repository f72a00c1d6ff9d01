import CMoE
import Testing

/// Checkpoints in several files with an index.
@Suite("Shards") final class ShardTests {
  private let folder: Folder
  private let context: OpaquePointer

  init() throws {
    folder = try Folder()
    var made: OpaquePointer?
    try check(moe_context_create(nil, &made))
    context = try #require(made)
  }

  deinit { moe_context_free(context) }

  private func stored(_ name: StaticString, _ values: UnsafePointer<Float>, _ count: Int64) -> moe_stored_tensor {
    var tensor = moe_stored_tensor()
    moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
    tensor.name = UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)
    tensor.rank = 1
    tensor.shape.0 = count
    tensor.data = UnsafeRawPointer(values)
    return tensor
  }

  @Test func whatIsWrittenIsRead() throws {
    let values = noise(12)
    let path = folder.file("m.safetensors.index.json")
    try values.withUnsafeBufferPointer { values in
      let data = values.baseAddress!
      let tensors = [stored("x", data, 4), stored("w", data + 4, 2), stored("y", data + 6, 3)]
      try check(moe_checkpoint_write_sharded(context, path, tensors, 3, 24))
      #expect(
        try folder.contents() == [
          "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json",
        ])
      let found = try OpenCheckpoint(path, in: context).tensors()
      #expect(found.map(\.name) == ["w", "x", "y"])
      #expect(found[1].bytes == Array(UnsafeRawBufferPointer(start: data, count: 16)))
      // One name in two files: every shard is good by itself, the whole is not.
      let twice = [stored("x", data, 4), stored("y", data, 4), stored("x", data, 4)]
      refused("x", moe_checkpoint_write_sharded(context, path, twice, 3, 16))
      #expect(try OpenCheckpoint(path, in: context).tensors().map(\.name) == ["w", "x", "y"])
      #expect(try folder.contents().count == 3)
    }
  }

  @Test func wrongArgumentsAreRefused() throws {
    let path = folder.file("m.safetensors.index.json")
    refused("context", moe_checkpoint_write_sharded(nil, path, nil, 0, 1))
    refused("path", moe_checkpoint_write_sharded(context, nil, nil, 0, 1))
    refused("path", moe_checkpoint_write_sharded(context, folder.file("m.safetensors"), nil, 0, 1))
    refused("path", moe_checkpoint_write_sharded(context, folder.file(".safetensors.index.json"), nil, 0, 1))
    refused("path", moe_checkpoint_write_sharded(context, "", nil, 0, 1))
    let long = String(repeating: "a", count: 5000) + ".safetensors.index.json"
    refused("path", moe_checkpoint_write_sharded(context, long, nil, 0, 1))
    refused("tensors", moe_checkpoint_write_sharded(context, path, nil, 1, 1))
    refused("count", moe_checkpoint_write_sharded(context, path, nil, -1, 1))
    refused("max_shard_size", moe_checkpoint_write_sharded(context, path, nil, 0, 0))
    refused(
      "making", moe_checkpoint_write_sharded(context, folder.file("no/m.safetensors.index.json"), nil, 0, 1),
      MOE_ERROR_IO)
    #expect(try folder.contents() == [])
  }

  @Test func layers() throws {
    let layer = try Size(tokens: 0, hidden: 8, intermediate: 16, experts: 4, topK: 2).layer { _ in }
    let (index, file) = (folder.file("m.safetensors.index.json"), folder.file("one"))
    func save(_ path: String?, _ bytes: Int, _ layout: Int32 = 0, _ type: moe_dtype = MOE_DTYPE_F32) -> moe_status {
      moe_layer_save_sharded(layer.layer, path, layout, 1, type.int32, bytes)
    }
    refused("layer", moe_layer_save_sharded(nil, index, 0, 1, 0, 100))
    refused("path", save(nil, 100))
    refused("path", save(file, 100))
    refused("max_shard_size", save(index, 0))
    refused("layout", save(index, 100, -1))
    refused("dtype", save(index, 100, 0, MOE_DTYPE_F64))
    #expect(try folder.contents() == [])
    try check(save(index, 100))
    try check(moe_layer_save(layer.layer, file, 0, 1, MOE_DTYPE_F32.int32))
    let (found, expected) = (try OpenCheckpoint(index, in: context), try OpenCheckpoint(file, in: context))
    #expect(try found.tensors().map(\.name) == expected.tensors().map(\.name))
    #expect(try found.tensors().map(\.bytes) == expected.tensors().map(\.bytes))
    #expect(try folder.contents().count == expected.tensors().count + 2)
  }
}
