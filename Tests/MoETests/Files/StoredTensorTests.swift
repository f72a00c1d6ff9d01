import CMoE
import Testing

/// Tensors as published files have them: at any address, of any type; and what cannot be written.
@Suite("Stored tensors")
final class StoredTensorTests {
  private let context: OpaquePointer
  private let folder: Folder

  init() throws {
    var created: OpaquePointer?
    try check(moe_context_create(nil, &created))
    context = try #require(created)
    folder = try Folder()
  }

  deinit { moe_context_free(context) }

  private func open(_ header: String, _ data: [UInt8]) throws -> OpenCheckpoint {
    try OpenCheckpoint(try folder.write("file", safetensors(header, data)), in: context)
  }

  private func bytes<T>(_ values: [T]) -> [UInt8] { values.withUnsafeBytes { Array($0) } }

  @Test func tensorsLieAtAnyAddress() throws {
    // A header of any length, and a byte before the floats.
    let header =
      #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#
    let wanted: [Float] = [1.5, -3e20]
    for spaces in 0..<8 {
      let checkpoint = try open(header + String(repeating: " ", count: spaces), [7] + bytes(wanted))
      var values = [Float](repeating: 0, count: 2)
      try check(moe_checkpoint_read_tensor(checkpoint.handle, 1, MOE_DTYPE_F32.int32, &values, 8))
      #expect(values == wanted)
      #expect(try checkpoint.tensors()[1].bytes == bytes(wanted))
    }
  }

  @Test func numbersBecomeFloat32() throws {
    let header =
      #"{"h":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},"e":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[6,10]},"#
      + #""f":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[10,12]},"i":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}"#
    let data: [UInt8] = [0, 0x3C, 1, 0, 0xFF, 0xFB] + [0x38, 0x81, 0x7E, 0x7F] + [0x3E, 0xFC] + [5, 0, 0, 0]
    let checkpoint = try open(header, data)
    func read(_ index: Int64, _ count: Int) throws -> [Float] {
      var values = [Float](repeating: 0, count: count)
      try check(moe_checkpoint_read_tensor(checkpoint.handle, index, MOE_DTYPE_F32.int32, &values, 4 * count))
      return values
    }
    // By hand: 1.0, the least subnormal, -65504; 1, -2^-9, 448, NaN; 1.5, minus infinity.
    #expect(try read(2, 3) == [1, 0x1p-24, -65504])
    let eights = try read(0, 4)
    #expect(eights[..<3] == [1, -0x1p-9, 448] && eights[3].isNaN)
    #expect(try read(1, 2) == [1.5, -.infinity])
    var values = [Float](repeating: 0, count: 4)
    refused("I32", moe_checkpoint_read_tensor(checkpoint.handle, 3, 0, &values, 4))
    var own: Int32 = 0
    try check(moe_checkpoint_read_tensor(checkpoint.handle, 3, MOE_DTYPE_I32.int32, &own, 4))
    #expect(own == 5)
    refused("15", moe_checkpoint_read_tensor(checkpoint.handle, 0, 0, &values, 15))
    refused("size", moe_checkpoint_read_tensor(checkpoint.handle, 0, 0, &values, -1))
    refused("index", moe_checkpoint_read_tensor(checkpoint.handle, 4, 0, &values, 16))
    refused("dtype", moe_checkpoint_read_tensor(checkpoint.handle, 0, 99, &values, 16))
    refused("dtype", moe_checkpoint_read_tensor(checkpoint.handle, 0, MOE_DTYPE_BF16.int32, &values, 8))
    refused("data", moe_checkpoint_read_tensor(checkpoint.handle, 0, 0, nil, 16))
    values.withUnsafeMutableBytes {
      refused("aligned", moe_checkpoint_read_tensor(checkpoint.handle, 2, 0, $0.baseAddress! + 1, 12))
    }
    refused("checkpoint", moe_checkpoint_read_tensor(nil, 0, 0, &values, 16))
  }

