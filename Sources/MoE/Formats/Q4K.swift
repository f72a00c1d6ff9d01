import CShims

/// Numbers of 4 bits between a lowest value and a highest one for 32 inputs, whose steps and offsets have 6 bits each under two
/// scales of binary16 for 256: GGUF's Q4_K. Steps and offsets are fitted by least squares.
extension PanelCode {
  static var q4K: PanelCode {
    PanelCode(number: MOEI_CODE_Q4_K, inputs: 256, blockBytes: 8 * 576 + 128, unit: 256, inputsOfScale: 32)
  }
}

extension PanelForm {
  static var q4K: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q4_K", contents: .blocks(.q4K, times: .floats))
  }
  static var q4KA16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q4_K_A16", contents: .blocks(.q4K, times: .halves))
  }
  static var q4KA8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q4_K_A8", contents: .blocks(.q4K, times: .integers))
  }
}
