import CMoE
import Glibc
import Testing

@Suite("Checkpoints")
final class CheckpointTests {
  private let context: OpaquePointer
  private let folder: Folder

  init() throws {
    var created: OpaquePointer?
    try check(moe_context_create(nil, &created))
    context = try #require(created)
    folder = try Folder()
  }

  deinit { moe_context_free(context) }

  private let small = safetensors(
    #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1,1],"data_offsets":[8,9]}}"#
      + "    ", [1, 2, 3, 4, 5, 6, 7, 8, 9])

  private func open(_ bytes: [UInt8]) throws -> moe_status {
    var out = untouched
    let status = moe_checkpoint_open(context, try folder.write("file", bytes), &out)
    if status == MOE_OK {
      moe_checkpoint_free(out)
    } else {
      #expect(out == untouched)
    }
    return status
  }

  @Test func aFileIsReadAsItIs() throws {
    let checkpoint = try OpenCheckpoint(try folder.write("file", small), in: context)
    let tensors = try checkpoint.tensors()
    #expect(tensors.map(\.name) == ["a", "b"])
    #expect(tensors.map(\.bytes) == [[1, 2, 3, 4, 5, 6, 7, 8], [9]])
    #expect(tensors.map(\.tensor.dtype) == [MOE_DTYPE_F32.int32, MOE_DTYPE_U8.int32])
    #expect(tensors.map(\.tensor.rank) == [1, 2])
    #expect(tensors[0].tensor.shape.0 == 2 && tensors[0].tensor.shape.1 == 0)
    var index: Int64 = -1
    try check(moe_checkpoint_find_tensor(checkpoint.handle, "b", &index))
    #expect(index == 1)
    refused("c", moe_checkpoint_find_tensor(checkpoint.handle, "c", &index))
    #expect(index == 1)
  }

  @Test func everyTruncationIsRefused() throws {
    try #require(try open(small) == MOE_OK)
    for length in 0..<small.count {
      let status = try open(Array(small[..<length]))
      #expect(status == MOE_ERROR_INVALID_ARGUMENT, "\(length) bytes")
    }
    #expect(try open(small + [0]) == MOE_ERROR_INVALID_ARGUMENT)
  }

  @Test func everyChangeOfAByteIsSurvived() throws {
    // All values of each byte of the length and the header: read as something else, or refused, and never a crash.
    let path = try folder.write("file", small)
    let file = Glibc.open(path, O_WRONLY)
    defer { close(file) }
    let header = small.count - 9
    var (read, others) = (0, 0)
    for place in 0..<header {
      for value in UInt8.min...UInt8.max where value != small[place] {
        var value = value
        pwrite(file, &value, 1, place)
        var out: OpaquePointer?
        let status = moe_checkpoint_open(context, path, &out)
        moe_checkpoint_free(out)
        if status == MOE_OK { read += 1 } else if status != MOE_ERROR_INVALID_ARGUMENT { others += 1 }
      }
      var value = small[place]
      pwrite(file, &value, 1, place)
    }
    #expect(others == 0)
    #expect(read > 0 && read < header * 30)  // other names, for instance
  }

