import CShims

/// Integers of 6 bits under a step of 8 bits for 16 inputs and a scale of binary16 for 256: GGUF's Q6_K. Steps are fitted by
/// least squares.
extension PanelCode {
  static var q6K: PanelCode {
    PanelCode(number: MOEI_CODE_Q6_K, inputs: 256, blockBytes: 8 * 832 + 64, unit: 256, inputsOfScale: 16)
  }
}

extension PanelForm {
  static var q6K: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q6_K", contents: .blocks(.q6K, times: .floats))
  }
  static var q6KA16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q6_K_A16", contents: .blocks(.q6K, times: .halves))
  }
  static var q6KA8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_Q6_K_A8", contents: .blocks(.q6K, times: .integers))
  }
}
