/// Arrays of a report that have a row for each sequence; nil where they are not wanted.
public struct SequenceDetails {
  public var counts: UnsafeMutablePointer<Int64>?  // [sequences,E] tokens whose most probable expert is e
  public var probability: UnsafeMutablePointer<Float>?  // [sequences,E] means
  public var valid: UnsafeMutablePointer<Int64>?  // [sequences] tokens that count

  public init() {}

  var isWanted: Bool { counts != nil || probability != nil || valid != nil }

  func clear(_ sequences: Int, _ experts: Int) {
    counts?.initialize(repeating: 0, count: sequences * experts)
    probability?.initialize(repeating: 0, count: sequences * experts)
    valid?.initialize(repeating: 0, count: sequences)
  }
}
