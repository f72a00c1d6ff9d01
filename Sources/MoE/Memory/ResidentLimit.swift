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

  /// A layer's part of a model's limit, which is above `others`.
  public init(ofModel allowed: Int, others: Int, layers: Int) {
    bytes = (allowed - others) / layers
    model = Share(allowed: allowed, others: others, layers: layers)
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
