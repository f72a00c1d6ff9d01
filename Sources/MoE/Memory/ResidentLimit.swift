/// How many bytes of an offloaded layer's experts may be in memory.
public struct ResidentLimit {
  public let bytes: Int
  /// Of the model, where the layer has its part of what somebody allowed to all of it.
  private let model: Share?

  private struct Share {
    let allowed: Int
    let others: Int  // bytes of what is no expert
    let layers: Int
  }

  public init(bytes: Int) { (self.bytes, model) = (bytes, nil) }

  /// A layer's part of a model's limit.
  public init(ofModel allowed: Int, others: Int, layers: Int) {
    bytes = (allowed - others) / max(layers, 1)
    model = Share(allowed: allowed, others: others, layers: layers)
  }

  /// The same once it is known what packed weights take; nil where all experts fit beside the others.
  func packed(experts: Int, others: Int) throws(Fault) -> ResidentLimit? {
    guard let model else { return self }
    if others + experts <= model.allowed { return nil }
    if model.layers > 0 && others <= model.allowed {
      return ResidentLimit(ofModel: model.allowed, others: others, layers: model.layers)
    }
    throw .invalid(
      "resident_limit = \(model.allowed) bytes, but the parameters beside the routed experts take \(others)")
  }

  /// Where a layer takes more.
  func exceeded(by needed: Int, experts: Int) -> Fault {
    guard let model else {
      return .invalid("resident_limit = \(bytes) bytes, but \(experts) experts and what reading takes need \(needed)")
    }
    let (ofLayers, overflow) = needed.multipliedReportingOverflow(by: model.layers)
    let (all, overflows) = ofLayers.addingReportingOverflow(model.others)
    let least = overflow || overflows ? Int.max : all
    return .invalid(
      """
      resident_limit = \(model.allowed) bytes, but \(experts) experts of each of \(model.layers) layers, what reading them takes, and the \
      \(model.others) bytes of all other parameters need \(least)
      """)
  }
}
