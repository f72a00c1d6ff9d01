import CShims

/// One of a model's rotary tables, in the model's memory.
struct ModelRotary {
  private(set) var values: RotaryValues
  let table: RotaryTable

  init(_ arena: inout Arena, _ values: RotaryValues, headSize: Int) {
    self.values = values
    table = RotaryTable(&arena, headSize: headSize, steps: true)
  }

  /// What its values say of frequencies is in the tables by now.
  private var withoutLists: ModelRotary {
    var own = self
    own.values.forgetLists()
    return own
  }

  /// All of a model's, filled, in a block of memory that begins with them.
  static func make(_ c: ModelConfiguration, _ allocator: Allocator) throws(Fault) -> UnsafeMutablePointer<ModelRotary> {
    let bytes = try Arena.bytes { cut(&$0, c) { _, _ in } }
    var arena = Arena(try allocator.allocate(bytes: bytes))
    return cut(&arena, c) {
      $1.table.fill(theta: $1.values.theta)
      $0.initialize(to: $1.withoutLists)
    }
  }

  private static func cut(
    _ arena: inout Arena, _ c: ModelConfiguration, _ put: (UnsafeMutablePointer<ModelRotary>, ModelRotary) -> Void
  ) -> UnsafeMutablePointer<ModelRotary> {
    let all = arena.take(ModelRotary.self, max(c.rotaryCount, 1))
    for number in 0..<c.rotaryCount {
      put(all + number, ModelRotary(&arena, c.rotaries![number], headSize: c.headSize))
    }
    return all
  }
}

/// The turn of a layer's queries and keys, which stand side by side, by their positions.
struct ModelRotation {
  private let context: ContextPointer
  private let tokens: Int
  private let forth: Rotation
  private let back: Rotation?

  /// nil where layer n has none.
  init?(_ arena: inout Arena, _ work: BlockWork, forBackward: Bool) {
    guard let number = work.layer.rotary else { return nil }
    let (c, input, own) = (work.c, work.input, work.model.rotaries[number])
    context = work.context
    tokens = work.tokens
    var rotary = Rotary(
      heads: c.heads + c.keyHeads, headSize: c.headSize, stride: c.projected, positions: input.positions,
      sequenceLength: input.length, firstPosition: 0, inverse: false)
    forth = Rotation(&arena, rotary, own.table, in: context)
    rotary.inverse = true
    back = forBackward ? Rotation(&arena, rotary, own.table, in: context) : nil
  }

  /// Rows [T, projected], in place.
  func run(_ x: UnsafeMutablePointer<Float>) throws(Fault) { try forth.run(x, tokens: tokens, in: context) }

  /// Their gradients.
  func runBack(_ x: UnsafeMutablePointer<Float>) throws(Fault) { try back!.run(x, tokens: tokens, in: context) }
}
