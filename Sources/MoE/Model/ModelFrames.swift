import CShims

// What a model's call needs beside its layers. A frame stands in front of the layers' memory; what comes after the last
// layer uses that memory again.

struct ForwardFrame {
  let shared: SharedArrays
  let pooled: PooledArrays?
  let reports: UnsafeMutablePointer<Report>  // [N]
  let positions: UnsafeMutablePointer<Int64>?  // [T] where they are counted
  private let tape: TapeFrame?
  private let first: UnsafePointer<Float>?  // [T,H] the caller's, where there are neither embeddings nor padding
  private let stream: UnsafeMutablePointer<Float>  // [T,H] without a tape: each layer's y takes the place of its x

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput, tape: TapeFrame?) {
    self.tape = tape
    shared = SharedArrays(&arena, model, input)
    pooled = PooledArrays(&arena, model)
    reports = arena.take(Report.self, model.configuration.layers)
    positions = input.countsPositions(model.configuration) ? arena.take(Int64.self, input.tokens) : nil
    first = model.readsItsOwn(input) ? nil : input.hidden
    stream = arena.take(Float.self, tape == nil ? input.tokens : 0, model.configuration.hidden)
  }

  /// What layer n reads; x(N) is what the last one writes.
  func x(_ n: Int) -> UnsafePointer<Float> {
    tape?.x(n) ?? (n == 0 ? first : nil) ?? UnsafePointer(stream)
  }
  /// What layer n writes, or, n = -1, the embedding.
  func y(_ n: Int) -> UnsafeMutablePointer<Float> { UnsafeMutablePointer(mutating: x(n + 1)) }
}

// MARK: backward

struct BackwardFrame {
  let d: UnsafeMutablePointer<Float>  // [T,H] the gradient with respect to the residual stream
  let dMeanProbability: UnsafeMutablePointer<Float>  // [E] of one layer
  let positions: UnsafeMutablePointer<Int64>?  // [T] where they are counted
  let step: ModelStepMemory

  init(_ arena: inout Arena, _ model: Model, _ input: ModelInput) {
    step = ModelStepMemory(&arena, model)
    d = arena.take(Float.self, input.tokens, model.configuration.hidden)
    dMeanProbability = arena.take(Float.self, model.pooledExperts)
    positions = input.countsPositions(model.configuration) ? arena.take(Int64.self, input.tokens) : nil
  }
}

extension Model {
  /// Whether layer 0 reads what the model wrote: embeddings, or a copy of hidden states whose padding may be cleared.
  func readsItsOwn(_ input: ModelInput) -> Bool { configuration.vocabulary > 0 || input.validMask != nil }
}
