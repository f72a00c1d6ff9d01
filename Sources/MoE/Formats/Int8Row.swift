import CShims

/// Integers of 8 bits under a float32 scale for a whole row. d = max |w| / 127, and w becomes round(w (1 / d)), away from 0 in a tie.
extension PanelCode {
  static var int8Row: PanelCode {
    PanelCode(number: MOEI_CODE_INT8_ROW, inputs: 256, blockBytes: 8 * 1024 + 128, hasRowScales: true)
  }
}

extension PanelForm {
  static var int8Row: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8_ROW", contents: .blocks(.int8Row, times: .floats))
  }
  static var int8RowA16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8_ROW_A16", contents: .blocks(.int8Row, times: .halves))
  }
  static var int8RowA8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT8_ROW_A8", contents: .blocks(.int8Row, times: .integers))
  }
}
