/// Rotary positions as data, laid out as moe_rotary_table.
public struct RotaryValues {
  private let givenSize: Int
  public let theta: Double  // without frequencies
  public private(set) var frequencies: UnsafePointer<Double>?  // [R/2] radians per position
  private let givenScale: Double
  /// What a sequence has in place of these that has a position of originalLength or more [LongRoPE 2024].
  public private(set) var longFrequencies: UnsafePointer<Double>?  // [R/2]
  private let givenLongScale: Double
  public let originalLength: Int

  /// All of a head turns.
  public init(theta: Double) {
    self.theta = theta
    (givenSize, givenScale, givenLongScale, originalLength) = (0, 0, 0, 0)
    (frequencies, longFrequencies) = (nil, nil)
  }

  /// R, even: the first R of a head's numbers turn.
  func size(headSize: Int) -> Int { givenSize == 0 ? headSize : givenSize }
  /// Of cos and sin.
  var scale: Double { givenScale == 0 ? 1 : givenScale }
  var longScale: Double { givenLongScale == 0 ? 1 : givenLongScale }

  /// When what the lists say is in tables.
  mutating func forgetLists() { (frequencies, longFrequencies) = (nil, nil) }
}
