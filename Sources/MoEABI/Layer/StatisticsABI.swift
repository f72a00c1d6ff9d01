import CMoE
import MoE

@implementation @_cdecl("moe_statistics_create")
public func moe_statistics_create(
  _ context: OpaquePointer?, _ n_experts: Int64, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try require(Int(n_experts), "n_experts", from: 1, to: Int(Int32.max))
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try StatisticsPointer.create(experts: Int(n_experts), in: context))
  }
}

@implementation @_cdecl("moe_statistics_free")
public func moe_statistics_free(_ statistics: OpaquePointer?) {
  guard let statistics else { return }
  StatisticsPointer(statistics).free()
}

@implementation @_cdecl("moe_statistics_add")
public func moe_statistics_add(_ statistics: OpaquePointer?, _ report: UnsafePointer<moe_report>?) -> moe_status {
  attempt { () throws(Fault) in
    let statistics = try handle(statistics, "statistics", as: Statistics.self)
    let report = try read(report, "report")
    let counts = try required(report.tokens_per_expert, "report.tokens_per_expert")
    let dropped = try optional(report.dropped_per_expert, "report.dropped_per_expert")
    let probability = try optional(report.mean_probability, "report.mean_probability")
    try statistics.pointee.add(
      Statistics.Scalars(report), counts: counts, dropped: dropped.map { UnsafePointer($0) },
      probability: probability.map { UnsafePointer($0) })
  }
}

@implementation @_cdecl("moe_statistics_reset")
public func moe_statistics_reset(_ statistics: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in
    try handle(statistics, "statistics", as: Statistics.self).pointee.reset()
  }
}

@implementation @_cdecl("moe_statistics_read")
public func moe_statistics_read(_ statistics: OpaquePointer?, _ report: UnsafeMutablePointer<moe_report>?) -> moe_status
{
  attempt { () throws(Fault) in
    let statistics = try handle(statistics, "statistics", as: Statistics.self)
    let experts = statistics.pointee.experts
    var operands = Operands()
    var (report, filled) = try operands.updates(report, "report")
    let counts = try operands.writes(optional: filled.tokens_per_expert, experts, "report.tokens_per_expert")
    let dropped = try operands.writes(optional: filled.dropped_per_expert, experts, "report.dropped_per_expert")
    let probability = try operands.writes(optional: filled.mean_probability, experts, "report.mean_probability")
    let call = statistics.pointee.read(counts: counts, dropped: dropped, probability: probability)
    filled.set(call)
    filled.set(statistics.pointee.load)
    report.pointee = filled
  }
}

extension Statistics.Scalars {
  fileprivate init(_ report: moe_report) {
    self.init()
    valid = report.n_valid
    dropped = report.n_dropped
    balanceLoss = Double(report.balance_loss)
    zLoss = Double(report.z_loss)
    auxLoss = Double(report.aux_loss)
    entropy = Double(report.entropy)
  }
}

extension moe_report {
  fileprivate mutating func set(_ call: Statistics.Scalars) {
    balance_loss = Float(call.balanceLoss)
    z_loss = Float(call.zLoss)
    aux_loss = Float(call.auxLoss)
    entropy = Float(call.entropy)
    n_valid = call.valid
    n_dropped = call.dropped
  }
}
