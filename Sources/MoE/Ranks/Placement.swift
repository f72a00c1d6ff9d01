/// Which rank owns which experts: contiguous blocks in the order of the ranks, or all of them on every rank.
public struct Placement {
  /// Numbers as in moe_strategy.
  public enum Strategy: Int32 {
    case exclusive = 0
    case replicated = 1
  }

  let strategy: Strategy
  private let firsts: UnsafeMutablePointer<Int>  // [ranks + 1]
  private let groups: UnsafeMutablePointer<Int>  // [groups + 1] the first expert of each group of the whole layer

  init(_ arena: inout Arena, ranks: Int, groups: Int, _ strategy: Strategy) {
    self.strategy = strategy
    firsts = arena.take(Int.self, ranks + 1)
    self.groups = arena.take(Int.self, groups + 1)
  }

  /// As many as `counts` [ranks] says, or as even as they can be, the larger blocks first.
  func fill(_ counts: UnsafePointer<Int64>?, _ c: Configuration.Values, ranks: Int) {
    firsts[0] = 0
    for rank in 0..<ranks {
      let even = c.experts / ranks + (rank < c.experts % ranks ? 1 : 0)
      let own = strategy == .replicated ? 0 : counts.map { Int($0[rank]) } ?? even
      firsts[rank + 1] = firsts[rank] + own
    }
    groups[0] = 0
    for index in 0..<c.groupCount { groups[index + 1] = groups[index] + c.groups[index].experts }
  }

  /// Those whose rows travel to a rank.
  func experts(of rank: Int) -> Range<Int> { firsts[rank]..<firsts[rank + 1] }

  /// A group of the whole layer.
  func whole(_ group: ExpertGroup) -> ExpertGroup {
    group.with(experts: groups[group.index + 1] - groups[group.index])
  }

  /// Those of a group's experts that a rank has the parameters of, counted from the group's first.
  func owned(by rank: Int, inGroup index: Int) -> Range<Int> {
    if strategy == .replicated { return 0..<groups[index + 1] - groups[index] }
    let mine = experts(of: rank).clamped(to: groups[index]..<groups[index + 1])
    return mine.lowerBound - groups[index]..<mine.upperBound - groups[index]
  }
}
