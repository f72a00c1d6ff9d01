import CShims

/// How a stored tensor's numbers are written down. The raw type is for the linker, see ExpertForm.
enum StoredForm: Int32 {
  case f32, bf16, f16, mxfp4, f8E4M3, f8E5M2, f8E8M0
  /// Of GGUF, see BlockValues; several tensors together, see QuantisedMatrix.
  case blocks, matrix

  /// Of a tensor by itself; nil where float32 does not hold all of its numbers.
  init?(_ type: StoredType) {
    switch type {
    case .f32: self = .f32
    case .bf16: self = .bf16
    case .f16: self = .f16
    case .f8E4M3: self = .f8E4M3
    case .f8E5M2: self = .f8E5M2
    case .f8E8M0: self = .f8E8M0
    case .f64, .i64, .i32, .i16, .i8, .u64, .u32, .u16, .u8, .bool, .other, .f4, .f6E2M3, .f6E3M2, .c64, .f8E4M3FNUZ,
      .f8E5M2FNUZ:
      return nil
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q2K, .q3K, .q4K, .q5K, .q6K, .iq4NL, .iq4XS, .mxfp4, .nvfp4:
      self = .blocks
    }
  }

  /// As parameters of a type are written. Every type is a form.
  init(_ type: ElementType) { self = StoredForm(StoredType(type)) ?? .f32 }
}

/// Where a tensor's numbers are in a checkpoint's files.
struct StoredPlace {
  let form: StoredForm
  let file: Int32  // number among the checkpoint's
  private(set) var offset: Int
  // Of MXFP4.
  private var scalesFile: Int32 = 0
  private var scalesOffset = 0
  /// Of blocks.
  private(set) var type = StoredType.f32
  /// Of a matrix: which, and the first of its elements that is meant.
  private(set) var matrix: UnsafePointer<QuantisedMatrix>?
  private var first = 0

  /// Of weights; nil where a tensor has no numbers, or numbers that are no weights by themselves.
  init?(weights tensor: StoredTensor) {
    (file, offset, type, matrix) = (tensor.file, tensor.offset, tensor.type, tensor.quantised)
    if tensor.quantised != nil {
      form = .matrix
      return
    }
    guard let form = StoredForm(tensor.type), form == .f32 || form == .bf16 || form == .f16 || form == .blocks else {
      return nil
    }
    self.form = form
  }

  /// Of MXFP4 in two tensors.
  init(blocks: StoredTensor, scales: StoredTensor) {
    (form, file, offset, matrix) = (.mxfp4, blocks.file, blocks.offset, nil)
    (scalesFile, scalesOffset) = (scales.file, scales.offset)
  }

  /// From element `first` on, a multiple of a block where there are blocks.
  func from(_ first: Int) -> StoredPlace {
    var place = self
    if matrix != nil {
      place.first += first
    } else {
      place.offset += numberBytes(first)
      place.scalesOffset += scalesBytes(first)
    }
    return place
  }

  /// The same, its matrix noted in another place.
  func noting(_ matrix: UnsafePointer<QuantisedMatrix>) -> StoredPlace {
    var place = self
    place.matrix = matrix
    return place
  }

  /// What `fetch` reads: `count` elements, with their scales; of a matrix always the whole.
  func bytes(_ count: Int) -> Int { matrix?.pointee.bytes ?? numberBytes(count) + scalesBytes(count) }

  private func numberBytes(_ count: Int) -> Int {
    switch form {
    case .f32: 4 * count
    case .bf16, .f16: 2 * count
    case .mxfp4: count / 2
    case .f8E4M3, .f8E5M2, .f8E8M0: count
    case .blocks: type.bytes(count) ?? 0
    case .matrix: 0
    }
  }

  private func scalesBytes(_ count: Int) -> Int { form == .mxfp4 ? count / MXFP4.block : 0 }

  /// Hands over the files that it is in.
  func forEachFile<E: Error>(_ body: (Int32) throws(E) -> Void) throws(E) {
    if let matrix {
      try matrix.pointee.forEachPart { (part) throws(E) in try body(part.file) }
      return
    }
    try body(file)
    if form == .mxfp4 { try body(scalesFile) }
  }

  /// Reads `count` elements to `raw`, [bytes(count)], and returns them as values; nil where `get` (file, offset, bytes, memory) says
  /// no.
  func fetch(
    _ count: Int, to raw: UnsafeMutableRawPointer, _ get: (Int32, Int, Int, UnsafeMutableRawPointer) -> Bool
  ) -> StoredValues? {
    if let matrix {
      var (place, isRead) = (raw, true)
      matrix.pointee.forEachPart { part in
        if isRead { isRead = get(part.file, part.offset, part.bytes, place) }
        place += part.room
      }
      return isRead ? StoredValues(form: form, data: raw, matrix: matrix, first: first) : nil
    }
    let bytes = numberBytes(count)
    if !get(file, offset, bytes, raw) { return nil }
    let scales = scalesBytes(count)
    if scales > 0 && !get(scalesFile, scalesOffset, scales, raw + bytes) { return nil }
    return StoredValues(form: form, data: raw, scales: raw + bytes, type: type)
  }
}

