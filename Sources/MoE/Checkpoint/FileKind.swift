import CShims

// People meet error pages, pointers and archives where a safetensors file should be: the message says which, and what helps.

/// What a file is by its first bytes, where it is none that can be read.
struct FileKind {
  private let bytes: UnsafePointer<UInt8>
  private let count: Int

  private static var most: Int { 512 }

  /// nil where it is nothing known. `wantsIndex`: JSON was asked for.
  static func fault(_ file: InputFile, _ path: UnsafePointer<CChar>, wantsIndex: Bool = false) -> Fault? {
    if file.count == 0 {
      return .invalid("an empty file, 0 bytes: the download or copy has failed, fetch it again: \(path)")
    }
    return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: most) { memory -> Fault? in
      let count = min(most, file.count)
      if file.read(0, count, to: memory.baseAddress!) != 0 { return nil }
      return FileKind(bytes: UnsafePointer(memory.baseAddress!), count: count)
        .fault(path, wantsIndex)
    }
  }

  private func fault(_ path: UnsafePointer<CChar>, _ wantsIndex: Bool) -> Fault? {
    if wantsIndex && isSafetensors {
      return .invalid("a safetensors file, no index: give it a name that does not end in .json: \(path)")
    }
    if begins("version https://git-lfs") {
      return .invalid(
        "a Git LFS pointer, not the file it stands for: run `git lfs pull`, or download the file: \(path)")
    }
    if let fault = archive(path) ?? otherModel(path) { return fault }
    switch firstCharacter {
    case UInt8(ascii: "<"):
      return .invalid(
        "an HTML or XML page, not the file: the download got an error or a login; fetch it again: \(path)")
    case UInt8(ascii: "{"), UInt8(ascii: "["):
      if wantsIndex { return nil }
      return .invalid(
        "JSON, no safetensors file: name the .safetensors file, or an index by a name that ends in .json: \(path)")
    default: break
    }
    if isZeros { return .invalid("zeros, no safetensors file: the download was not finished, fetch it again: \(path)") }
    if isText { return .invalid("a text, no safetensors file: name the .safetensors file, or fetch it again: \(path)") }
    return nil
  }

  private func archive(_ path: UnsafePointer<CChar>) -> Fault? {
    func compressed(_ name: StaticString) -> Fault {
      .invalid("a file compressed by \(name): decompress it first: \(path)")
    }
    if begins(0x1F8B, 2) { return compressed("gzip") }
    if begins(0x28B5_2FFD, 4) { return compressed("zstd") }
    if begins(0xFD37_7A58, 4) { return compressed("xz") }
    if begins("BZh") { return compressed("bzip2") }
    if begins(0x377A_BCAF, 4) { return compressed("7-Zip") }
    if begins(0x0422_4D18, 4) { return compressed("lz4") }
    if begins("ustar", at: 257) { return .invalid("a tar archive: unpack it, and name the file in it: \(path)") }
    if begins(0x504B_0304, 4) {
      return .invalid(
        "a zip archive, as torch.save and numpy.savez write them: load it there, and save it as safetensors: \(path)")
    }
    return nil
  }

  private func otherModel(_ path: UnsafePointer<CChar>) -> Fault? {
    if count > 1 && bytes[0] == 0x80 && (2...5).contains(bytes[1]) {
      return .invalid(
        "a Python pickle, as old versions of torch.save write: load it there, and save it as safetensors: \(path)")
    }
    if begins("GGUF") { return .invalid("a GGUF file: give it by itself, not as a part of a folder or index: \(path)") }
    if begins("lmgg") || begins("tjgg") || begins("fmgg") {
      return .invalid("a file of llama.cpp from before GGUF: take the model's GGUF or safetensors files: \(path)")
    }
    if begins(0x934E_554D, 4) {
      return .invalid("a numpy .npy file: load it there, and save it as safetensors: \(path)")
    }
    if begins(0x8948_4446, 4) {
      return .invalid("an HDF5 file, as Keras writes: load it there, and save it as safetensors: \(path)")
    }
    return nil
  }

  // MARK: bytes

  private func begins(_ magic: UInt64, _ length: Int) -> Bool {
    if count < length { return false }
    var value: UInt64 = 0
    for i in 0..<length { value = value << 8 | UInt64(bytes[i]) }
    return value == magic
  }

  private func begins(_ text: StaticString, at place: Int = 0) -> Bool {
    let length = text.utf8CodeUnitCount
    if count < place + length { return false }
    for i in 0..<length where bytes[place + i] != text.utf8Start[i] { return false }
    return true
  }

  /// Behind a byte order mark and space; 0 where there is none.
  private var firstCharacter: UInt8 {
    var i = begins(0xEF_BBBF, 3) ? 3 : 0
    while i < count, bytes[i] == 0x20 || 0x09...0x0D ~= bytes[i] { i += 1 }
    return i < count ? bytes[i] : 0
  }

  private var isSafetensors: Bool { count > 8 && bytes[8] == UInt8(ascii: "{") && bytes[7] == 0 && bytes[6] == 0 }

  private var isZeros: Bool {
    if count < Self.most { return false }
    for i in 0..<count where bytes[i] != 0 { return false }
    return true
  }

  /// ASCII without control characters: the first bytes of a length are not.
  private var isText: Bool {
    for i in 0..<count where bytes[i] > 0x7E || bytes[i] < 0x20 && !(0x09...0x0D ~= bytes[i]) { return false }
    return true
  }
}
