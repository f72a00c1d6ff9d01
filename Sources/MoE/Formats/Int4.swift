import CShims

/// Integers of 4 bits under a scale of binary16 for 32, 64 or 128 inputs; with 32 GGUF's Q4_0. d = w / -8 of the w that is
/// farthest from 0, and w becomes min(floor(w (1 / d) + 8.5), 15) - 8.
extension PanelCode {
  static func int4(group: Int) -> PanelCode {
    PanelCode(number: MOEI_CODE_INT4, inputs: group, blockBytes: group * 16 + 64)
  }
}

extension PanelForm {
  static var int4: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4", contents: .blocks(.int4(group: 32), times: .floats))
  }
  static var int4A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_A16", contents: .blocks(.int4(group: 32), times: .halves))
  }
  static var int4A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_A8", contents: .blocks(.int4(group: 32), times: .integers))
  }
  static var int4G64: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G64", contents: .blocks(.int4(group: 64), times: .floats))
  }
  static var int4G64A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G64_A16", contents: .blocks(.int4(group: 64), times: .halves))
  }
  static var int4G64A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G64_A8", contents: .blocks(.int4(group: 64), times: .integers))
  }
  static var int4G128: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G128", contents: .blocks(.int4(group: 128), times: .floats))
  }
  static var int4G128A16: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G128_A16", contents: .blocks(.int4(group: 128), times: .halves))
  }
  static var int4G128A8: PanelForm {
    PanelForm(constant: "MOE_PREPARED_INT4_G128_A8", contents: .blocks(.int4(group: 128), times: .integers))
  }
}
