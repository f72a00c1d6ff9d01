import CShims

/// What the stages of one transformer layer read in a call.
struct BlockWork {
  let model: Model
  let n: Int  // the layer's number
  let input: ModelInput

  var c: ModelConfiguration { model.configuration }
  var context: ContextPointer { model.context }
  var tokens: Int { input.tokens }

  subscript(role: ModelParameters.LayerRole) -> Parameter? { model.parameters[n, role] }

  func dropout(_ stream: ModelStream) -> InvertedDropout? {
    InvertedDropout(c, input, seed: c.seed(ofLayer: n), stream, context: context)
  }

  /// y = dropout(y) + x, or without x dropout alone; with `from`, of that in place of y.
  func sum(
    from: UnsafePointer<Float>? = nil, _ dropout: InvertedDropout?, x: UnsafePointer<Float>?,
    y: UnsafeMutablePointer<Float>
  ) -> ResidualSum {
    ResidualSum(kernels: context.kernels, count: tokens * c.hidden, from: from, dropout: dropout, x: x, y: y)
  }
}
