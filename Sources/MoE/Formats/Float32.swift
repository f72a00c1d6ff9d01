import CShims

/// IEEE 754 binary32: what the engine computes with.
extension Format {
  static var f32: Format {
    Format(
      constant: "MOE_DTYPE_F32", bytes: 4, precision: .f32, isForTokens: true,
      toFloats: { _, data, first, count, floats in
        floats.update(from: data.assumingMemoryBound(to: Float.self) + first, count: count)
      },
      fromFloats: { _, floats, count, data, first in
        (data.assumingMemoryBound(to: Float.self) + first).update(from: floats, count: count)
      })
  }
}
