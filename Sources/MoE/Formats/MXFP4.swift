import CShims

/// Floats of 4 bits (E2M1) under a power of two for 32 inputs: MXFP4 of the Open Compute Project, as GGUF has it. The power's
/// exponent is that of max |w| less 2, and w becomes the nearest value.
extension PanelCode {
  static var mxfp4: PanelCode { PanelCode(number: MOEI_CODE_MXFP4, inputs: 64, blockBytes: 1088, inputsOfScale: 32) }
}

extension PanelForm {
  static var mxfp4: PanelForm {
    PanelForm(constant: "MOE_PREPARED_MXFP4", contents: .blocks(.mxfp4, times: .floats))
  }
  static var mxfp4A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_MXFP4_A16", contents: .blocks(.mxfp4, times: .halves))
  }
  static var mxfp4A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_MXFP4_A8", contents: .blocks(.mxfp4, times: .integers))
  }
}
