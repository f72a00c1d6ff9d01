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

  /// The gradient with respect to y becomes that with respect to x.
  func normBackward(
    _ weight: Parameter, _ bias: Parameter?, rows: Int, _ x: UnsafePointer<Float>,
    _ statistics: UnsafePointer<Float>, _ gradient: UnsafeMutablePointer<Float>
  ) -> NormBackward {
    NormBackward(
      normKind, context: context, rows: rows, x: x, weight: weight.floats, statistics: statistics, dy: gradient,
      dx: gradient, dWeight: weight.grad, dBias: bias?.grad)
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
    _ gradient: UnsafeMutablePointer<Float>
  ) -> NormBackward {
    model.normBackward(self[which.weight]!, self[which.bias], rows: tokens, x, statistics, gradient)
  }
}
