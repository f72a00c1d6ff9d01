/// The double nearest to a JSON number, or one of its neighbours where it has more than 19 digits or an exponent beyond 10^22 or so:
/// enough for what a configuration says. Infinity where it is too large.
public func decimal(_ text: JSONText) -> Double {
  var (digits, scale, i) = (UInt64(0), 0, 0)
  let isNegative = text.count > 0 && text.start[0] == UInt8(ascii: "-")
  if isNegative { i = 1 }
  var isFraction = false
  while i < text.count {
    let byte = text.start[i]
    if byte == UInt8(ascii: ".") {
      isFraction = true
    } else if byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") {
      // 19 digits fit; what follows only moves the point.
      let fits = digits < 1_000_000_000_000_000_000
      if fits { digits = 10 * digits + UInt64(byte - UInt8(ascii: "0")) }
      scale += (fits ? 0 : 1) - (isFraction ? 1 : 0)
    } else {
      break
    }
    i += 1
  }
  scale += exponent(text, from: i)
  let magnitude = scaled(digits, scale)
  return isNegative ? -magnitude : magnitude
}

/// What follows "e"; bounded, so that nothing overflows.
private func exponent(_ text: JSONText, from start: Int) -> Int {
  var i = start + 1
  if i >= text.count { return 0 }
  let isNegative = text.start[i] == UInt8(ascii: "-")
  if isNegative || text.start[i] == UInt8(ascii: "+") { i += 1 }
  var exponent = 0
  while i < text.count, text.start[i] >= UInt8(ascii: "0"), text.start[i] <= UInt8(ascii: "9") {
    exponent = min(100_000, 10 * exponent + Int(text.start[i] - UInt8(ascii: "0")))
    i += 1
  }
  return isNegative ? -exponent : exponent
}

/// digits * 10^scale
private func scaled(_ digits: UInt64, _ scale: Int) -> Double {
  if digits == 0 { return 0 }
  // Both are exact, and one operation rounds [Clinger 1990].
  if digits < 1 << 53 && abs(scale) <= 22 {
    return scale < 0 ? Double(digits) / power(-scale) : Double(digits) * power(scale)
  }
  if scale < 0 && scale >= -19 { return quotient(digits, by: integerPower(-scale)) }
  var (value, left) = (Double(digits), min(abs(scale), 1000))
  while left > 0 && value > 0 && value.isFinite {
    let step = min(left, 22)
    value = scale < 0 ? value / power(step) : value * power(step)
    left -= step
  }
  return value
}

/// 10^n, exact for n to 22.
private func power(_ n: Int) -> Double {
  var value = 1.0
  for _ in 0..<n { value *= 10 }
  return value
}

private func integerPower(_ n: Int) -> UInt64 {
  var value: UInt64 = 1
  for _ in 0..<n { value *= 10 }
  return value
}

/// a / b rounded once: a is moved up until the quotient has 64 bits, the last of which says whether anything was left.
private func quotient(_ a: UInt64, by b: UInt64) -> Double {
  let shift = a.leadingZeroBitCount
  var high = a << UInt64(shift)
  var below = 0
  // So that high < b, as the division wants it.
  var low: UInt64 = 0
  while high >= b {
    low = low >> 1 | (high & 1) << 63
    high >>= 1
    below += 1
  }
  let (whole, rest) = b.dividingFullWidth((high, low))
  let exact = rest == 0 ? whole : whole | 1
  return Double(exact) * scale2(below - 64 - shift)
}

private func scale2(_ exponent: Int) -> Double {
  Double(sign: .plus, exponent: exponent, significand: 1)
}