  @Test(arguments: [
    (
      "overlaps",
      #"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3
    ),
    ("begins", #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2),
    ("data_offsets", #"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#, 2),
    ("63", #"{"a":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,0]}}"#, 0),
    ("63", #"{"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,0]}}"#, 0),
    ("hold", #"{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}"#, 4),
    ("whole", #"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1),
    ("whole", #"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, 1),
    (
      "name",
      #"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, 0
    ),
  ])
  func hostileHeadersAreNamed(word: String, header: String, bytes: Int) throws {
    var text = header
    while text.utf8.count % 8 != 0 { text += " " }
    refused(word, try open(safetensors(text, [UInt8](repeating: 0, count: bytes))))
  }

  @Test func theDepthOfJSONIsBounded() throws {
    for deep in 1...40 {
      // An index file may have anything beside its map.
      let text = #"{"x":"# + String(repeating: "[", count: deep) + String(repeating: "]", count: deep)
      let path = try folder.write("index.json", Array((text + #","weight_map":{}}"#).utf8))
      var out = untouched
      let status = moe_checkpoint_open(context, path, &out)
      if status == MOE_OK { moe_checkpoint_free(out) }
      #expect(status == (deep <= 16 ? MOE_OK : MOE_ERROR_INVALID_ARGUMENT), "\(deep)")
    }
    let endless = try folder.write("index.json", [UInt8](repeating: UInt8(ascii: "["), count: 1_000_000))
    var out = untouched
    refused("object", moe_checkpoint_open(context, endless, &out))
  }

  @Test func filesThatTheSystemRefuses() throws {
    var out = untouched
    refused("opening", moe_checkpoint_open(context, folder.file("none"), &out), MOE_ERROR_IO)
    refused("opening", moe_checkpoint_open(context, folder.path, &out), MOE_ERROR_IO)
    refused("making", moe_checkpoint_write(context, folder.file("no/file"), nil, 0), MOE_ERROR_IO)
    refused("path", moe_checkpoint_open(context, nil, &out))
    #expect(out == untouched)
    // A folder stands where the file is to be: nothing is left over.
    refused("directory", moe_checkpoint_write(context, folder.path, nil, 0), MOE_ERROR_IO)
    #expect(try folder.contents() == [])
  }

  private func stored(_ name: StaticString, _ values: UnsafePointer<Float>, _ shape: [Int64]) -> moe_stored_tensor {
    var tensor = moe_stored_tensor()
    moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
    tensor.name = UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)
    tensor.rank = Int32(shape.count)
    withUnsafeMutableBytes(of: &tensor.shape) { $0.copyBytes(from: shape.withUnsafeBytes { Array($0) }) }
    tensor.data = UnsafeRawPointer(values)
    return tensor
  }

  @Test func whatIsWrittenIsRead() throws {
    let values = noise(12)
    try values.withUnsafeBufferPointer { values in
      let data = values.baseAddress!
      let tensors = [stored("x", data, [3, 4]), stored("w", data + 2, [1]), stored("none", data, [5, 0])]
      try check(moe_checkpoint_write(context, folder.file("a"), tensors, 3))
      #expect(try folder.contents() == ["a"])
      let found = try OpenCheckpoint(folder.file("a"), in: context).tensors()
      #expect(found.map(\.name) == ["none", "w", "x"])
      #expect(found[2].bytes == Array(UnsafeRawBufferPointer(values)))
      #expect(found.map(\.tensor.size) == [0, 4, 48])
    }
  }

  @Test func wrongTensorsAreRefusedAndTheFileStays() throws {
    let path = try folder.write("file", small)
    let values = noise(4)
    values.withUnsafeBufferPointer { values in
      func write(_ change: (inout moe_stored_tensor) -> Void, second: Bool = false) -> moe_status {
        var tensor = stored("x", values.baseAddress!, [4])
        change(&tensor)
        return moe_checkpoint_write(context, path, second ? [tensor, tensor] : [tensor], second ? 2 : 1)
      }
      refused("name", write { $0.name = nil })
      refused("dtype", write { $0.dtype = 23 })
      refused("dtype_name", write { $0.dtype = 16 })
      refused("rank", write { $0.rank = 9 })
      refused("rank", write { $0.rank = -1 })
      refused("shape", write { $0.shape.0 = -1 })
      refused(
        "shape",
        write {
          $0.rank = 2
          $0.shape.0 = .max
          $0.shape.1 = 2
        })
      refused("size", write { $0.size = 15 })
      refused("data", write { $0.data = nil })
      refused("struct_size", write { $0.struct_size = 0 })
      refused("name", write({ _ in }, second: true))
      refused("count", moe_checkpoint_write(context, path, nil, -1))
      refused("tensors", moe_checkpoint_write(context, path, nil, 1))
      refused("context", moe_checkpoint_write(nil, path, nil, 0))
    }
    #expect(try folder.contents() == ["file"])
    #expect(try OpenCheckpoint(path, in: context).tensors().count == 2)
  }

  @Test func wrongArgumentsAreRefused() throws {
    let checkpoint = try OpenCheckpoint(try folder.write("file", small), in: context)
    var tensor = moe_stored_tensor()
    refused("struct_size", moe_checkpoint_tensor(checkpoint.handle, 0, &tensor))
    moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
    refused("index", moe_checkpoint_tensor(checkpoint.handle, 2, &tensor))
    refused("index", moe_checkpoint_tensor(checkpoint.handle, -1, &tensor))
    refused("tensor", moe_checkpoint_tensor(checkpoint.handle, 0, nil))
    refused("checkpoint", moe_checkpoint_tensor_count(nil, nil))
    refused("count", moe_checkpoint_tensor_count(checkpoint.handle, nil))
    refused("name", moe_checkpoint_find_tensor(checkpoint.handle, nil, nil))
    refused("out", moe_checkpoint_open(context, folder.file("file"), nil))
    moe_checkpoint_free(nil)
  }
}
