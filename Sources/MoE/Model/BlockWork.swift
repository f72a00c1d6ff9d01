import CShims

/// What the stages of one transformer layer read in a call. They hold it by the dozen, so that the model is a pointer.
struct BlockWork {
  private let place: UnsafePointer<Model>
  let n: Int  // the layer's number
  let input: ModelInput

  init(model: Model, n: Int, input: ModelInput) {
    place = model.place
    self.n = n
    self.input = input
  }

  var model: Model { place.pointee }
  var c: ModelConfiguration { place.pointee.configuration }
  var layer: ModelLayer { place.pointee.configuration.layer(n) }
  var context: ContextPointer { place.pointee.context }
  var tokens: Int { input.tokens }

  subscript(role: ModelParameters.LayerRole) -> Parameter? { place.pointee.parameters[n, role] }

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
      kernels: context.kernels, count: tokens * c.hidden, from: from, dropout: dropout,
      firstElement: model.firstToken * c.hidden, factor: c.residualScale, x: x, y: y)
  }

  /// y += x
  func add(_ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>) -> ResidualSum {
    ResidualSum(kernels: context.kernels, count: tokens * c.hidden, dropout: nil, x: x, y: y)
  }
}
