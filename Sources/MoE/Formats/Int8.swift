import CShims

/// Integers of 8 bits in blocks of 32 under a scale of binary16: GGUF's Q8_0. d = max |w| / 127, and w becomes round(w (1 / d)),
/// away from 0 in a tie.
extension PanelCode {
  static var int8: PanelCode { PanelCode(number: MOEI_CODE_INT8, inputs: 32, blockBytes: 1088) }
}

extension PanelForm {
  static var int8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8", contents: .blocks(.int8, times: .floats))
  }
  static var int8A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8_A16", contents: .blocks(.int8, times: .halves))
  }
  static var int8A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8_A8", contents: .blocks(.int8, times: .integers))
  }
}
