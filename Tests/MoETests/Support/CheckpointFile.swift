import CMoE
import Foundation
import Testing

/// A folder of its own for the files of a test, removed with it.
final class Folder {
  let path: String

  init() throws {
    let all = FileManager.default.temporaryDirectory
    path = all.appendingPathComponent("libmoe-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func file(_ name: String) -> String { "\(path)/\(name)" }
  func contents() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: path).sorted() }
  func bytes(_ name: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: file(name))) }

  func write(_ name: String, _ bytes: [UInt8]) throws -> String {
    try Data(bytes).write(to: URL(fileURLWithPath: file(name)))
    return file(name)
  }
}

/// A safetensors file as the format has it.
func safetensors(_ header: String, _ data: [UInt8] = []) -> [UInt8] {
  let text = Array(header.utf8)
  let length = UInt64(text.count)
  return (0..<8).map { UInt8(truncatingIfNeeded: length >> UInt64(8 * $0)) } + text + data
}

/// What a checkpoint has of a tensor; name and bytes are copied, so that it may be closed.
struct Stored {
  let name: String
  let tensor: moe_stored_tensor
  let bytes: [UInt8]
  let checkpoint: OpenCheckpoint  // whose memory the tensor points at
}

/// An open file, freed with this.
final class OpenCheckpoint {
  let handle: OpaquePointer

  init(_ path: String, in context: OpaquePointer) throws {
    var opened: OpaquePointer?
    try check(moe_checkpoint_open(context, path, &opened))
    handle = try #require(opened)
  }

  deinit { moe_checkpoint_free(handle) }

  func tensors() throws -> [Stored] {
    var count: Int64 = -1
    try check(moe_checkpoint_tensor_count(handle, &count))
    return try (0..<count).map { index in
      var tensor = moe_stored_tensor()
      moe_stored_tensor_init(&tensor, MemoryLayout<moe_stored_tensor>.size)
      try check(moe_checkpoint_tensor(handle, index, &tensor))
      let bytes = Array(UnsafeRawBufferPointer(start: tensor.data, count: tensor.size))
      return Stored(name: String(cString: tensor.name), tensor: tensor, bytes: bytes, checkpoint: self)
    }
  }
}
