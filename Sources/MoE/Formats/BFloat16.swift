import CShims

/// bfloat16, the upper half of a float32. Tokens are rounded to it where they are multiplied with it.
extension Format {
  static var bf16: Format {
    Format(
      constant: "MOE_DTYPE_BF16", bytes: 2, precision: .bf16, isForTokens: true,
      toFloats: { kernels, data, first, count, floats in
        kernels.pointee.from_bf16(Int64(count), data.assumingMemoryBound(to: UInt16.self) + first, floats)
      },
      fromFloats: { kernels, floats, count, data, first in
        kernels.pointee.to_bf16(Int64(count), floats, data.assumingMemoryBound(to: UInt16.self) + first)
      })
  }
}
