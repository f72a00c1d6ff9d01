// The norms of a model: two of each layer, and the final one. Those of heads are in PlacedHeads.swift.

extension Model {
  private var normKind: Norm {
    Norm(configuration.norm, hidden: configuration.hidden, epsilon: configuration.epsilon)
  }

  func norm(
    _ weight: Parameter, _ bias: Parameter?, rows: Int, _ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>,
    _ statistics: UnsafeMutablePointer<Float>? = nil
  ) -> NormForward {
    NormForward(
      normKind, context: context, rows: rows, x: x, weight: weight.floats, bias: bias?.constants, y: y,
      statistics: statistics)
  }

  /// The gradient with respect to y becomes that with respect to x, which is added to `sum` too.
  func normBackward(
    _ weight: Parameter, _ bias: Parameter?, rows: Int, _ x: UnsafePointer<Float>,
    _ statistics: UnsafePointer<Float>, _ gradient: UnsafeMutablePointer<Float>,
    addedTo sum: UnsafeMutablePointer<Float>? = nil
  ) throws(Fault) {
    try backward(of: weight, bias) { (part) throws(Fault) in
      try NormBackward(
        normKind, context: context, rows: rows, x: x, weight: weight.floats, statistics: statistics, dy: gradient,
        dx: part.isOfInput ? gradient : nil, dWeight: part.isOfParameters ? weight.grad : nil,
        dBias: part.isOfParameters ? bias?.grad : nil
      ).run(addedTo: sum, in: context)
    }
  }
}

/// Which of a layer's norms.
enum BlockNorm: UInt8 {
  case first
  case second

  var weight: ModelParameters.LayerRole { self == .first ? .norm1Weight : .norm2Weight }
  var bias: ModelParameters.LayerRole { self == .first ? .norm1Bias : .norm2Bias }
}

extension BlockWork {
  func norm(
    _ which: BlockNorm, _ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>,
    _ statistics: UnsafeMutablePointer<Float>? = nil
  ) -> NormForward {
    model.norm(self[which.weight]!, self[which.bias], rows: tokens, x, to: y, statistics)
  }

  func normBackward(
    _ which: BlockNorm, _ x: UnsafePointer<Float>, _ statistics: UnsafePointer<Float>,
    _ gradient: UnsafeMutablePointer<Float>, addedTo sum: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    try model.normBackward(
      self[which.weight]!, self[which.bias], rows: tokens, x, statistics, gradient, addedTo: sum)
  }
}

extension BlockWork {
  /// Of rows that stand anywhere, without bias: `gradient`, laid out as they are, becomes theirs in place. `weights`: those of the
  /// parameter, or what stands for them.
  func normBackward(
    _ norm: Norm, _ x: PlacedRows, rows: Int, _ parameter: Parameter?, _ weights: UnsafePointer<Float>,
    _ statistics: UnsafePointer<Float>, _ gradient: UnsafeMutablePointer<Float>
  ) throws(Fault) {
    try model.backward(of: parameter, nil) { (part) throws(Fault) in
      try NormBackward(
        norm, context: context, rows: rows, x: x, weight: weights, statistics: statistics,
        dy: PlacedRows(gradient, x.places), dx: part.isOfInput ? gradient : nil,
        dWeight: part.isOfParameters ? parameter?.grad : nil, dBias: nil
      ).run(in: context)
    }
  }
}
