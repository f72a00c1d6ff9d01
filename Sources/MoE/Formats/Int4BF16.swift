import CShims

/// Integers of 4 bits under a scale of bfloat16 for 32 inputs, as int4 but for the scale, by which numbers are found once it is
/// rounded.
extension PanelCode {
  static var int4BF16: PanelCode { PanelCode(number: MOEI_CODE_INT4_BF16, inputs: 32, blockBytes: 576) }
}

extension PanelForm {
  static var int4BF16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_BF16", contents: .blocks(.int4BF16, times: .floats))
  }
  static var int4BF16A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_BF16_A16", contents: .blocks(.int4BF16, times: .halves))
  }
  static var int4BF16A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_BF16_A8", contents: .blocks(.int4BF16, times: .integers))
  }
}
