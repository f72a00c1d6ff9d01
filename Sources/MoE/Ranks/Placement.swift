/// Which rank owns which experts: contiguous blocks in the order of the ranks, or all of them on every rank, or a slice of each
/// (expert slicing: Rajbhandari et al., DeepSpeed-MoE, arXiv:2201.05596).
public struct Placement {
  /// Numbers as in moe_strategy.
  public enum Strategy: Int32 {
    case exclusive = 0
    case replicated = 1
    case sliced = 2
  }

  let strategy: Strategy
  private let ranks: Int
  private let firsts: UnsafeMutablePointer<Int>  // [ranks + 1]
  private let groups: UnsafeMutablePointer<Int>  // [groups + 1] the first expert of each group of the whole layer
  private let wholes: UnsafeMutablePointer<ExpertGroup>  // [groups] as the whole layer has them

  init(_ arena: inout Arena, ranks: Int, groups: Int, _ strategy: Strategy) {
    (self.strategy, self.ranks) = (strategy, ranks)
    wholes = arena.take(ExpertGroup.self, groups)
    firsts = arena.take(Int.self, ranks + 1)
    self.groups = arena.take(Int.self, groups + 1)
  }

  /// As many as `counts` [ranks] says, or as even as they can be, the larger blocks first.
  func fill(_ counts: UnsafePointer<Int64>?, _ c: Configuration.Values, ranks: Int) {
    firsts[0] = 0
    for rank in 0..<ranks {
      let even = c.experts / ranks + (rank < c.experts % ranks ? 1 : 0)
      let own = strategy == .exclusive ? counts.map { Int($0[rank]) } ?? even : 0
      firsts[rank + 1] = firsts[rank] + own
    }
    groups[0] = 0
    for index in 0..<c.groupCount {
      groups[index + 1] = groups[index] + c.groups[index].experts
      (wholes + index).initialize(to: c.groups[index])
    }
    if strategy == .sliced { firsts[ranks] = c.experts }
  }

  /// Those whose rows travel to a rank.
  func experts(of rank: Int) -> Range<Int> {
    strategy == .sliced ? 0..<firsts[ranks] : firsts[rank]..<firsts[rank + 1]
  }

  /// What of a group's experts a rank has.
  func own(_ index: Int, of rank: Int) -> ExpertGroup {
    let group = wholes[index]
    if group.isShared { return group }
    if strategy != .sliced { return group.with(experts: owned(by: rank, inGroup: index).count) }
    return group.slice(slice(index, of: rank).count, hasDownBias: rank == 0 && group.hasBias)
  }

  /// Of a group's inner features, those of a rank where experts are sliced, as even as they can be, the larger slices first. The
  /// bias of the outputs belongs to the first one.
  func slice(_ index: Int, of rank: Int) -> Range<Int> {
    let all = wholes[index].intermediate
    func first(_ rank: Int) -> Int { rank * (all / ranks) + min(rank, all % ranks) }
    return first(rank)..<first(rank + 1)
  }

  /// A group of the whole layer.
  func whole(_ group: ExpertGroup) -> ExpertGroup {
    wholes[group.index]
  }

  /// Those of a group's experts that a rank has the parameters of, counted from the group's first.
  func owned(by rank: Int, inGroup index: Int) -> Range<Int> {
    if strategy != .exclusive { return 0..<groups[index + 1] - groups[index] }
    let mine = experts(of: rank).clamped(to: groups[index]..<groups[index + 1])
    return mine.lowerBound - groups[index]..<mine.upperBound - groups[index]
  }
}
