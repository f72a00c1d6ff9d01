import CShims

// What lies between the gradient of the experts' inner activations and those of their pre-activations, in one pass over a chunk of a
// tile: the activations once more, their values and slopes together, what the routing weights' gradient and sums over tokens want of
// them. Two rows at a time, since sums over tokens read bfloat16 in pairs of rows.

/// Some values of a row: the activation, and the gradients of what it was made of.
struct InnerValues {
  var a: V
  var dgate: V
  var dup: V
}

/// From the gradient d of an activation, with the routing weight, to those of its pre-activations.
protocol InnerFunction {
  static var isGated: Bool { get }
  func values(_ place: Int, _ d: V) -> InnerValues
}

struct MLPInner<A: Activation, E: ChunkElements>: InnerFunction {
  let activation: A
  let up: UnsafeRawPointer
  static var isGated: Bool { false }
  @_transparent func values(_ place: Int, _ d: V) -> InnerValues {
    let v = E.load(up, place)
    return InnerValues(a: activation.value(v), dgate: d, dup: d * activation.slope(v))
  }
}

struct GatedInner<A: Activation, C: Clamps, E: ChunkElements>: InnerFunction {
  let activation: A
  let clamps: C
  let gate: UnsafeRawPointer
  let up: UnsafeRawPointer
  static var isGated: Bool { true }
  @_transparent func values(_ place: Int, _ d: V) -> InnerValues {
    let (g, u) = (E.load(gate, place), E.load(up, place))
    let clamped = clamps.gate(g)
    let (value, other) = (activation.value(clamped), clamps.up(u))
    return InnerValues(
      a: value * other, dgate: clamps.gradient(d * other * activation.slope(clamped), ofGate: g),
      dup: clamps.gradient(d * value, ofUp: u))
  }
}

struct InnerGradientLoop<E: ChunkElements>: Loop {
  let call: UnsafePointer<moei_inner_gradient>

  @inline(never) func run<A: Activation, C: Clamps>(_ activation: A, _ clamps: C) {
    let up = call.pointee.up
    if let gate = call.pointee.gate {
      run(GatedInner<A, C, E>(activation: activation, clamps: clamps, gate: gate, up: up))
    } else {
      run(MLPInner<A, E>(activation: activation, up: up))
    }
  }

  @inline(__always) private func run<F: InnerFunction>(_ function: F) {
    let (rows, slopes, stride) = (Int(call.pointee.rows), call.pointee.slopes, Int(call.pointee.slopes_stride))
    var r = 0
    while r < rows {
      // The last row of an odd number is its own partner, whose values count as 0.
      let isPair = E.pairsRows && r &+ 1 < rows
      let other = isPair ? r &+ 1 : r
      // <da, a> as `dot` has it: lane by lane, then the tree.
      var (upper, lower) = (V(repeating: 0), V(repeating: 0))
      var column = 0
      while column < 32 {
        let first = values(r, column, function, &upper)
        if E.pairsRows {
          let second = values(other, column, function, &lower)
          storeBoth(first, second, isPair, r, column, isGated: F.isGated)
        } else {
          E.store(first.a, call.pointee.a, r &* 32 &+ column)
          store(first, r, column, isGated: F.isGated)
        }
        column &+= 16
      }
      slopes[r &* stride] = sum(upper)
      if isPair { slopes[other &* stride] = sum(lower) }
      r &+= E.pairsRows ? 2 : 1
    }
  }

  /// Rounded values of row r from a column on; `lanes` of its <da, a>.
  @_transparent private func values<F: InnerFunction>(
    _ r: Int, _ column: Int, _ function: F, _ lanes: inout V
  ) -> InnerValues {
    let place = r &* 32 &+ column
    let da = load(call.pointee.da + place)
    var d = da
    if let weights = call.pointee.weights { d *= weights[r] }
    if let kept = call.pointee.kept { d = dropped(d, kept + place) }
    var values = function.values(place, d)
    if let kept = call.pointee.kept { values.a = dropped(values.a, kept + place) }
    values.a = E.rounded(values.a)
    lanes = column == 0 ? da * values.a : fma(da, values.a, lanes)
    values.dgate = E.rounded(values.dgate)
    values.dup = E.rounded(values.dup)
    return values
  }

  @_transparent private func dropped(_ v: V, _ kept: Source) -> V {
    let factor = load(kept)
    return (v * factor).replacing(with: 0, where: factor .== 0)
  }

  /// The gradients of one row.
  @_transparent private func store(_ values: InnerValues, _ r: Int, _ column: Int, isGated: Bool) {
    E.store(values.dup, call.pointee.dup, r &* 32 &+ column)
    if isGated { E.store(values.dgate, call.pointee.dgate.unsafelyUnwrapped, r &* 32 &+ column) }
  }

  /// Two rows in both forms, or the first alone.
  @_transparent private func storeBoth(
    _ first: InnerValues, _ second: InnerValues, _ isPair: Bool, _ r: Int, _ column: Int, isGated: Bool
  ) {
    let zero = V(repeating: 0)
    E.storePair(first.a, isPair ? second.a : zero, call.pointee.a, r, column)
    E.storePair(first.dup, isPair ? second.dup : zero, call.pointee.dup_tokens, r, column)
    if isGated {
      E.storePair(
        first.dgate, isPair ? second.dgate : zero, call.pointee.dgate_tokens.unsafelyUnwrapped, r, column)
    }
    store(first, r, column, isGated: isGated)
    if isPair { store(second, r &+ 1, column, isGated: isGated) }
  }
}

@inline(never) func innerGradient(_ call: UnsafePointer<moei_inner_gradient>) {
  runGated(InnerGradientLoop<FloatChunk>(call: call), with: call.pointee.activation)
}

@inline(never) func innerGradientBF16(_ call: UnsafePointer<moei_inner_gradient>) {
  runGated(InnerGradientLoop<HalfChunk>(call: call), with: call.pointee.activation)
}
