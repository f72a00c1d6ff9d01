extension TextBuffer {
  /// A number as JSON has it, in the fewest digits that stand for it: for a float32 in those that do so among float32 numbers, since
  /// somebody wrote them. It is finite.
  mutating func append(shortest number: Double, isSingle: Bool) {
    if number == 0 { return append("0.0") }
    if number < 0 { append("-") }
    let magnitude = number.magnitude
    let exponent = decimalExponent(magnitude)
    for digits in 1...17 {
      let place = exponent - digits + 1
      let whole = scaled(magnitude, by: -place).rounded()
      if !(whole < 1e18) { continue }
      if isSame(UInt64(whole), place, magnitude, isSingle) || digits == 17 {
        return append(UInt64(whole), place)
      }
    }
  }

  private mutating func append(_ whole: UInt64, _ place: Int) {
    append(whole)
    if place == 0 { return append(".0") }
    append("e")
    append(place)
  }

  private func isSame(_ whole: UInt64, _ place: Int, _ magnitude: Double, _ isSingle: Bool) -> Bool {
    withText {
      $0.append(whole)
      $0.append("e")
      $0.append(place)
    } body: {
      let read = decimal(JSONText($0))
      return isSingle ? Float(read) == Float(magnitude) : read == magnitude
    }
  }
}

/// Of the first digit.
private func decimalExponent(_ magnitude: Double) -> Int {
  var exponent = 0
  while exponent < 400 && scaled(magnitude, by: -exponent) >= 10 { exponent += 1 }
  while exponent > -400 && scaled(magnitude, by: -exponent) < 1 { exponent -= 1 }
  return exponent
}

/// x 10^n
private func scaled(_ x: Double, by n: Int) -> Double {
  var (value, left) = (x, n.magnitude)
  while left > 0 {
    let step = min(left, 22)
    var power = 1.0
    for _ in 0..<step { power *= 10 }
    value = n < 0 ? value / power : value * power
    left -= step
  }
  return value
}
