import CMoE
import MoE

// Which experts of calls are on which rank: moe_ranks.h.

@implementation @_cdecl("moe_experts_ranks_create")
public func moe_experts_ranks_create(
  _ context: OpaquePointer?, _ communicator: UnsafePointer<moe_communicator>?, _ n_experts: Int64,
  _ experts_per_rank: UnsafePointer<Int64>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let communicator = try Communicator(try read(communicator, "communicator"))
    try require(Int(n_experts), "n_experts", from: 1, to: Int(Int32.max))
    let counts = try expertsPerRank(experts_per_rank, "experts_per_rank", communicator, of: Int(n_experts))
    let out = try required(out, "out")
    var hash = Hash()
    hash.add(UInt64(n_experts))
    hash.add(UInt64(communicator.size))
    for rank in 0..<communicator.size { hash.add(counts.map { UInt64($0[rank]) } ?? .max) }
    let wanted = Ranks.Wanted(
      communicator, expertsPerRank: counts, choosesLocally: false, .exclusive, configurationHash: hash.value)
    out.pointee = OpaquePointer(try ExpertRanksPointer.create(wanted, experts: Int(n_experts), in: context))
  }
}

@implementation @_cdecl("moe_experts_ranks_free")
public func moe_experts_ranks_free(_ ranks: OpaquePointer?) {
  guard let ranks else { return }
  ExpertRanksPointer(ranks).free()
}
