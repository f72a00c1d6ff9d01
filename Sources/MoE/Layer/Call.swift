import CShims

/// What one call brings beside x. The boundary has checked sizes and values. One field for each of the header's options of
/// a call, as flat as there, so that nobody has to learn a second order.
public struct Call {
  public let tokens: Int  // T
  public var step: UInt64 = 0
  public var training = false
  public var hasSequences = false  // or else all tokens are one
  public var validMask: UnsafePointer<UInt8>?  // [T]
  /// Tokens that count in losses and statistics; nil: those that are valid.
  public var lossMask: UnsafePointer<UInt8>?  // [T]
  public var given = GivenNumbers()
  public var tokenIds: UnsafePointer<Int64>?  // [T]
  /// The choice is this one: [T,K], -1 for none.
  public var givenIndices: UnsafePointer<Int32>?
  public var givenWeights: UnsafePointer<Float>?  // [T,K]
  public var sequenceLength: Int  // a divisor of T
  public var globalCounts: UnsafePointer<Int64>?  // [E]
  public var record: RoutingRecordPointer?
  /// Bytes of scratch and tape together; nil = as the context has it.
  public var limit: Int?
  public var tapePolicy: Plan.TapePolicy?  // nil = as the limit allows
  /// Tokens that experts compute at once at most; nil = as the limit allows.
  public var chunkTokens: Int?
  public var scratch: CallerMemory?
  /// Number of the first token, of a layer that every rank has whole.
  var firstToken = 0
  /// Over which the layer's experts are spread; nil where all are here.
  var ranks: RanksPointer?
  /// Where what the experts read is noted.
  var squares: LayerSquares?
  /// Where a model keeps what it will let the layer note (TrainingNotes.swift); nil: the layer does so at once.
  var notes: UnsafeMutablePointer<Float>?  // [2,H]

  public init(tokens: Int) {
    self.tokens = tokens
    sequenceLength = tokens
  }

  /// On any rank: one without tokens is given none.
  var choicesAreGiven: Bool { givenIndices != nil || ranks?.pointee.all.choicesAreGiven == true }

  public func isValid(_ token: Int) -> Bool { validMask.map { $0[token] != 0 } ?? true }

  /// Real tokens among some.
  func valid(in range: Range<Int>) -> Int { ones(of: validMask, in: range) }
  /// Those among some that count in losses.
  func counted(in range: Range<Int>) -> Int { ones(of: lossMask ?? validMask, in: range) }

  private func ones(of mask: UnsafePointer<UInt8>?, in range: Range<Int>) -> Int {
    guard let mask else { return range.count }
    var count = 0
    for t in range where mask[t] != 0 { count += 1 }
    return count
  }

  /// Sequences, or all tokens as one.
  public func sequences(apart: Bool) -> Int { apart && tokens > 0 ? tokens / sequenceLength : 1 }
  func tokens(ofSequence s: Int, apart: Bool) -> Range<Int> {
    apart ? s * sequenceLength..<(s + 1) * sequenceLength : 0..<tokens
  }

  /// The sequences that some tokens are from, in order, each with its part of them.
  func forSequences<E: Error>(
    of part: Range<Int>, apart: Bool, _ body: (_ sequence: Range<Int>, _ part: Range<Int>) throws(E) -> Void
  ) throws(E) {
    var first = part.lowerBound
    while first < part.upperBound {
      let sequence = tokens(ofSequence: apart ? first / sequenceLength : 0, apart: apart)
      let end = min(sequence.upperBound, part.upperBound)
      try body(sequence, first..<end)
      first = end
    }
  }
}
