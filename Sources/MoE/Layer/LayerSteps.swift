// A backward that steps an optimiser itself (Experts/FusedStep.swift), where one pass over the tokens is not enough, or there
// are none.

extension Layer {
  /// A second pass over the chunks for each expert, since its gradient is complete only after the last of them.
  @inline(never) func stepExperts(
    _ stages: BackwardStages, _ taped: TapeContents, _ plan: Plan, _ steps: inout FusedStep
  ) throws(Fault) {
    steps.begin()
    for index in 0..<configuration.groupCount where configuration.groups[index].multiplies {
      if !parameters.of(configuration.groups[index]).trainsMatrices { continue }
      for expert in 0..<configuration.groups[index].experts {
        for i in 0..<plan.chunks {
          try context.measure(.dispatch, backward: true) { () throws(Fault) in
            stages.dispatch.group(taped.routing, plan.tokens(ofChunk: i))
          }
          try stages.compute.addWeightGradient(
            ofExpert: expert, inGroup: index, in: steps.context, kept: taped.kept(i), isRepeated: true)
        }
        steps.step(configuration.groups[index], expert: expert)
      }
    }
  }

  /// Every gradient is 0, but moments fade and weights decay.
  func stepWithoutTokens(_ call: BackwardCall) throws(Fault) {
    guard let step = call.step else { return }
    let c = configuration
    try turn.acquire(for: "layer")
    defer { turn.release() }
    try context.withScratch(lent: call.scratch, { FusedScratch(&$0, c) }) { (scratch) throws(Fault) in
      var steps = FusedStep(step, parameters, scratch, in: context)
      steps.begin()
      for index in 0..<c.groupCount where c.groups[index].multiplies {
        for expert in 0..<c.groups[index].experts { steps.step(c.groups[index], expert: expert) }
      }
      steps.finish()
    }
  }
}
