import CShims

/// From a token's choices to their weights, and back. Choices that are none take no part; those that had no room
/// take part in the divisor or not, as the configuration says.
struct Weigher {
  let routing: Routing
  let chosenValues: ChosenValues
  let weighing: Weighing
  let mixer: LogitMixer?
  private let mayLeaveSlotsEmpty: Bool
  private let renormalizeAfter: Bool
  // Scratch of each thread, [lanes, choices].
  private let indices: UnsafeMutablePointer<Int32>
  private let places: UnsafeMutablePointer<Int32>
  private let gathered: UnsafeMutablePointer<Float>
  private let packed: UnsafeMutablePointer<Float>
  private let values: UnsafeMutablePointer<Float>
  private let results: UnsafeMutablePointer<Float>

  init(
    _ arena: inout Arena, _ work: RouteWork, context: ContextPointer
  ) {
    let (c, lanes) = (work.c, work.lanes)
    routing = work.routing
    mayLeaveSlotsEmpty = work.mayLeaveSlotsEmpty
    renormalizeAfter = c.renormalizeAfter
    chosenValues = ChosenValues(choice: c.choice, kernels: work.kernels)
    weighing = Weighing(c, parameters: work.parameters, kernels: work.kernels)
    mixer = LogitMixer(&arena, c, context: context)
    indices = arena.take(Int32.self, lanes, c.choices)
    places = arena.take(Int32.self, lanes, c.choices)
    gathered = arena.take(Float.self, lanes, c.choices)
    packed = arena.take(Float.self, lanes, c.choices)
    values = arena.take(Float.self, lanes, c.choices)
    results = arena.take(Float.self, lanes, c.choices)
  }

  /// A token's choices that take part, one after the other.
  struct Chosen {
    let count: Int
    let indices: UnsafePointer<Int32>
    let inputs: UnsafePointer<Float>  // see ChosenValues.source
    /// Their slots; nil where every slot takes part.
    let places: UnsafePointer<Int32>?

    func slot(_ i: Int) -> Int { places.map { Int($0[i]) } ?? i }
  }

  /// [choices] of token t: where the routing keeps them, or in the thread's memory until the next token.
  private func inputs(_ t: Int, _ lane: Int) -> UnsafeMutablePointer<Float> {
    (routing.chosen.map { $0 + t * routing.choices }) ?? gathered + lane * routing.choices
  }

  func gather(_ t: Int, logits z: UnsafePointer<Float>, probabilities p: UnsafePointer<Float>, _ lane: Int) {
    let own = routing.indices + t * routing.slots
    let (source, inputs) = (chosenValues.source(logits: z, probabilities: p), inputs(t, lane))
    for slot in 0..<routing.choices where own[slot] != .noExpert { inputs[slot] = source[Int(own[slot].chosen)] }
  }

  /// Of what `gather` found.
  func chosen(_ t: Int, _ lane: Int) -> Chosen {
    let own = routing.indices + t * routing.slots
    let inputs = inputs(t, lane)
    if !mayLeaveSlotsEmpty {
      return Chosen(count: routing.choices, indices: own, inputs: inputs, places: nil)
    }
    let start = lane * routing.choices
    var count = 0
    for slot in 0..<routing.choices where renormalizeAfter ? own[slot].isExpert : own[slot] != .noExpert {
      indices[start + count] = own[slot].chosen
      places[start + count] = Int32(truncatingIfNeeded: slot)
      packed[start + count] = inputs[slot]
      count += 1
    }
    return Chosen(count: count, indices: indices + start, inputs: packed + start, places: places + start)
  }

  /// Weights of token t's choices, for which `gather` was called where there is a gate; z [E] are its logits where a mixer
  /// needs them. False where they cannot be divided.
  func weigh(_ t: Int, _ z: UnsafePointer<Float>?, _ lane: Int) -> Bool {
    let own = routing.indices + t * routing.slots
    let weights = routing.weights + t * routing.slots
    let chosen = chosen(t, lane)
    guard chosen.places != nil else { return weigh(chosen, z, into: weights, lane) }
    weights.update(repeating: 0, count: routing.choices)
    if chosen.count == 0 { return true }
    let results = results + lane * routing.choices
    if !weigh(chosen, z, into: results, lane) { return false }
    for i in 0..<chosen.count where own[chosen.slot(i)].isExpert { weights[chosen.slot(i)] = results[i] }
    return true
  }

  private func weigh(
    _ chosen: Chosen, _ z: UnsafePointer<Float>?, into weights: UnsafeMutablePointer<Float>, _ lane: Int
  ) -> Bool {
    let values = self.values(chosen, z, lane)
    return weighing.weigh(values, chosen.indices, chosen.count, into: weights)
  }

  private func values(
    _ chosen: Chosen, _ z: UnsafePointer<Float>?, _ lane: Int
  ) -> UnsafeMutablePointer<Float> {
    let values = values + lane * routing.choices
    if let mixer, let z {
      mixer.fill(values, z, chosen.indices, chosen.count, lane)
    } else {
      chosenValues.fill(values, chosen.inputs, chosen.count)
    }
    return values
  }

  // MARK: backward

  /// dw [slots] of a token's weights becomes dv [count] of its chosen values, in memory of the thread's.
  func backward(
    _ chosen: Chosen, _ z: UnsafePointer<Float>?, dw: UnsafePointer<Float>,
    dFactors: UnsafeMutablePointer<Float>?, _ lane: Int
  ) -> (v: UnsafePointer<Float>, dv: UnsafeMutablePointer<Float>) {
    let v = values(chosen, z, lane)
    let dv = results + lane * routing.choices
    for i in 0..<chosen.count { dv[i] = dw[chosen.slot(i)] }
    weighing.backward(v, dv, chosen.indices, chosen.count, into: dv) { i, share in
      dFactors?[chosen.slot(i)] = share
    }
    return (UnsafePointer(v), dv)
  }
}
