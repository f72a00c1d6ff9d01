import CMoE
import MoE

// The one place where moe_layer_config becomes a plan, and where contradictions are found: a field that would have no
// effect beside another is refused by both names, since a number that is silently ignored is found late.

extension Configuration.Values {
  /// `groups` lives as long as the call.
  init(_ config: moe_layer_config, _ groups: UnsafePointer<ExpertGroup>, count: Int) throws(Fault) {
    if config.top_k > config.n_experts {
      throw .invalid("top_k = \(Int(config.top_k)) exceeds n_experts = \(Int(config.n_experts))")
    }
    self.init(
      hidden: Int(config.hidden_size), experts: Int(config.n_experts), topK: Int(config.top_k), groups: groups,
      groupCount: count)
    groupsAreListed = config.n_expert_groups > 0
    shared = Int(config.n_shared_experts)
    sharedGate = try named(config.shared_gate)
    if sharedGate == .residual && shared != 1 {
      throw .invalid("shared_gate = MOE_SHARED_RESIDUAL, but n_shared_experts = \(shared) is not 1")
    }
    if sharedGate == .residual && config.weight_on_input != 0 {
      throw .invalid(
        "shared_gate = MOE_SHARED_RESIDUAL beside weight_on_input = 1: which of them would the weights be on?")
    }
    outputBias = config.output_bias == 1

    router = try named(config.router)
    choice = try TokenChoice(config, router)
    let hasBiasByDefault = hasGate
    routerBias = bias(config.router_bias, default: hasBiasByDefault)
    dynamicK = try DynamicK(config, router)
    warmup = try Warmup(config, router)
    exploration = try Exploration(config, router)
    routerNorm = try RouterNorm.Options(config)
    capacity = try Capacity(config, router)
    renormalizeAfter = config.renormalize == Int32(MOE_RENORMALIZE_AFTER.rawValue)
    if renormalizeAfter && capacity == nil && !exploration.randomSecond {
      throw .invalid(
        "renormalize = 1, but capacity_formula = MOE_CAPACITY_NONE and random_second = 0: nothing is dropped")
    }
    if renormalizeAfter && !choice.dependsOnTheOthers {
      throw .invalid("renormalize = 1, but router_normalize = MOE_NORMALIZE_NONE: nothing is divided")
    }
    try readHashTable(config)
    if !hasGate { try refuseWithoutGate(config) }

    tokens = try elementType(config.io_dtype, "io_dtype", forTokens: true)
    trainable = config.inference_only == 0
    try readUnallocated(config)
    balanceCoefficient = config.balance_coef
    zCoefficient = config.z_coef
    try readLosses(config)
    seed = config.seed
  }

  private mutating func readUnallocated(_ config: moe_layer_config) throws(Fault) {
    let gradients = Int32(MOE_UNALLOCATED_EXPERT_GRADIENTS.rawValue)
    let weights = Int32(MOE_UNALLOCATED_EXPERT_WEIGHTS.rawValue)
    keepsExpertGradients = config.unallocated & gradients == 0
    keepsExpertWeights = config.unallocated & weights == 0
    if !keepsExpertGradients && !trainable {
      throw .invalid("unallocated has MOE_UNALLOCATED_EXPERT_GRADIENTS, but inference_only = 1: there are no gradients")
    }
  }

  private mutating func readHashTable(_ config: moe_layer_config) throws(Fault) {
    guard router.traits.readsTokenIds else {
      if config.vocabulary_size != 0 {
        throw .invalid("vocabulary_size = \(Int(config.vocabulary_size)), but router is not MOE_ROUTER_HASH")
      }
      if config.hash_table != nil { throw .invalid("hash_table is not NULL, but router is not MOE_ROUTER_HASH") }
      return
    }
    if config.vocabulary_size == 0 { throw .invalid("vocabulary_size = 0, but router = MOE_ROUTER_HASH") }
    vocabulary = Int(config.vocabulary_size)
    let entries = try product(vocabulary, topK, "vocabulary_size * top_k")
    guard let table = try optional(UnsafeMutablePointer(mutating: config.hash_table), "hash_table") else { return }
    for i in 0..<entries where table[i] < 0 || table[i] >= experts {
      throw .invalid("hash_table[\(i)] = \(Int(table[i])) is not one of n_experts = \(experts) experts")
    }
    hashTable = UnsafePointer(table)
  }

  /// What only a gate's logits give.
  private func refuseWithoutGate(_ config: moe_layer_config) throws(Fault) {
    func refuse(_ name: StaticString) -> Fault {
      router.traits.needsChoices
        ? .invalid("\(name) has no use with router = MOE_ROUTER_EXTERNAL, which has no gate")
        : .invalid(
          "\(name) has no use with router_weights = MOE_ROUTER_WEIGHTS_EQUAL of a hash router, which has no gate")
    }
    if routerBias { throw refuse("router_bias") }
    if choice.score != .softmax { throw refuse("score") }
    if exploration.noise != .none { throw refuse("noise") }
    if exploration.jitter > 0 && !exploration.jitterExperts { throw refuse("jitter") }
    if exploration.dropout > 0 { throw refuse("router_dropout") }
    if exploration.batchNorm != nil { throw refuse("router_batch_norm") }
    if routerNorm != nil { throw refuse("router_norm") }
    if capacity?.nextBest == true { throw refuse("overflow") }
  }

  private mutating func readLosses(_ config: moe_layer_config) throws(Fault) {
    lossCount = Int(config.n_losses)
    if lossCount == 0 {
      if config.losses != nil { throw .invalid("n_losses = 0, but losses is not NULL") }
      return
    }
    if config.losses == nil { throw .invalid("n_losses = \(lossCount), but losses is NULL") }
    let terms = try required(config.losses, "losses")
    for i in 0..<lossCount {
      try terms[i].requireBounds(Bounds("losses"))
      let loss: LossTerm.Kind = try named(terms[i].kind)
      if !hasGate && loss.needsGate {
        throw .invalid("losses: kind = \(Int(terms[i].kind)) needs a gate's probabilities, but router has no gate")
      }
      if loss.needsNoise && (exploration.noise == .none || !router.traits.takes.contains(.noisyLoads)) {
        throw .invalid(
          "losses: kind = \(Int(terms[i].kind)) needs noise on the logits, but noise = \(Int(config.noise)), router = \(Int(config.router))"
        )
      }
      if loss.needsNoise && exploration.dropoutOnLogits {
        throw .invalid(
          "losses: kind = \(Int(terms[i].kind)) needs all logits, but router_dropout_on = \(Int(config.router_dropout_on))"
        )
      }
      if loss.needsShares && choice.score == .identity {
        throw .invalid(
          "losses: kind = \(Int(terms[i].kind)) needs scores that are no less than 0, but score = \(Int(config.score))")
      }
    }
    // The same layout, in the engine's name.
    losses = UnsafeRawPointer(terms).assumingMemoryBound(to: LossTerm.self)
  }
}
