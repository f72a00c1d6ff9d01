/// Rotary positions as data, laid out as moe_rotary_table.
public struct RotaryValues {
  private let givenSize: Int
  private let theta: Double  // without frequencies
  private let frequencies: UnsafePointer<Double>?  // [R/2] radians per position
  private let givenScale: Double
  /// What a sequence has in place of these that has a position of originalLength or more [LongRoPE 2024].
  private let longFrequencies: UnsafePointer<Double>?  // [R/2]
  private let givenLongScale: Double
  let originalLength: Int

  /// All of a head turns.
  public init(theta: Double) {
    self.theta = theta
    (givenSize, givenScale, givenLongScale, originalLength) = (0, 0, 0, 0)
    (frequencies, longFrequencies) = (nil, nil)
  }

  func angles(headSize: Int) -> RotaryAngles {
    RotaryAngles(
      size: size(headSize: headSize), theta: theta, frequencies: frequencies, scale: givenScale == 0 ? 1 : givenScale)
  }

  /// nil where there is no long form.
  func longAngles(headSize: Int) -> RotaryAngles? {
    longFrequencies.map {
      RotaryAngles(
        size: size(headSize: headSize), theta: theta, frequencies: $0, scale: givenLongScale == 0 ? 1 : givenLongScale)
    }
  }

  /// R, even: so many of a head's numbers turn.
  public func size(headSize: Int) -> Int { givenSize == 0 ? headSize : givenSize }
}
