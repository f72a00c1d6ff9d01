/// A form by its number in moe_prepared. Structures that are copied along a call hold it in place of the form itself, which is ninety
/// times as large: a call's stack is small.
struct FormNumber: Equatable {
  private let number: UInt8

  init(_ form: PanelForm) {
    var number: Int32 = 1
    while let row = Layer.Preparation(rawValue: number), row.form != form { number += 1 }
    self.number = UInt8(truncatingIfNeeded: number)
  }

  var form: PanelForm { Layer.Preparation(rawValue: Int32(number))?.form ?? .f32 }
}
