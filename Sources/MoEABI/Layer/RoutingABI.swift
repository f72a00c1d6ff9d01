import CMoE
import MoE

@implementation @_cdecl("moe_routing_create")
public func moe_routing_create(_ context: OpaquePointer?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try RoutingRecordPointer.create(in: context))
  }
}

@implementation @_cdecl("moe_routing_free")
public func moe_routing_free(_ routing: OpaquePointer?) {
  guard let routing else { return }
  RoutingRecordPointer(routing).free()
}

@implementation @_cdecl("moe_routing_saved_size")
public func moe_routing_saved_size(_ routing: OpaquePointer?, _ size: UnsafeMutablePointer<Int>?) -> moe_status {
  attempt { () throws(Fault) in
    let routing = try handle(routing, "routing", as: RoutingRecord.self)
    try required(size, "size").pointee = routing.pointee.savedBytes
  }
}

@implementation @_cdecl("moe_routing_save")
public func moe_routing_save(
  _ routing: OpaquePointer?, _ memory: UnsafeMutableRawPointer?, _ size: Int
) -> moe_status {
  attempt { () throws(Fault) in
    let routing = try handle(routing, "routing", as: RoutingRecord.self)
    guard let memory else { throw .invalid("memory is NULL") }
    let needed = routing.pointee.savedBytes
    // A size beyond 2^63 arrives as a negative one, and is no size of memory either.
    if size < needed { throw .invalid("size = \(size), but the routing needs \(needed) bytes") }
    routing.pointee.save(to: memory)
  }
}

@implementation @_cdecl("moe_routing_load")
public func moe_routing_load(_ routing: OpaquePointer?, _ memory: UnsafeRawPointer?, _ size: Int) -> moe_status {
  attempt { () throws(Fault) in
    let routing = try handle(routing, "routing", as: RoutingRecord.self)
    guard let memory else { throw .invalid("memory is NULL") }
    try routing.pointee.load(from: memory, size: size)
  }
}
