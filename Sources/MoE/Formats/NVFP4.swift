import CShims

/// Floats of 4 bits (E2M1) under one of 8 bits (E4M3) for 16 inputs and one of float32: NVFP4. The latter is max |w| / (6 * 448)
/// of 128 inputs of 32 outputs, or what a checkpoint has.
extension PanelCode {
  static var nvfp4: PanelCode {
    PanelCode(
      number: MOEI_CODE_NVFP4, inputs: 128, blockBytes: 4 * 576 + 64, inputsOfScale: 16, sharing: .scaleOfScales)
  }
}

extension PanelForm {
  static var nvfp4: PanelForm {
    PanelForm(constant: "MOE_PREPARED_NVFP4", contents: .blocks(.nvfp4, times: .floats))
  }
  static var nvfp4A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_NVFP4_A16", contents: .blocks(.nvfp4, times: .halves))
  }
  static var nvfp4A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_NVFP4_A8", contents: .blocks(.nvfp4, times: .integers))
  }
}
