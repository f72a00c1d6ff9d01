import CMoE
import MoE

@implementation @_cdecl("moe_adaptive_clip")
public func moe_adaptive_clip(
  _ state: UnsafeMutablePointer<moe_clip_state>?, _ norm: Double, _ max_norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    var operands = Operands()
    let (state, before) = try operands.updates(state, "state")
    var clip = try AdaptiveClip(before)
    let out = try operands.writes(max_norm, 1, "max_norm")
    if norm < 0 { throw .invalid("norm = \(norm) is negative") }
    if !norm.isFinite { throw Fault(.notFinite, "norm = \(norm) is not finite") }
    let limit = try clip.checkedLimit(norm)
    state.write(clip)
    out.pointee = limit
  }
}

@implementation @_cdecl("moe_optimizer_step_adaptive")
public func moe_optimizer_step_adaptive(
  _ optimizer: OpaquePointer?, _ tensors: UnsafePointer<moe_tensor>?, _ count: Int64,
  _ state: UnsafeMutablePointer<moe_clip_state>?, _ norm: UnsafeMutablePointer<Double>?
) -> moe_status {
  attempt { () throws(Fault) in
    let optimizer = try handle(optimizer, "optimizer", as: Optimizer.self)
    var operands = Operands()
    let (state, before) = try operands.updates(state, "state")
    var clip = try AdaptiveClip(before)
    let norm = try operands.writes(optional: norm, 1, "norm")
    let list = try trained(tensors, count: count, by: optimizer, beside: &operands)
    let found = try optimizer.pointee.step(
      maxNorm: { (norm) throws(Fault) in try clip.checkedLimit(norm) }, { list.trained($0) }, notFinite: list.notFinite)
    state.write(clip)
    norm?.pointee = found
  }
}

extension AdaptiveClip {
  /// The caller's state may come out of a file.
  fileprivate init(_ state: moe_clip_state) throws(Fault) {
    try require(Int(state.count), "state.count", from: 0, to: Int(state.warmup_steps))
    self.init(
      decay: state.decay, threshold: state.threshold, warmupSteps: Int(state.warmup_steps), mean: state.mean,
      variance: state.variance, count: Int(state.count))
  }

  /// Norms whose squares leave double's range must not get into the state.
  fileprivate mutating func checkedLimit(_ norm: Double) throws(Fault) -> Double {
    var next = self
    let limit = next.limit(norm)
    guard (norm * norm).isFinite && next.mean.isFinite && next.variance.isFinite else {
      throw Fault(.notFinite, "norm = \(norm) has no finite square")
    }
    self = next
    return limit
  }
}

extension UnsafeMutablePointer where Pointee == moe_clip_state {
  fileprivate func write(_ clip: AdaptiveClip) {
    pointee.mean = clip.mean
    pointee.variance = clip.variance
    pointee.count = Int64(clip.count)
  }
}
