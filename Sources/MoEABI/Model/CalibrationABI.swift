import CMoE
import MoE

@implementation @_cdecl("moe_calibration_create")
public func moe_calibration_create(
  _ model: OpaquePointer?, _ product_bytes: Int, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try model.pointee.requireWhole()
    let out = try required(out, "out")
    out.pointee = OpaquePointer(
      try CalibrationPointer.create(for: model.pointee, productBytes: limit(product_bytes) ?? 0))
  }
}

@implementation @_cdecl("moe_calibration_free")
public func moe_calibration_free(_ calibration: OpaquePointer?) {
  guard let calibration else { return }
  CalibrationPointer(calibration).free()
}

@implementation @_cdecl("moe_model_calibrate")
public func moe_model_calibrate(
  _ model: OpaquePointer?, _ input: UnsafePointer<moe_model_input>?, _ calibration: OpaquePointer?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let calibration = try handle(calibration, "calibration", as: Calibration.self)
    var operands = Operands()
    let call = try ModelInput(input, model, &operands)
    if call.training {
      throw .invalid("input.training = 1: calibration gathers what inference reads, without dropout and exploration")
    }
    _ = try product(call.tokens * model.pointee.configuration.hidden, 4, "the size of the hidden states")
    try operands.requireApart(fromParametersOf: model)
    try model.pointee.calibrate(calibration, call)
  }
}

@implementation @_cdecl("moe_model_prepare_calibrated")
public func moe_model_prepare_calibrated(
  _ model: OpaquePointer?, _ prepared: Int32, _ calibration: OpaquePointer?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    let wanted = try Layer.Preparation(prepared, of: model.pointee.configuration.weights, "model")
    let calibration = try handle(calibration, "calibration", as: Calibration.self)
    try requireFewBits(prepared, "calibration", "prepared")
    try model.pointee.prepare(wanted, calibration)
  }
}

/// A calibration chooses among roundings, of which other forms have none.
func requireFewBits(_ prepared: Int32, _ calibration: StaticString, _ name: StaticString) throws(Fault) {
  if Layer.Preparation(rawValue: prepared)?.isOfFewBits ?? false { return }
  throw .invalid(
    "\(calibration) chooses few bits, but \(name) = \(Int(prepared)) keeps none: give a form that does, such as MOE_PREPARED_INT4, or no calibration"
  )
}

@implementation @_cdecl("moe_calibration_read")
public func moe_calibration_read(
  _ calibration: OpaquePointer?, _ parameter: Int64, _ expert: Int64,
  _ calibrated: UnsafeMutablePointer<moe_calibrated>?
) -> moe_status {
  attempt { () throws(Fault) in
    let calibration = try handle(calibration, "calibration", as: Calibration.self)
    try require(Int(parameter), "parameter", from: 0, to: calibration.pointee.parameterCount - 1)
    try require(Int(expert), "expert", from: 0, to: max(0, calibration.pointee.experts(Int(parameter)) - 1))
    let calibrated = try required(calibrated, "calibrated")
    let size = try requireSize(UnsafePointer(calibrated), "calibrated")
    let found = calibration.pointee.entry(Int(parameter), expert: Int(expert))
    var told = moe_calibrated()
    told.struct_size = size
    told.name = found.name
    told.n_experts = Int64(found.experts)
    told.n_inputs = Int64(found.inputs)
    told.n_tokens = found.tokens
    told.square_sums = found.sums
    told.is_few = found.hasFew ? 1 : 0
    told.products = found.products
    told.n_product_tokens = found.productTokens
    calibrated.pointee = told
  }
}
