import CMoE

// bfloat16 as the tests have it, from its definition: a sign, eight bits of exponent, seven behind the point.

/// The nearest number with seven bits behind the point, the even one in a tie; float32's where it overflows.
func rounded(_ value: Float) -> Float {
  guard value.isFinite else { return value }
  // Denormal numbers have the spacing of the smallest normal ones.
  let exponent = max(Int(value.exponent), -126)
  let spacing = Double(sign: .plus, exponent: exponent - 7, significand: 1)
  return Float((Double(value) / spacing).rounded(.toNearestOrEven) * spacing)
}

func rounded(_ values: [Float]) -> [Float] { values.map(rounded) }

/// The bits of numbers that bfloat16 has.
func halves(_ values: [Float]) -> [UInt16] { values.map { UInt16($0.bitPattern >> 16) } }

func floats(_ halves: some Sequence<UInt16>) -> [Float] { halves.map { Float(bitPattern: UInt32($0) << 16) } }

/// binary16 from its definition: a sign, five bits of exponent, ten behind the point. Of finite numbers.
func float16(_ bits: UInt16) -> Float {
  let (exponent, fraction) = (Int(bits >> 10 & 31), Float(bits & 1023))
  let magnitude =
    exponent == 0 ? fraction * 0x1p-24 : (1024 + fraction) * Float(sign: .plus, exponent: exponent - 25, significand: 1)
  return bits & 0x8000 == 0 ? magnitude : -magnitude
}

extension moe_tensor {
  /// Of a bfloat16 or float16 tensor: bits.
  var halves: UnsafeMutableBufferPointer<UInt16> {
    UnsafeMutableBufferPointer(start: data.assumingMemoryBound(to: UInt16.self), count: count)
  }

  /// The values of a tensor of any type.
  var numbers: [Float] {
    switch dtype {
    case MOE_DTYPE_BF16.int32: floats(halves)
    case MOE_DTYPE_F16.int32: halves.map(float16)
    default: Array(values)
    }
  }
}