  /// Elements of 4 and 6 bits share bytes, which they have to fill.
  @Test(arguments: [("F4", MOE_DTYPE_F4, 4), ("F6_E2M3", MOE_DTYPE_F6_E2M3, 6), ("F6_E3M2", MOE_DTYPE_F6_E3M2, 6)])
  func elementsMayShareBytes(name: String, type: moe_dtype, bits: Int) throws {
    func header(_ elements: Int, _ bytes: Int) -> String {
      #"{"a":{"dtype":"\#(name)","shape":[2,\#(elements)],"data_offsets":[0,\#(bytes)]}}"#
    }
    let bytes = (0..<2 * bits).map(UInt8.init)
    let checkpoint = try open(header(8, bytes.count), bytes)
    let found = try checkpoint.tensors()
    #expect(found[0].tensor.dtype == type.int32 && found[0].tensor.shape.1 == 8 && found[0].bytes == bytes)
    try check(moe_checkpoint_write(context, folder.file("again"), found.map(\.tensor), 1))
    #expect(try OpenCheckpoint(folder.file("again"), in: context).tensors()[0].bytes == bytes)
    var values = [Float](repeating: 0, count: 16)
    refused(name, moe_checkpoint_read_tensor(checkpoint.handle, 0, MOE_DTYPE_F32.int32, &values, 64))
    // As many bytes as there are elements; one byte too few.
    var out: OpaquePointer?
    for count in [16, 2 * bits - 1] {
      let file = try folder.write("other", safetensors(header(8, count), [UInt8](repeating: 0, count: count)))
      refused("\(2 * bits)", moe_checkpoint_open(context, file, &out))
    }
    var odd = found[0].tensor
    (odd.rank, odd.shape.0, odd.size) = (1, 3, 0)
    refused("whole", moe_checkpoint_write(context, folder.file("odd"), [odd], 1))
  }

  @Test(arguments: ["X9_TO_COME", "ä\\\"\\n"])
  func unknownTypesAreBytesUnderAName(name: String) throws {
    let header =
      #"{"a":{"dtype":""# + name + #"","shape":[3,2],"data_offsets":[0,3]},"#
      + #""b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},"__metadata__":null}"#
    let checkpoint = try open(header, [1, 2, 3, 4])
    let found = try checkpoint.tensors()
    let decoded = name == "ä\\\"\\n" ? "ä\"\n" : name
    #expect(found[0].tensor.dtype == MOE_DTYPE_OTHER.int32 && String(cString: found[0].tensor.dtype_name) == decoded)
    #expect(found[0].bytes == [1, 2, 3] && found[0].tensor.shape.0 == 3 && found[0].tensor.rank == 2)
    #expect(String(cString: found[1].tensor.dtype_name) == "U8")
    var values = [Float](repeating: 0, count: 6)
    refused(
      decoded == name ? name : "dtype",
      moe_checkpoint_read_tensor(checkpoint.handle, 0, MOE_DTYPE_F32.int32, &values, 24))
    // Written again it is what it was.
    try check(moe_checkpoint_write(context, folder.file("again"), found.map(\.tensor), 2))
    let again = try OpenCheckpoint(folder.file("again"), in: context).tensors()
    #expect(again.map { String(cString: $0.tensor.dtype_name) } == [decoded, "U8"])
    #expect(again.map(\.bytes) == [[1, 2, 3], [4]])
  }

  @Test func whatTwoTo63BytesCannotHoldIsRefused() throws {
    let value: [Float] = [1]
    value.withUnsafeBytes { memory in
      func stored(_ bytes: Int64, _ type: moe_dtype = MOE_DTYPE_U8) -> moe_stored_tensor {
        var tensor = moe_stored_tensor()
        moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
        tensor.name = UnsafeRawPointer(("x" as StaticString).utf8Start).assumingMemoryBound(to: CChar.self)
        (tensor.dtype, tensor.rank, tensor.shape.0, tensor.data) = (type.int32, 1, bytes, memory.baseAddress)
        return tensor
      }
      let index = folder.file("m.safetensors.index.json")
      for bytes: Int64 in [.max, .max - 8, .max - 70] {
        refused("63", moe_checkpoint_write(context, folder.file("a"), [stored(bytes)], 1))
        refused("63", moe_checkpoint_write_sharded(context, index, [stored(bytes)], 1, .max))
        refused("63", moe_checkpoint_write_sharded(context, index, [stored(bytes)], 1, 1))
      }
      var other = stored(1, MOE_DTYPE_OTHER)
      other.dtype_name = other.name
      other.size = Int.max
      refused("63", moe_checkpoint_write(context, folder.file("a"), [other], 1))
      other.size = -1
      refused("63", moe_checkpoint_write(context, folder.file("a"), [other], 1))
    }
    #expect(try folder.contents() == [])
  }
}
