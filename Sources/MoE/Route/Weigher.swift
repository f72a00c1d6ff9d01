import CShims

/// From a token's choices to their weights, and back. Choices that are none take no part; those that had no room
/// take part in the divisor or not, as the configuration says.
struct Weigher {
  let routing: Routing
  let chosenValues: ChosenValues
  let weighing: Weighing
  let mixer: SparseMixer?
  private let mayLeaveSlotsEmpty: Bool
  private let renormalizeAfter: Bool
  // Scratch of each thread, [lanes, choices].
  private let indices: UnsafeMutablePointer<Int32>
  private let places: UnsafeMutablePointer<Int32>
  private let logits: UnsafeMutablePointer<Float>
  private let values: UnsafeMutablePointer<Float>
  private let results: UnsafeMutablePointer<Float>

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters, routing: Routing,
    mayLeaveSlotsEmpty: Bool
  ) {
    self.routing = routing
    self.mayLeaveSlotsEmpty = mayLeaveSlotsEmpty
    renormalizeAfter = c.renormalizeAfter
    chosenValues = ChosenValues(choice: c.choice, kernels: context.kernels)
    weighing = Weighing(c, parameters: parameters, kernels: context.kernels)
    mixer = SparseMixer(&arena, c, context: context)
    indices = arena.take(Int32.self, context.lanes, c.choices)
    places = arena.take(Int32.self, context.lanes, c.choices)
    logits = arena.take(Float.self, context.lanes, c.choices)
    values = arena.take(Float.self, context.lanes, c.choices)
    results = arena.take(Float.self, context.lanes, c.choices)
  }

  /// A token's choices that take part, one after the other.
  struct Chosen {
    let count: Int
    let indices: UnsafePointer<Int32>
    let logits: UnsafePointer<Float>
    /// Their slots; nil where every slot takes part.
    let places: UnsafePointer<Int32>?

    func slot(_ i: Int) -> Int { places.map { Int($0[i]) } ?? i }
  }

  func chosen(_ t: Int, _ lane: Int) -> Chosen {
    let own = routing.indices + t * routing.slots
    let ownLogits = routing.chosenLogits + t * routing.choices
    if !mayLeaveSlotsEmpty {
      return Chosen(count: routing.choices, indices: own, logits: ownLogits, places: nil)
    }
    let start = lane * routing.choices
    var count = 0
    for slot in 0..<routing.choices where renormalizeAfter ? own[slot].isExpert : own[slot] != .noExpert {
      indices[start + count] = own[slot].chosen
      places[start + count] = Int32(truncatingIfNeeded: slot)
      logits[start + count] = ownLogits[slot]
      count += 1
    }
    return Chosen(count: count, indices: indices + start, logits: logits + start, places: places + start)
  }

  /// Weights of token t's choices; z [E] are its logits, nil without a gate. False where they cannot be divided.
  func weigh(_ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int) -> Bool {
    let own = routing.indices + t * routing.slots
    let weights = routing.weights + t * routing.slots
    if let z {
      let logits = routing.chosenLogits + t * routing.choices
      for slot in 0..<routing.choices where own[slot] != .noExpert { logits[slot] = z[Int(own[slot].chosen)] }
    }
    let chosen = chosen(t, lane)
    guard chosen.places != nil else { return weigh(chosen, t, z, into: weights, lane) }
    weights.update(repeating: 0, count: routing.choices)
    if chosen.count == 0 { return true }
    let results = results + lane * routing.choices
    if !weigh(chosen, t, z, into: results, lane) { return false }
    for i in 0..<chosen.count where own[chosen.slot(i)].isExpert { weights[chosen.slot(i)] = results[i] }
    return true
  }

  private func weigh(
    _ chosen: Chosen, _ t: Int, _ z: UnsafePointer<Float>?, into weights: UnsafeMutablePointer<Float>, _ lane: Int
  ) -> Bool {
    let values = self.values(chosen, t, z, lane)
    return weighing.weigh(values, chosen.indices, chosen.count, into: weights)
  }

  private func values(
    _ chosen: Chosen, _ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int
  ) -> UnsafeMutablePointer<Float> {
    let values = values + lane * routing.choices
    if let mixer, let z {
      mixer.fill(values, z, chosen.indices, chosen.count, lane)
    } else {
      chosenValues.fill(
        values, logits: chosen.logits, probabilities: routing.probabilities + t * weighing.experts,
        indices: chosen.indices, chosen.count)
    }
    return values
  }

  // MARK: backward

  /// dw [slots] of token t's weights becomes dv [count] of its chosen values, in memory of the thread's.
  func backward(
    _ chosen: Chosen, _ t: Int, _ z: UnsafePointer<Float>?, dw: UnsafePointer<Float>,
    dFactors: UnsafeMutablePointer<Float>?, _ lane: Int
  ) -> (v: UnsafePointer<Float>, dv: UnsafeMutablePointer<Float>) {
    let v = values(chosen, t, z, lane)
    let dv = results + lane * routing.choices
    for i in 0..<chosen.count { dv[i] = dw[chosen.slot(i)] }
    weighing.backward(v, dv, chosen.indices, chosen.count, into: dv) { i, share in
      dFactors?[chosen.slot(i)] = share
    }
    return (UnsafePointer(v), dv)
  }
}
