import CShims

/// Floats of 8 bits (E4M3) under a float32 scale for 128 inputs of 32 outputs: d = max |w| / 448, and w / d becomes the nearest
/// one. Checkpoints with a scale for 128 x 128 weights are kept as they are.
extension PanelCode {
  static var fp8: PanelCode {
    PanelCode(number: MOEI_CODE_FP8, inputs: 128, blockBytes: 4 * 1024 + 64, sharing: .scales)
  }
}

extension PanelForm {
  static var fp8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_FP8", contents: .blocks(.fp8, times: .floats))
  }
  static var fp8A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_FP8_A16", contents: .blocks(.fp8, times: .halves))
  }
}
