import CShims

/// IEEE 754 binary16, for weights alone: tokens stay float32, and so do the bits of products, since every number is one of
/// float32.
extension Format {
  static var f16: Format {
    Format(
      constant: "MOE_DTYPE_F16", bytes: 2, precision: .f32, isForTokens: false,
      toFloats: { kernels, data, first, count, floats in
        kernels.pointee.from_f16(Int64(count), data.assumingMemoryBound(to: UInt16.self) + first, floats)
      },
      fromFloats: { kernels, floats, count, data, first in
        kernels.pointee.to_f16(Int64(count), floats, data.assumingMemoryBound(to: UInt16.self) + first)
      })
  }
}
