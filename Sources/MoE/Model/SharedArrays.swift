/// What the ffn's of all layers are given beside x.
struct SharedArrays {
  let zeros: UnsafeMutablePointer<Int32>  // [T] the dense ffn's choice
  let ones: UnsafeMutablePointer<Float>  // [T] its weight
  let longIds: UnsafeMutablePointer<Int64>?  // [T] tokens as a hash router takes them
  private let notes: UnsafeMutablePointer<Float>?  // [MoE layers, notedFloats] where a call has something to note
  private let notedFloats: Int
  private let ids: UnsafePointer<Int32>?
  private let dense: Int  // T, or 0
  private let tokens: Int

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput) {
    let c = model.configuration
    tokens = input.tokens
    dense = c.hasFeedForward && model.hasDenseLayers ? tokens : 0
    zeros = arena.take(Int32.self, dense)
    ones = arena.take(Float.self, dense)
    longIds = model.hashesTokens ? arena.take(Int64.self, tokens) : nil
    let noted = input.training ? model.moeConfiguration.flatMap { $0.takesNotes ? $0 : nil } : nil
    notedFloats = noted?.notedFloats ?? 0
    notes = noted == nil ? nil : arena.take(Float.self, model.countMoE, notedFloats)
    ids = input.ids
  }

  /// What the MoE layer of this number among them has to note.
  func notes(_ place: Int) -> UnsafeMutablePointer<Float>? { notes.map { $0 + place * notedFloats } }

  func fill() {
    zeros.update(repeating: 0, count: dense)
    ones.update(repeating: 1, count: dense)
    if let longIds, let ids { for t in 0..<tokens { longIds[t] = Int64(ids[t]) } }
  }
}
