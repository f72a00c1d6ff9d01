import CShims

/// Numbers of 4 bits that stand for sixteen values, denser around 0, under a scale of binary16 for 32 inputs: GGUF's IQ4_NL. Of some
/// scales the one with the least error.
extension PanelCode {
  static var iq4NL: PanelCode { PanelCode(number: MOEI_CODE_IQ4_NL, inputs: 32, blockBytes: 576) }
}

extension PanelForm {
  static var iq4NL: PanelForm {
    PanelForm(constant: "MOE_PREPARED_IQ4_NL", contents: .blocks(.iq4NL, times: .floats))
  }
  static var iq4NLA16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_IQ4_NL_A16", contents: .blocks(.iq4NL, times: .halves))
  }
  static var iq4NLA8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_IQ4_NL_A8", contents: .blocks(.iq4NL, times: .integers))
  }
}
