import CMoE
import Foundation
import Testing

@Suite("Learning rates")
struct ScheduleTests {
  private func schedule(
    _ kind: moe_schedule_kind, _ change: (inout moe_schedule) -> Void = { _ in }
  ) -> moe_schedule {
    var schedule = moe_schedule()
    moe_schedule_init(&schedule, MemoryLayout<moe_schedule>.size)
    schedule.kind = Int32(kind.rawValue)
    schedule.learning_rate = 2
    change(&schedule)
    return schedule
  }

  private func rate(_ schedule: moe_schedule, _ step: Int64) throws -> Double {
    var schedule = schedule
    var rate = -1.0
    try check(moe_learning_rate(&schedule, step, &rate))
    return rate
  }

  @Test func theDefaultsAreConstant() throws {
    var schedule = moe_schedule()
    moe_schedule_init(&schedule, MemoryLayout<moe_schedule>.size)
    #expect(schedule.learning_rate == 1e-3 && schedule.warmup_steps == 0 && schedule.final_fraction == 0)
    #expect(schedule.pct_start == 0.3 && schedule.div_factor == 25 && schedule.final_div_factor == 1e4)
    for step: Int64 in [0, 1, .max] { #expect(try rate(schedule, step) == 1e-3) }
  }

  @Test(arguments: [MOE_SCHEDULE_CONSTANT, MOE_SCHEDULE_LINEAR, MOE_SCHEDULE_COSINE])
  func warmUpAndDecay(kind: moe_schedule_kind) throws {
    let schedule = schedule(kind) {
      $0.warmup_steps = 4
      $0.total_steps = 12
      $0.final_fraction = 0.25
    }
    for step: Int64 in 0..<4 { #expect(try rate(schedule, step) == Double(step) / 2) }
    #expect(try rate(schedule, 4) == 2)
    for (step, way) in [(6, 0.25), (8, 0.5), (11, 0.875), (12, 1), (13, 1), (.max, 1)] as [(Int64, Double)] {
      let left =
        switch kind {
        case MOE_SCHEDULE_CONSTANT: 1.0
        case MOE_SCHEDULE_LINEAR: 1 - way
        default: (1 + cos(.pi * way)) / 2
        }
      #expect(abs(try rate(schedule, step) - (0.5 + 1.5 * left)) < 1e-15, "step \(step)")
    }
  }

  @Test(arguments: [MOE_SCHEDULE_ONE_CYCLE, MOE_SCHEDULE_ONE_CYCLE_LINEAR])
  func oneCycle(kind: moe_schedule_kind) throws {
    let schedule = schedule(kind) {
      $0.total_steps = 21
      $0.pct_start = 11.0 / 21
      $0.div_factor = 4
      $0.final_div_factor = 5
    }
    let cosine = kind == MOE_SCHEDULE_ONE_CYCLE
    func left(_ way: Double) -> Double { cosine ? (1 + cos(.pi * way)) / 2 : 1 - way }
    for step: Int64 in 0...25 {
      let t = Double(min(step, 20))
      let expected = t <= 10 ? 2 - 1.5 * left(t / 10) : 0.1 + 1.9 * left((t - 10) / 10)
      #expect(abs(try rate(schedule, step) - expected) < 1e-14, "step \(step)")
    }
  }

  @Test func fewSteps() throws {
    for kind in [MOE_SCHEDULE_LINEAR, MOE_SCHEDULE_COSINE] {
      let schedule = schedule(kind) {
        $0.warmup_steps = 1
        $0.total_steps = 1
      }
      #expect(try [rate(schedule, 0), rate(schedule, 1), rate(schedule, 2)] == [0, 0, 0])
    }
    for (pctStart, expected) in [(0.0, 2e-0 / 25 / 1e4), (1.0, 2)] {
      let schedule = schedule(MOE_SCHEDULE_ONE_CYCLE) {
        $0.total_steps = 1
        $0.pct_start = pctStart
      }
      #expect(try abs(rate(schedule, 0) - expected) < 1e-15)
    }
  }

  @Test(arguments: [MOE_SCHEDULE_ONE_CYCLE, MOE_SCHEDULE_ONE_CYCLE_LINEAR])
  func momentumGoesTheOtherWay(kind: moe_schedule_kind) throws {
    var schedule = schedule(kind) { ($0.total_steps, $0.pct_start) = (21, 11.0 / 21) }
    for (step, expected) in [(0, 0.95), (5, 0.9), (10, 0.85), (15, 0.9), (20, 0.95), (1000, 0.95)] as [(Int64, Double)]
    {
      var momentum = -1.0
      try check(moe_momentum(&schedule, step, &momentum))
      #expect(abs(momentum - expected) < 1e-15, "step \(step)")
    }
    var momentum = -7.0
    for value in [1, -0.1, Double.nan] {
      schedule.base_momentum = value
      refused("base_momentum", moe_momentum(&schedule, 0, &momentum))
      (schedule.base_momentum, schedule.max_momentum) = (0.85, value)
      refused("max_momentum", moe_momentum(&schedule, 0, &momentum))
      schedule.max_momentum = 0.95
    }
    refused("step", moe_momentum(&schedule, -1, &momentum))
    refused("out", moe_momentum(&schedule, 0, nil))
    refused("schedule", moe_momentum(nil, 0, &momentum))
    schedule.kind = Int32(MOE_SCHEDULE_COSINE.rawValue)
    refused("kind", moe_momentum(&schedule, 0, &momentum))
    #expect(momentum == -7)
  }

  @Test func refusals() throws {
    func learningRate(_ kind: moe_schedule_kind, _ change: (inout moe_schedule) -> Void) -> moe_status {
      var schedule = schedule(kind) {
        $0.total_steps = 10
        change(&$0)
      }
      var rate = -7.0
      let status = moe_learning_rate(&schedule, 3, &rate)
      #expect(rate == -7)
      return status
    }
    for size in wrongStructSizes { refused("struct_size", learningRate(MOE_SCHEDULE_LINEAR) { $0.struct_size = size }) }
    for kind: Int32 in [-1, 5, .max] { refused("kind", learningRate(MOE_SCHEDULE_LINEAR) { $0.kind = kind }) }
    refused("reserved", learningRate(MOE_SCHEDULE_LINEAR) { $0.reserved = 1 })
    refused("warmup_steps", learningRate(MOE_SCHEDULE_LINEAR) { $0.warmup_steps = -1 })
    refused("warmup_steps", learningRate(MOE_SCHEDULE_LINEAR) { $0.warmup_steps = 11 })
    refused("warmup_steps", learningRate(MOE_SCHEDULE_ONE_CYCLE) { $0.warmup_steps = 1 })
    refused("total_steps", learningRate(MOE_SCHEDULE_COSINE) { $0.total_steps = 0 })
    for value: Double in [.nan, -0.1, .infinity] {
      refused("learning_rate", learningRate(MOE_SCHEDULE_CONSTANT) { $0.learning_rate = value })
      refused("final_fraction", learningRate(MOE_SCHEDULE_LINEAR) { $0.final_fraction = value })
      refused("pct_start", learningRate(MOE_SCHEDULE_ONE_CYCLE) { $0.pct_start = value })
      refused("div_factor", learningRate(MOE_SCHEDULE_ONE_CYCLE) { $0.div_factor = value })
      refused("final_div_factor", learningRate(MOE_SCHEDULE_ONE_CYCLE_LINEAR) { $0.final_div_factor = value })
    }
    var good = schedule(MOE_SCHEDULE_CONSTANT)
    var rate = 0.0
    refused("schedule", moe_learning_rate(nil, 0, &rate))
    refused("out", moe_learning_rate(&good, 0, nil))
    refused("step", moe_learning_rate(&good, -1, &rate))
    #expect(withGrown(good, tail: 0) { moe_learning_rate($0, 0, &rate) } == MOE_OK)
    refused("struct_size", withGrown(good, tail: 1) { moe_learning_rate($0, 0, &rate) })
  }
}
