import CMoE
import CShims
import MoE

@implementation @_cdecl("moe_version")
public func moe_version() -> Int32 {
  Int32(MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)
}

@implementation @_cdecl("moe_version_string")
public func moe_version_string() -> UnsafePointer<CChar>! { cText(Library.version) }

@implementation @_cdecl("moe_status_name")
public func moe_status_name(_ status: moe_status) -> UnsafePointer<CChar>! {
  switch status {
  case MOE_OK: cText("MOE_OK")
  case MOE_ERROR_INVALID_ARGUMENT: cText("MOE_ERROR_INVALID_ARGUMENT")
  case MOE_ERROR_OUT_OF_MEMORY: cText("MOE_ERROR_OUT_OF_MEMORY")
  case MOE_ERROR_BAD_STATE: cText("MOE_ERROR_BAD_STATE")
  case MOE_ERROR_NOT_FINITE: cText("MOE_ERROR_NOT_FINITE")
  case MOE_ERROR_CANCELLED: cText("MOE_ERROR_CANCELLED")
  case MOE_ERROR_IO: cText("MOE_ERROR_IO")
  case MOE_ERROR_COMMUNICATION: cText("MOE_ERROR_COMMUNICATION")
  default: cText("unknown status")
  }
}

@implementation @_cdecl("moe_last_error_message")
public func moe_last_error_message() -> UnsafePointer<CChar>! { UnsafePointer(moei_error_text()) }

@implementation @_cdecl("moe_build_info")
public func moe_build_info(_ context: OpaquePointer?) -> UnsafePointer<CChar>! {
  guard let context else { return cText(Library.description) }
  return UnsafePointer(ContextPointer(context).pointee.info)
}
