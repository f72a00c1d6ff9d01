/// A model whose weights are kept packed alone, on its way into files of our own layout: each parameter under its own name, as it is
/// in memory; NAME.packed.FORM where panels are kept, as one row of bytes.
struct PackedOutgoing: OutgoingTensors {
  private let model: Model

  init(_ model: Model) throws(Fault) {
    self.model = model
    for index in 0..<model.parameterCount {
      let parameter = model.parameter(index)
      if parameter.data == nil && model.packed(index) == nil { throw .badState("\(parameter.name) has no memory") }
    }
  }

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    for index in 0..<model.parameterCount {
      let parameter = model.parameter(index)
      let packed = model.packed(index)
      // Tokens are looked up in an embedding, which an output may share.
      let isRead = packed == nil || compareText(parameter.name, cText("embed.weight")) == 0
      if isRead, let data = parameter.data {
        try body(
          OutgoingTensor(
            name: parameter.name, type: StoredType(parameter.type), shape: parameter.storedShape,
            contents: .memory(data)))
      }
      guard let packed else { continue }
      try withText { (name: inout TextBuffer) in
        name.append(parameter.name)
        name.append(PanelForm.mark)
        packed.forms.appendWord(to: &name)
      } body: { (name) throws(Fault) in
        try body(OutgoingTensor(name: name, panels: packed.panels, bytes: packed.bytes))
      }
    }
  }
}

extension Model {
  /// Whether some of its weights are in packed copies alone.
  public var isPacked: Bool {
    for index in 0..<parameterCount where parameter(index).isReleased { return true }
    return false
  }

  /// A parameter's panels; nil where there are none.
  func packed(_ index: Int) -> PackedMatrices? {
    switch list[index] {
    case .own(let own): parameters.parameter(own).panels?.pointee.packed
    case .feedForward(let n, let own): feedForwards[n]!.pointee.packed(own)
    }
  }
}
