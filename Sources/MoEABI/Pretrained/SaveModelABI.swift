import CMoE
import MoE

@implementation @_cdecl("moe_model_save")
public func moe_model_save(
  _ model: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options: UnsafePointer<moe_save_options>?
) -> moe_status {
  attempt { () throws(Fault) in throw .invalid("not there yet") }
}