/// Numbers of a stored tensor as float32, which is exact for all that can be read, or rounded as the format has it.
struct StoredValues {
  let form: StoredForm
  let data: UnsafeRawPointer
  /// Of MXFP4.
  var scales: UnsafeRawPointer?
  /// Of blocks.
  var type = StoredType.f32
  /// As in StoredPlace.
  var matrix: UnsafePointer<QuantisedMatrix>?
  var first = 0

  /// Brings elements first ..< first + count into the cache, where each has bytes of its own.
  func prefetch(_ first: Int, _ count: Int) {
    let size: Int
    switch form {
    case .f32: size = 4
    case .bf16, .f16: size = 2
    default: return
    }
    for byte in Swift.stride(from: first * size, to: (first + count) * size, by: 64) { moei_prefetch(data + byte) }
  }

  /// Elements first, first + stride, ... of the tensor, to `out`.
  func read(_ first: Int, stride: Int, count: Int, to out: UnsafeMutablePointer<Float>) {
    let bytes = data.assumingMemoryBound(to: UInt8.self)
    switch form {
    case .f32:
      let data = data.assumingMemoryBound(to: Float.self) + first
      if stride == 1 { return out.update(from: data, count: count) }
      for i in 0..<count { out[i] = data[i * stride] }
    case .bf16:
      let data = data.assumingMemoryBound(to: UInt16.self) + first
      for i in 0..<count { out[i] = Float(bitPattern: UInt32(data[i * stride]) << 16) }
    case .f16:
      let data = data.assumingMemoryBound(to: UInt16.self) + first
      for i in 0..<count { out[i] = float(half: data[i * stride]) }
    case .mxfp4:
      let scales = scales!.assumingMemoryBound(to: UInt8.self)
      for i in 0..<count { out[i] = MXFP4.value(first + i * stride, blocks: bytes, scales: scales) }
    case .f8E4M3: for i in 0..<count { out[i] = float(e4m3: bytes[first + i * stride]) }
    case .f8E5M2: for i in 0..<count { out[i] = float(half: UInt16(bytes[first + i * stride]) << 8) }
    case .f8E8M0: for i in 0..<count { out[i] = MXFP4.scale(bytes[first + i * stride]) }
    case .blocks: BlockValues(type, bytes)?.read(first, stride: stride, count: count, to: out)
    case .matrix: matrix!.pointee.read(data, self.first + first, stride: stride, count: count, to: out)
    }
  }
}

/// 1 sign, 4 exponent, 3 fraction bits, without infinities: all ones are NaN [Micikevicius et al. 2022, arXiv:2209.05433].
func float(e4m3 byte: UInt8) -> Float {
  let sign = UInt32(byte & 0x80) << 24
  let (exponent, fraction) = (UInt32(byte >> 3 & 15), UInt32(byte & 7))
  if exponent == 0 { return Float(bitPattern: sign | (Float(fraction) * 0x1p-9).bitPattern) }
  if byte & 0x7F == 0x7F { return Float(bitPattern: sign | 0x7FC0_0000) }
  return Float(bitPattern: sign | (exponent + 120) << 23 | fraction << 20)
}

/// IEEE 754 binary16 as float32: 1 sign, 5 exponent, 10 fraction bits.
func float(half: UInt16) -> Float {
  let sign = UInt32(half & 0x8000) << 16
  let exponent = UInt32(half >> 10 & 0x1F)
  let fraction = UInt32(half & 0x3FF)
  switch exponent {
  case 0:  // denormal: fraction * 2^-24
    let magnitude = Float(fraction) * 0x1p-24
    return Float(bitPattern: sign | magnitude.bitPattern)
  case 31: return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)  // infinity or NaN
  default: return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
  }
}

/// MXFP4 [OCP Microscaling Formats 1.0, 2023]: blocks of 32 numbers of 1 sign, 2 exponent and 1 fraction bit, two in a byte,
/// the earlier one in the lower half; each block has a scale 2^(s - 127), s = 255 being NaN.
enum MXFP4 {
  static var block: Int { 32 }

  static func value(_ index: Int, blocks: UnsafePointer<UInt8>, scales: UnsafePointer<UInt8>) -> Float {
    let byte = blocks[index >> 1]
    let code = index & 1 == 0 ? byte & 15 : byte >> 4
    return number(code) * scale(scales[index >> 5])
  }

  /// Of 4 bits: 1 sign, 2 exponent and 1 fraction bit.
  static func number(_ code: UInt8) -> Float {
    let magnitude: Float
    switch code & 7 {
    case 0: magnitude = 0
    case 1: magnitude = 0.5
    case 2: magnitude = 1
    case 3: magnitude = 1.5
    case 4: magnitude = 2
    case 5: magnitude = 3
    case 6: magnitude = 4
    default: magnitude = 6
    }
    return code & 8 == 0 ? magnitude : -magnitude
  }

  /// E8M0.
  static func scale(_ s: UInt8) -> Float {
    switch s {
    case 0: 0x1p-127
    case 255: .nan
    default: Float(bitPattern: UInt32(s) << 23)
    }
  }
}
