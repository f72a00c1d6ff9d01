import CMoE
import MoE

// Files as memory.

@implementation @_cdecl("moe_mapping_create")
public func moe_mapping_create(
  _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ size: Int, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let path = try required(path, "path")
    let out = try required(out, "out")
    // Beyond 63 bits it is negative here.
    if size <= 0 { throw .invalid("size = \(UInt64(bitPattern: Int64(size))) is not 1 to 2^63 - 1") }
    out.pointee = OpaquePointer(try SharedFilePointer.create(path, bytes: size, in: context))
  }
}

@implementation @_cdecl("moe_mapping_free")
public func moe_mapping_free(_ mapping: OpaquePointer?) {
  guard let mapping else { return }
  SharedFilePointer(mapping).free()
}

@implementation @_cdecl("moe_mapping_data")
public func moe_mapping_data(
  _ mapping: OpaquePointer?, _ data: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let mapping = try handle(mapping, "mapping", as: SharedFile.self)
    try required(data, "data").pointee = mapping.pointee.memory
  }
}

@implementation @_cdecl("moe_mapping_flush")
public func moe_mapping_flush(_ mapping: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in try handle(mapping, "mapping", as: SharedFile.self).pointee.flush() }
}
