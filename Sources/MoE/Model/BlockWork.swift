import CShims

/// What the stages of one transformer layer read in a call.
struct BlockWork {
  let model: Model
  let n: Int  // the layer's number
  let input: ModelInput

  var c: ModelConfiguration { model.configuration }
  var layer: ModelLayer { model.configuration.layer(n) }
  var context: ContextPointer { model.context }
  var tokens: Int { input.tokens }

  subscript(role: ModelParameters.LayerRole) -> Parameter? { model.parameters[n, role] }

  func dropout(_ stream: ModelStream) -> InvertedDropout? {
    InvertedDropout(c, input, seed: c.seed(ofLayer: n), stream, context: context)
  }

  /// y = scale * dropout(y) + x, what attention or ffn adds to the residual; without x the first term alone; with `from`, of
  /// that in place of y.
  func sum(
    from: UnsafePointer<Float>? = nil, _ dropout: InvertedDropout?, x: UnsafePointer<Float>?,
    y: UnsafeMutablePointer<Float>
  ) -> ResidualSum {
    ResidualSum(
      kernels: context.kernels, count: tokens * c.hidden, from: from, dropout: dropout, factor: c.residualScale, x: x,
      y: y)
  }

  /// y += x
  func add(_ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>) -> ResidualSum {
    ResidualSum(kernels: context.kernels, count: tokens * c.hidden, dropout: nil, x: x, y: y)
  }
}
