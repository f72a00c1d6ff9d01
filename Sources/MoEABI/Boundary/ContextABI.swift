import CMoE
import MoE

@implementation @_cdecl("moe_context_create")
public func moe_context_create(
  _ config: UnsafePointer<moe_context_config>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let out = try required(out, "out")
    var configuration = Context.Configuration()
    if config != nil { configuration = try Context.Configuration(try read(config, "config")) }
    out.pointee = OpaquePointer(try ContextPointer.create(configuration))
  }
}

@implementation @_cdecl("moe_context_free")
public func moe_context_free(_ context: OpaquePointer?) {
  guard let context else { return }
  ContextPointer(context).release()
}

extension Context.Configuration {
  fileprivate init(_ config: moe_context_config) throws(Fault) {
    self.init()
    threads = config.n_threads == MOE_THREADS_ALL ? nil : max(1, Int(config.n_threads))
    matmul = try named(config.matmul)
    instructions = try named(config.instructions)
    switch (config.alloc, config.dealloc) {
    case (nil, nil): break
    case (let alloc?, let dealloc?):
      allocator = Allocator(allocate: alloc, deallocate: dealloc, user: config.alloc_user)
    case (nil, _): throw .invalid("alloc is NULL and dealloc is not: both or neither")
    case (_, nil): throw .invalid("dealloc is NULL and alloc is not: both or neither")
    }
    memoryLimit = limit(config.memory_limit)
    cancel = Cancel(config.cancel, user: config.cancel_user)
    log = Log(config.log, user: config.log_user)
    hostThreads = config.host_threads
  }
}

@implementation @_cdecl("moe_context_memory")
public func moe_context_memory(
  _ context: OpaquePointer?, _ current: UnsafeMutablePointer<Int>?, _ peak: UnsafeMutablePointer<Int>?
) -> moe_status {
  attempt { () throws(Fault) in
    let inUse = try handle(context, "context", as: Context.self).memoryInUse()
    var operands = Operands()
    let current = try operands.writes(optional: current, 1, "current")
    let peak = try operands.writes(optional: peak, 1, "peak")
    current?.pointee = inUse.current
    peak?.pointee = inUse.peak
  }
}

@implementation @_cdecl("moe_context_threads")
public func moe_context_threads(_ context: OpaquePointer?) -> Int32 {
  context.map { Int32(ContextPointer($0).threads) } ?? 0
}

@implementation @_cdecl("moe_processors")
public func moe_processors() -> Int32 { Int32(Library.processors) }
