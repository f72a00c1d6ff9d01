// Panels that lie somewhere, in a layer's memory or in a file, and what they are called in files.

/// Some matrices [rows, depth] of one shape as panels, one matrix after the other: of one whose rows have several forms there is one.
struct PackedMatrices {
  let forms: RowForms
  let panels: UnsafeRawPointer  // [count, panels of the rows]
  let bytes: Int
}

extension PanelForm {
  /// What `count` matrices [rows, depth] take; nil where that does not fit in 63 bits.
  func bytes(_ count: Int, rows: Int, depth: Int) -> Int? {
    let (panels, overflow) = count.multipliedReportingOverflow(by: chunks(of: rows))
    let (bytes, also) = panels.multipliedReportingOverflow(by: panelBytes(depth))
    return overflow || also ? nil : bytes
  }

  // MARK: in files

  /// What stands in a tensor's name between the parameter's and the form's.
  static var mark: StaticString { ".packed." }
  private static var prefix: StaticString { "MOE_PREPARED_" }

  /// As in moe_prepared, in small letters.
  func appendWord(to text: inout TextBuffer) {
    for i in Self.prefix.utf8CodeUnitCount..<constant.utf8CodeUnitCount {
      let byte = constant.utf8Start[i]
      text.append(UInt8(ascii: "A")...UInt8(ascii: "Z") ~= byte ? byte + 32 : byte)
    }
  }

  /// nil where no form is called so.
  fileprivate init?(_ word: JSONText) {
    var number: Int32 = 1
    while let preparation = Layer.Preparation(rawValue: number) {
      number += 1
      guard let form = preparation.form else { continue }
      let isIt = withText {
        form.appendWord(to: &$0)
      } body: {
        JSONText($0) == word
      }
      if isIt {
        self = form
        return
      }
    }
    return nil
  }
}

extension RowForms {
  /// FORM, or FORM-END.FORM where a part ends before panel number END.
  func appendWord(to text: inout TextBuffer) {
    forEachPart { form, end in
      form.appendWord(to: &text)
      guard let end else { return }
      text.append("-")
      text.append(end)
      text.append(".")
    }
  }

  /// nil where it is none of those words. `panels`: how many there are.
  init?(word: UnsafePointer<CChar>, panels: Int) {
    var (rest, first, made) = (word, 0, RowForms?.none)
    for _ in 0..<Self.mostParts {
      var length = 0
      while rest[length] != 0 && rest[length] != CChar(UInt8(ascii: "-")) { length += 1 }
      let text = JSONText(start: UnsafeRawPointer(rest).assumingMemoryBound(to: UInt8.self), count: length)
      guard let form = PanelForm(text) else { return nil }
      if made == nil { made = RowForms(form) } else { made!.append(form, from: first) }
      if rest[length] == 0 {
        self = made!
        return
      }
      guard let (end, behind) = leadingNumber(rest + length + 1), end > first, end < panels,
        behind[0] == CChar(UInt8(ascii: "."))
      else { return nil }
      (first, rest) = (end, behind + 1)
    }
    return nil
  }
}
