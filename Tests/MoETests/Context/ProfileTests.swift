import CMoE
import Testing

@Suite("Profile")
struct ProfileTests {
  private func phase(_ layer: Layer, _ phase: moe_phase, backward: Int32 = 0) throws -> moe_phase_time {
    var time = moe_phase_time()
    moe_phase_time_init(&time, MemoryLayout<moe_phase_time>.size)
    try check(moe_profile_phase(layer.context, phase.int32, backward, &time))
    return time
  }

  @Test func sumsAndEventsOfOneCall() throws {
    let layer = try Layer()
    let x = noise(9 * layer.hidden)
    try check(moe_profile_start(layer.context, 2))
    _ = try layer.forward(x)
    try check(moe_profile_stop(layer.context))
    _ = try layer.forward(x)  // not measured

    #expect(try phase(layer, MOE_PHASE_ROUTE).calls == 1)
    #expect(try phase(layer, MOE_PHASE_COMBINE).calls == 1)
    #expect(try phase(layer, MOE_PHASE_ROUTE, backward: 1).calls == 0)
    let first = try phase(layer, MOE_PHASE_GATE_UP)
    #expect(first.flops == Double(2 * 9 * layer.topK * layer.hidden * Int(layer.config.intermediate_size)))
    #expect(first.seconds > 0)

    var events = [moe_profile_event](repeating: moe_profile_event(), count: 3)
    var count: Int64 = 0
    try check(moe_profile_events(layer.context, 0, &events, 3, &count))
    #expect(count == 2)  // as many as there was room for
    #expect(events[0].phase == MOE_PHASE_ROUTE.int32 && events[1].phase == MOE_PHASE_DISPATCH.int32)
    #expect(events[1].start >= events[0].start + events[0].seconds)
    try check(moe_profile_events(layer.context, 5, nil, 0, &count))
    #expect(count == 0)
  }

  @Test func refusals() throws {
    let layer = try Layer()
    var time = moe_phase_time()
    moe_phase_time_init(&time, MemoryLayout<moe_phase_time>.size)
    var count: Int64 = 0
    refused("context", moe_profile_start(nil, 0))
    refused("max_events", moe_profile_start(layer.context, -1))
    refused("context", moe_profile_stop(nil))
    refused("phase", moe_profile_phase(layer.context, 99, 0, &time))
    refused("backward", moe_profile_phase(layer.context, 0, 2, &time))
    refused("time", moe_profile_phase(layer.context, 0, 0, nil))
    refused("first", moe_profile_events(layer.context, -1, nil, 0, &count))
    refused("count", moe_profile_events(layer.context, 0, nil, 0, nil))
    #expect(String(cString: moe_phase_name(MOE_PHASE_GATE_UP.int32)) == "gate/up")
    #expect(String(cString: moe_phase_name(-1)) == "unknown phase")
  }
}
