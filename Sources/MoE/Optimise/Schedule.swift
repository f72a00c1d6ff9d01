/// The learning rate as a function of the step; the formulas stand in include/moe.h. Nothing but IEEE operations in double,
/// for the cosine too, so that rates have the same bits everywhere, which a libm's cosine has not.
public struct Schedule {
  /// Numbers as in moe_schedule_kind.
  public enum Kind: Int32 {
    case constant = 0
    case linear = 1
    case cosine = 2
    case oneCycle = 3
    case oneCycleLinear = 4

    public var isOneCycle: Bool { self == .oneCycle || self == .oneCycleLinear }
  }

  public let kind: Kind
  let peak: Double
  let warmupSteps: Double
  let totalSteps: Double
  let finalFraction: Double
  let rise: Double  // share of the steps, of one cycle
  let initial: Double  // the rate that one cycle begins with, and
  let last: Double  // the one it ends with
  let baseMomentum: Double  // of one cycle at the top, and
  let maxMomentum: Double  // at both ends

  public init(
    kind: Kind, peak: Double, warmupSteps: Int, totalSteps: Int, finalFraction: Double, pctStart: Double,
    divFactor: Double, finalDivFactor: Double, baseMomentum: Double, maxMomentum: Double
  ) {
    self.kind = kind
    self.peak = peak
    self.warmupSteps = Double(warmupSteps)
    self.totalSteps = Double(totalSteps)
    self.finalFraction = finalFraction
    rise = pctStart
    initial = peak / divFactor
    last = initial / finalDivFactor
    (self.baseMomentum, self.maxMomentum) = (baseMomentum, maxMomentum)
  }

  /// Of the step after `step` others.
  public func learningRate(at step: Int) -> Double {
    let step = Double(step)
    if kind.isOneCycle { return oneCycle(at: step, from: initial, top: peak, to: last) }
    if step < warmupSteps { return peak * (step / warmupSteps) }
    if kind == .constant { return peak }
    // A warm-up of all steps leaves none to decay in.
    let way = step < totalSteps ? (step - warmupSteps) / (totalSteps - warmupSteps) : 1
    let left = kind == .linear ? 1 - way : (1 + cosine(halfTurns: way)) / 2
    return peak * (finalFraction + (1 - finalFraction) * left)
  }

  /// Of the step after `step` others, of one cycle.
  public func momentum(at step: Int) -> Double {
    oneCycle(at: Double(step), from: maxMomentum, top: baseMomentum, to: maxMomentum)
  }

  private func oneCycle(at step: Double, from first: Double, top: Double, to last: Double) -> Double {
    let (step, middle) = (min(step, totalSteps - 1), rise * totalSteps - 1)
    if step <= middle { return between(first, top, middle == 0 ? 1 : step / middle) }
    return between(top, last, (step - middle) / (totalSteps - 1 - middle))
  }

  private func between(_ from: Double, _ to: Double, _ way: Double) -> Double {
    kind == .oneCycleLinear ? (to - from) * way + from : to + (from - to) / 2 * (1 + cosine(halfTurns: way))
  }
}

/// cos(pi x) for x in [0, 1], within 2e-16.
private func cosine(halfTurns x: Double) -> Double {
  // Distances from the nearest of 0, 1/2 and 1, which are exact.
  if x > 0.75 { return -series(.pi * (1 - x), upTo: 18) }
  if x <= 0.25 { return series(.pi * x, upTo: 18) }
  let t = .pi * (0.5 - x)
  return t * series(t, upTo: 19)
}

/// 1 - t^2 / (a (a + 1)) + t^4 / (a (a + 1) (a + 2) (a + 3)) - ..., a = 1 for an even `last` factor, 2 for an odd one:
/// cos t, and sin t / t, from below up to pi / 4.
private func series(_ t: Double, upTo last: Double) -> Double {
  let square = t * t
  var sum = 1.0
  var factor = last
  while factor >= 2 {
    sum = 1 - sum * square / (factor * (factor - 1))
    factor -= 2
  }
  return sum
}
