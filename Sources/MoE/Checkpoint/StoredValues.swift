import CShims

/// Numbers of a stored tensor as float32, which is exact for all that can be read.
struct StoredValues {
  enum Form {
    case f32
    case bf16
    case f16
    case mxfp4(scales: UnsafePointer<UInt8>)
  }

  let form: Form
  let data: UnsafeRawPointer

  /// Elements first, first + stride, ... of the tensor, to `out`.
  func read(_ first: Int, stride: Int, count: Int, to out: UnsafeMutablePointer<Float>) {
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
    case .mxfp4(let scales):
      let data = data.assumingMemoryBound(to: UInt8.self)
      for i in 0..<count { out[i] = MXFP4.value(first + i * stride, blocks: data, scales: scales) }
    }
  }
}

/// IEEE 754 binary16 as float32: 1 sign, 5 exponent, 10 fraction bits.
private func float(half: UInt16) -> Float {
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
    return (code & 8 == 0 ? magnitude : -magnitude) * scale(scales[index >> 5])
  }

  private static func scale(_ s: UInt8) -> Float {
    switch s {
    case 0: 0x1p-127
    case 255: .nan
    default: Float(bitPattern: UInt32(s) << 23)
    }
  }
}
