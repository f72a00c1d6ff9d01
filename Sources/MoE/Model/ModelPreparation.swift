// Packed copies of all weights that tokens are multiplied by: experts' and dense layers' (Layer/LayerPreparation.swift), and
// matrices of the model's own (Formats/PanelMatrix.swift).

extension Model {
  /// Packs them for the forward calls to come, or lets go of what was packed. On an error nothing is. With a calibration scales of
  /// few bits are chosen by it.
  public mutating func prepare(_ wanted: Layer.Preparation, _ calibration: CalibrationPointer? = nil) throws(Fault) {
    let form = readForm(wanted)
    try calibration?.pointee.requireFit(self)
    try requireMatrices()
    do throws(Fault) {
      try prepareAll(wanted, form, calibration)
    } catch {
      // Letting go needs no memory.
      try prepareAll(.none, nil, nil)
      throw error
    }
  }

  /// nil where this context's products read no panels.
  public func readForm(_ wanted: Layer.Preparation) -> PanelForm? {
    wanted.form.flatMap { $0.isRead(in: context) ? $0 : nil }
  }

  /// Refuses where some are kept packed alone: there is nothing to pack them from.
  private func requireMatrices() throws(Fault) {
    for index in 0..<parameterCount where parameter(index).isReleased {
      throw .badState("\(parameter(index).name) is kept as it was packed alone; load the model without packing")
    }
  }

  private mutating func prepareAll(
    _ wanted: Layer.Preparation, _ form: PanelForm?, _ calibration: CalibrationPointer?
  ) throws(Fault) {
    preparation = form
    try parameters.prepare(form, releases: false, calibration, configuration, in: context)
    for n in 0..<configuration.layers {
      do throws(Fault) {
        try feedForwards[n]?.pointee.prepare(wanted, calibration?.pointee.layer(n))
      } catch {
        throw error.inLayer(n)
      }
    }
  }

  /// Of a model that is being read: packs what is not packed yet, and keeps nothing else of it.
  mutating func keepPacked(_ wanted: Layer.Preparation, _ calibration: CalibrationPointer?) throws(Fault) {
    preparation = wanted.form
    try parameters.prepare(wanted.form, releases: true, calibration, configuration, in: context)
    for n in 0..<configuration.layers where !configuration.isMoE(n) {
      do throws(Fault) {
        try feedForwards[n]?.pointee.keepPacked(wanted, calibration?.pointee.layer(n))
      } catch {
        throw error.inLayer(n)
      }
    }
  }

  /// Refuses copies that differ from the weights, whose backward would be that of another model.
  func requireTrainedValues() throws(Fault) {
    guard let form = preparation, form.changesValues(of: configuration.weights) else { return }
    throw .badState(
      "tape: weights prepared as \(form.constant) are for inference; prepare the weights' own type, or nothing, to train"
    )
  }
}
