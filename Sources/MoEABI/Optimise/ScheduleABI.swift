import CMoE
import MoE

@implementation @_cdecl("moe_learning_rate")
public func moe_learning_rate(
  _ schedule: UnsafePointer<moe_schedule>?, _ step: Int64, _ out: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let schedule = try checked(try read(schedule, "schedule"))
    try require(Int(step), "step", from: 0, to: .max)
    let out = try required(out, "out")
    out.pointee = schedule.learningRate(at: Int(step))
  }
}

@implementation @_cdecl("moe_momentum")
public func moe_momentum(
  _ schedule: UnsafePointer<moe_schedule>?, _ step: Int64, _ out: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let given = try read(schedule, "schedule")
    let schedule = try checked(given)
    if !schedule.kind.isOneCycle {
      throw .invalid("kind = \(Int(given.kind)) leaves momentum alone: MOE_SCHEDULE_ONE_CYCLE and its like cycle it")
    }
    try require(Int(step), "step", from: 0, to: .max)
    let out = try required(out, "out")
    out.pointee = schedule.momentum(at: Int(step))
  }
}

private func checked(_ c: moe_schedule) throws(Fault) -> Schedule {
  let kind: Schedule.Kind = try named(c.kind)
  if kind != .constant {
    try require(Int(c.total_steps), "schedule.total_steps", from: 1, to: .max)
    if c.warmup_steps > c.total_steps {
      throw .invalid("warmup_steps = \(Int(c.warmup_steps)) exceeds total_steps = \(Int(c.total_steps))")
    }
  }
  if kind.isOneCycle {
    if c.warmup_steps != 0 {
      throw .invalid("warmup_steps = \(Int(c.warmup_steps)): a cycle rises for pct_start of its steps instead")
    }
    try requireDivisor(c.div_factor, "div_factor")
    try requireDivisor(c.final_div_factor, "final_div_factor")
    let (first, last) = (c.learning_rate / c.div_factor, c.learning_rate / c.div_factor / c.final_div_factor)
    guard first.isFinite && last.isFinite else {
      throw .invalid(
        "learning_rate = \(c.learning_rate) divided by div_factor = \(c.div_factor) and final_div_factor = \(c.final_div_factor) exceeds float64; take larger divisors"
      )
    }
  }
  return Schedule(
    kind: kind, peak: c.learning_rate, warmupSteps: Int(c.warmup_steps), totalSteps: Int(c.total_steps),
    finalFraction: c.final_fraction, pctStart: c.pct_start, divFactor: c.div_factor, finalDivFactor: c.final_div_factor,
    baseMomentum: c.base_momentum, maxMomentum: c.max_momentum)
}

private func requireDivisor(_ value: Double, _ name: StaticString) throws(Fault) {
  guard value > 0 && value.isFinite else { throw .invalid("\(name) = \(value) is not a number above 0") }
}
