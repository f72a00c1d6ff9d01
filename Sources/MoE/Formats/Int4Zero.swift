import CShims

/// Numbers of 4 bits around a zero point, under a float32 scale, both for 32, 64 or 128 inputs: what AWQ, GPTQ and
/// compressed-tensors have. From the lowest value, or 0, to the highest, or 0, there are 15 steps.
extension PanelCode {
  static func int4Zero(group: Int) -> PanelCode {
    PanelCode(number: MOEI_CODE_INT4_ZERO, inputs: group, blockBytes: group * 16 + 160)
  }
}

extension PanelForm {
  static var int4Zero: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO", contents: .blocks(.int4Zero(group: 32), times: .floats))
  }
  static var int4ZeroA16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_A16", contents: .blocks(.int4Zero(group: 32), times: .halves))
  }
  static var int4ZeroA8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_A8", contents: .blocks(.int4Zero(group: 32), times: .integers))
  }
  static var int4ZeroG64: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G64", contents: .blocks(.int4Zero(group: 64), times: .floats))
  }
  static var int4ZeroG64A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G64_A16", contents: .blocks(.int4Zero(group: 64), times: .halves))
  }
  static var int4ZeroG64A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G64_A8", contents: .blocks(.int4Zero(group: 64), times: .integers))
  }
  static var int4ZeroG128: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G128", contents: .blocks(.int4Zero(group: 128), times: .floats))
  }
  static var int4ZeroG128A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G128_A16", contents: .blocks(.int4Zero(group: 128), times: .halves))
  }
  static var int4ZeroG128A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_ZERO_G128_A8", contents: .blocks(.int4Zero(group: 128), times: .integers))
  }
}
