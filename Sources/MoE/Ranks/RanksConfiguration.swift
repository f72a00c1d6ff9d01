// What a layer over several ranks cannot be, and what cannot be asked of one.

extension Configuration.Values {
  /// Refuses what compares all tokens of a call, unless each rank chooses among its own.
  public func requireForRanks(
    choosesLocally: Bool, _ strategy: Placement.Strategy, ranks: Int
  ) throws(Fault) {
    if strategy == .sliced {
      for index in 0..<groupCount where !groups[index].isShared {
        let group = groups[index]
        if !group.multiplies || group.linear {
          throw .invalid("strategy = MOE_STRATEGY_SLICED: only experts of the kinds MLP and GATED have slices")
        }
        if group.dropout > 0 {
          throw .invalid("strategy = MOE_STRATEGY_SLICED: dropout of inner features is not divided among ranks")
        }
        if group.intermediate < ranks {
          throw .invalid(
            "strategy = MOE_STRATEGY_SLICED: intermediate_size = \(group.intermediate), but there are \(ranks) ranks")
        }
      }
    }
    if strategy == .replicated && (0..<groupCount).contains(where: { groups[$0].kind == .constant }) {
      throw .invalid(
        "strategy = MOE_STRATEGY_REPLICATED: constant experts' gradients are made with those of x, and do not go from rank to rank"
      )
    }
    if exploration.batchNorm != nil {
      throw .invalid("router_batch_norm = 1: its means are over all tokens, which no rank has")
    }
    if choosesLocally { return }
    func refuse(_ what: StaticString) -> Fault {
      .invalid("\(what) compares the tokens of all ranks: MOE_CHOICE_LOCAL lets each rank choose among its own")
    }
    if router == .expertChoice { throw refuse("router = MOE_ROUTER_EXPERT_CHOICE") }
    if router == .sinkhorn { throw refuse("router = MOE_ROUTER_SINKHORN") }
    if dynamicK?.rule == .complexity { throw refuse("dynamic_k = MOE_DYNAMIC_K_COMPLEXITY") }
    guard let capacity, !capacity.perSequence else { return }
    if capacity.nextBest { throw refuse("overflow = MOE_OVERFLOW_NEXT_BEST") }
    switch capacity.order {
    case .position, .choicePosition: break
    case .probability: throw refuse("drop = MOE_DROP_PROBABILITY")
    case .batchPrioritized: throw refuse("drop = MOE_DROP_BATCH_PRIORITIZED")
    case .random: throw refuse("drop = MOE_DROP_RANDOM")
    }
  }
}

extension Configuration.Values {
  /// Refuses hot experts where there can be none.
  public func requireForHotExperts(_ strategy: Placement.Strategy) throws(Fault) {
    if strategy != .exclusive {
      throw .invalid("hot_experts is not 0, but strategy is not MOE_STRATEGY_EXCLUSIVE: no expert has one owner alone")
    }
    if groupCount - (shared > 0 ? 1 : 0) != 1 || !groups[0].multiplies {
      throw .invalid("hot_experts is not 0, but not all experts are of one kind with matrices")
    }
  }
}

extension Layer {
  /// Refuses a call that ranks cannot make together.
  func requireForRanks(_ call: Call) throws(Fault) {
    if !call.hasSequences && (configuration.hasLossesBySequence || configuration.choosesBySequence) {
      throw .invalid(
        "options.sequence_length = 0, but losses or capacity go by sequence, and a sequence lies on one rank")
    }
  }

  /// Refuses what wants all experts.
  public func requireWhole() throws(Fault) {
    if ranks.map({ $0.pointee.placement.strategy == .replicated }) ?? true { return }
    throw .badState("the layer's experts are spread over ranks, and only some of them are here: go by its parameters")
  }

  /// Refuses what puts the experts of all ranks together, one behind the other.
  public func requireWholeExperts() throws(Fault) {
    if ranks?.pointee.placement.strategy == .sliced {
      throw .badState("the layer's experts are sliced, and files have them whole: go by its parameters")
    }
  }

  /// A call of the boundary begins: what it finds wrong is told to the other ranks, too.
  public func beginCall() throws(Fault) { try ranks?.pointee.beginCall() }
  public func told(_ fault: Fault) -> Fault { ranks?.pointee.told(fault) ?? fault }
}
