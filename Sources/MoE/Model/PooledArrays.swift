/// Counts and probabilities of all MoE layers, for their loss together.
struct PooledArrays {
  private let layers: Int
  private let experts: Int
  private let counts: UnsafeMutablePointer<Int64>  // [layers, E]
  private let valid: UnsafeMutablePointer<Int64>  // [layers]
  private let probability: UnsafeMutablePointer<Float>  // [layers, E]

  init?(_ arena: inout Arena, _ model: Model) {
    guard model.configuration.pooledCoefficient > 0 else { return nil }
    (layers, experts) = (model.countMoE, model.pooledExperts)
    counts = arena.take(Int64.self, layers, experts)
    valid = arena.take(Int64.self, layers)
    probability = arena.take(Float.self, layers, experts)
  }

  /// What the caller asked for of layer n, written here.
  func take(_ asked: Layer.Details, _ n: Int, _ model: Model) -> Layer.Details {
    let place = model.placeAmongMoE(n) * experts
    var details = asked
    details.tokensPerExpert = counts + place
    details.meanProbability = probability + place
    return details
  }

  func note(_ report: Report, _ n: Int, _ model: Model, _ asked: Layer.Details) {
    let place = model.placeAmongMoE(n) * experts
    valid[model.placeAmongMoE(n)] = Int64(report.valid)
    asked.tokensPerExpert?.update(from: counts + place, count: experts)
    asked.meanProbability?.update(from: probability + place, count: experts)
  }

  func loss(gradient: UnsafeMutablePointer<Float>?) -> Double {
    Double(
      PooledBalance(layers: layers, experts: experts, counts: counts, valid: valid, probability: probability).loss(
        gradient: gradient))
  }
}
