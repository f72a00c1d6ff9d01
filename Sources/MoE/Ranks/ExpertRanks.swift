import CShims

/// The ranks that calls of experts are spread over, and how many experts each of them has. Calls take turns.
public struct ExpertRanks {
  fileprivate let context: ContextPointer
  let ranks: RanksPointer
  fileprivate let turn: Lock
  public let experts: Int  // of all ranks, E

  /// This rank's.
  public var own: Range<Int> { ranks.pointee.experts }
}

public typealias ExpertRanksPointer = UnsafeMutablePointer<ExpertRanks>

extension UnsafeMutablePointer where Pointee == ExpertRanks {
  public static func create(
    _ wanted: Ranks.Wanted, experts: Int, in context: ContextPointer
  ) throws(Fault) -> ExpertRanksPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make { (arena: inout Arena) in
      (place: arena.take(ExpertRanks.self, 1), turn: Lock(&arena))
    }
    parts.turn.initialise()
    let group = ExpertGroup(
      kind: .zero, hidden: 1, intermediate: 1, experts: experts, activation: moei_activation(), hasBias: false,
      dropout: 0, weights: .f32, weightOnInput: false, isShared: false)
    do throws(Fault) {
      try withUnsafePointer(to: group) { (group) throws(Fault) in
        let values = Configuration.Values(hidden: 1, experts: experts, topK: 1, groups: group, groupCount: 1)
        let ranks = try RanksPointer.create(wanted, values, allocator)
        parts.place.initialize(to: ExpertRanks(context: context, ranks: ranks, turn: parts.turn, experts: experts))
      }
    } catch {
      allocator.deallocate(parts.place)
      throw error
    }
    context.retain()
    return parts.place
  }

  public func free() {
    let context = pointee.context
    pointee.ranks.free(in: context)
    context.pointee.allocator.deallocate(self)
    context.release()
  }

  /// Memory of exchanges, in the context that it lives as long as.
  func room<Parts>(_ layout: (inout Arena) -> Parts) throws(Fault) -> Parts {
    try pointee.ranks.room(pointee.context.pointee.allocator, layout)
  }

  /// One call of all ranks: what `body` throws is told to the others.
  public func together(_ body: () throws(Fault) -> Void) throws(Fault) {
    let ranks = pointee.ranks
    try pointee.turn.acquire(for: "moe_experts_ranks")
    defer { pointee.turn.release() }
    try ranks.pointee.beginCall()
    do throws(Fault) { try body() } catch { throw ranks.pointee.told(error) }
  }
}
