import CShims

/// One of a model's rotary tables, in the model's memory.
struct ModelRotary {
  private let short: RotaryTable
  private let long: RotaryTable?
  private let originalLength: Int

  private init(_ arena: inout Arena, _ values: RotaryValues, headSize: Int) {
    short = RotaryTable(&arena, values.angles(headSize: headSize), steps: true)
    long = values.longAngles(headSize: headSize).map { RotaryTable(&arena, $0, steps: true) }
    originalLength = values.originalLength
  }

  /// Whether the long form, where there is one, is that of sequences with this position.
  func isLong(_ position: Int) -> Bool { position >= originalLength }
  func table(isLong: Bool) -> RotaryTable? { isLong ? long : short }

  // MARK: life

  /// All of a model's, filled, in a block of memory that begins with them.
  static func make(_ c: ModelConfiguration, _ allocator: Allocator) throws(Fault) -> UnsafeMutablePointer<ModelRotary> {
    let bytes = try Arena.bytes { cut(&$0, c) { _, _ in } }
    var arena = Arena(try allocator.allocate(bytes: bytes))
    return cut(&arena, c) { $0.initialize(to: $1) }
  }

  /// `put` gets each place, and what belongs there.
  private static func cut(
    _ arena: inout Arena, _ c: ModelConfiguration, _ put: (UnsafeMutablePointer<ModelRotary>, ModelRotary) -> Void
  ) -> UnsafeMutablePointer<ModelRotary> {
    let all = arena.take(ModelRotary.self, max(c.rotaryCount, 1))
    for number in 0..<c.rotaryCount {
      put(all + number, ModelRotary(&arena, c.rotaries![number], headSize: c.headSize))
    }
    return all
  }

  /// Once, before the first use, with the values it was made of; their lists are not read again.
  func fill(_ values: RotaryValues, headSize: Int) {
    short.fill(values.angles(headSize: headSize))
    if let angles = values.longAngles(headSize: headSize) { long!.fill(angles) }
  }
}

/// Heads that turn, in rows of tokens.
struct TurningHeads {
  let count: Int
  let size: Int  // floats from one head to the next
  let stride: Int  // floats from one token to the next
}

/// The turn of some heads of a layer by their tokens' positions.
struct ModelRotation {
  private let work: BlockWork
  private let rotary: ModelRotary
  private let forth: Turns
  private let back: Turns?

  /// By the short form of a table, and the long one where there is one.
  private struct Turns {
    let short: Rotation
    let long: Rotation?

    init(_ arena: inout Arena, _ rotary: Rotary, _ own: ModelRotary, in context: ContextPointer) {
      short = Rotation(&arena, rotary, own.table(isLong: false)!, in: context)
      long = own.table(isLong: true).map { Rotation(&arena, rotary, $0, in: context) }
    }
  }

  /// nil where layer n has none.
  init?(_ arena: inout Arena, _ work: BlockWork, _ heads: TurningHeads, forBackward: Bool) {
    guard let number = work.layer.rotary else { return nil }
    let input = work.input
    self.work = work
    rotary = work.model.rotaries[number]
    var turn = Rotary(
      heads: heads.count, headSize: heads.size, stride: heads.stride, positions: input.positions,
      sequenceLength: input.length, firstPosition: 0, inverse: false)
    forth = Turns(&arena, turn, rotary, in: work.context)
    turn.inverse = true
    back = forBackward ? Turns(&arena, turn, rotary, in: work.context) : nil
  }

  /// Rows from the first head's first number that turns on, in place.
  func run(_ x: UnsafeMutablePointer<Float>) throws(Fault) { try run(forth, x) }

  /// Their gradients.
  func runBack(_ x: UnsafeMutablePointer<Float>) throws(Fault) { try run(back!, x) }

  /// Sequence by sequence where there is a long form, since each has the one that it has alone.
  private func run(_ turns: Turns, _ x: UnsafeMutablePointer<Float>) throws(Fault) {
    let (input, context) = (work.input, work.context)
    guard let long = turns.long else { return try turns.short.run(x, tokens: 0..<work.tokens, in: context) }
    for sequence in 0..<input.sequences {
      let turn = rotary.isLong(input.greatestPosition(sequence)) ? long : turns.short
      try turn.run(x, tokens: sequence * input.length..<(sequence + 1) * input.length, in: context)
    }
  }
}
