import CMoE
import MoE

@implementation @_cdecl("moe_phase_name")
public func moe_phase_name(_ phase: Int32) -> UnsafePointer<CChar>? {
  Phase.name(phase)
}

@implementation @_cdecl("moe_profile_start")
public func moe_profile_start(_ context: OpaquePointer?, _ max_events: Int64) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try require(Int(max_events), "max_events", from: 0, to: Int(Int32.max))
    try context.startProfile(events: Int(max_events))
  }
}

@implementation @_cdecl("moe_profile_stop")
public func moe_profile_stop(_ context: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in try handle(context, "context", as: Context.self).stopProfile() }
}

@implementation @_cdecl("moe_profile_phase")
public func moe_profile_phase(
  _ context: OpaquePointer?, _ phase: Int32, _ backward: Int32, _ time: UnsafeMutablePointer<moe_phase_time>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    guard let phase = Phase(rawValue: phase) else { throw .invalid("phase = \(Int(phase)) is not a moe_phase") }
    let backward = try flag(backward, "backward")
    let time = try required(time, "time")
    let size = try requireSize(UnsafePointer(time), "time")
    let sums = context.profiled(phase, backward: backward)
    time.pointee = moe_phase_time(
      struct_size: size, calls: sums.calls, seconds: Double(sums.nanoseconds) * 1e-9, flops: Double(sums.flops),
      bytes: Double(sums.bytes))
  }
}

@implementation @_cdecl("moe_profile_events")
public func moe_profile_events(
  _ context: OpaquePointer?, _ first: Int64, _ events: UnsafeMutablePointer<moe_profile_event>?, _ capacity: Int64,
  _ count: UnsafeMutablePointer<Int64>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try require(Int(first), "first", from: 0, to: Int(Int32.max))
    try require(Int(capacity), "capacity", from: 0, to: Int(Int32.max))
    var operands = Operands()
    let events = try operands.writes(optional: events, Int(capacity), "events")
    let count = try operands.writes(count, 1, "count")
    let there = max(0, context.profileEventCount - Int(first))
    if let events {
      for index in 0..<min(there, Int(capacity)) {
        let event = context.profileEvent(Int(first) + index)
        events[index] = moe_profile_event(
          phase: event.phase, backward: event.backward, thread: event.thread, start: Double(event.start) * 1e-9,
          seconds: Double(event.nanoseconds) * 1e-9, flops: Double(event.flops), bytes: Double(event.bytes))
      }
    }
    count.pointee = Int64(there)
  }
}
