// Packed copies of all weights that tokens are multiplied by: experts' and dense layers' (Layer/LayerPreparation.swift), and
// matrices of the model's own (Formats/PanelMatrix.swift).

extension Model {
  /// Packs them for the forward calls to come, or lets go of what was packed. On an error nothing is. With a calibration scales of
  /// few bits are chosen by it.
  public func prepare(_ wanted: Layer.Preparation, _ calibration: CalibrationPointer? = nil) throws(Fault) {
    try calibration?.pointee.requireFit(self)
    try requireMatrices()
    do throws(Fault) {
      try prepareAll(wanted, calibration)
    } catch {
      // Letting go needs no memory.
      try prepareAll(.none, nil)
      throw error
    }
  }

  /// Refuses where some are kept packed alone: there is nothing to pack them from.
  private func requireMatrices() throws(Fault) {
    for index in 0..<parameterCount where parameter(index).isReleased {
      throw .badState("\(parameter(index).name) is kept as it was packed alone; load the model without packing")
    }
  }

  private func prepareAll(_ wanted: Layer.Preparation, _ calibration: CalibrationPointer?) throws(Fault) {
    // Nothing where this context's products read no panels.
    try parameters.prepare(MatrixChoice(wanted: wanted).form(in: context), calibration, configuration, in: context)
    for n in 0..<configuration.layers {
      do throws(Fault) {
        try feedForwards[n]?.pointee.prepare(wanted, calibration?.pointee.layer(n))
      } catch {
        throw error.inLayer(n)
      }
    }
  }

  /// Refuses copies that differ from the weights, whose backward would be that of another model; those in few bits are the weights, and
  /// stay as they are.
  func requireTrainedValues() throws(Fault) {
    guard let form = changedValues else { return }
    throw .badState(
      "tape: weights prepared as \(form.constant) are for inference; prepare the weights' own type, or nothing, to train"
    )
  }

  private var changedValues: PanelForm? {
    if let form = parameters.changedValues { return form }
    for n in 0..<configuration.layers {
      if let form = feedForwards[n]?.pointee.prepared.changedValues { return form }
    }
    return nil
  }
}
